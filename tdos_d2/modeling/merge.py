"""Merging the M + 1 OOD queries (the OOD word and the negatives) into one."""

from __future__ import annotations

import torch
from torch import Tensor

MERGE_RULES = ("max", "mean")


def merge_maps(maps: Tensor, num_known: int, rule: str = "max") -> Tensor:
    """Merge the maps of the OOD queries.

    Args:
        maps: (..., N, H, W) mask logits or cosine maps of N = K + 1 + M queries.
        num_known: K.
        rule: "max" (per pixel; the published rule) or "mean".

    Returns:
        (..., K + 1, H, W).
    """
    ood = maps[..., num_known:, :, :]
    merged = ood.amax(-3, keepdim=True) if rule == "max" else ood.mean(-3, keepdim=True)
    return torch.cat([maps[..., :num_known, :, :], merged], dim=-3)


def merge_classes(class_logits: Tensor, num_known: int) -> Tensor:
    """Average the class logits of the OOD queries: (..., N, K + 2) -> (..., K + 1, K + 2)."""
    ood = class_logits[..., num_known:, :].mean(-2, keepdim=True)
    return torch.cat([class_logits[..., :num_known, :], ood], dim=-2)
