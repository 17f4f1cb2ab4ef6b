"""Training samples as the loader gives them, for comparisons."""

from __future__ import annotations

import itertools

import torch

from tdos_d2.data import build_train_loader


def batches(cfg, count, start_iteration=0):
    return list(itertools.islice(build_train_loader(cfg, start_iteration), count))


def flat(batches):
    return [sample for batch in batches for sample in batch]


def draw(cfg, count, start_iteration=0):
    """The samples of ``count`` batches in one list."""
    return flat(batches(cfg, count, start_iteration))


def equal(one, other, key="image_id"):
    """Whether two lists of samples agree in pixels, labels and ``key``."""
    return len(one) == len(other) and all(
        a[key] == b[key]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["sem_seg"], b["sem_seg"])
        for a, b in zip(one, other, strict=True)
    )
