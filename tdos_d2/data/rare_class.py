"""Rare class sampling: images and crops that contain classes with few pixels.

After DAFormer (Hoyer et al., CVPR 2022, arXiv 2111.14887).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from .samplers import RARE_CLASS, Seed


class RareClassDataset(Dataset):
    """An infinite sequence of dataset dicts, each drawn for a class that it contains.

    Item ``p`` (any p >= 0) is a copy of a dict with the keys "position" = p and "rare_class", the
    class drawn for it. Dict and class depend only on (seed, p).

    Args:
        dicts: n dataset dicts in Detectron2's format.
        counts: (n, K) pixels of each class in each of them.
        seed: any integer >= 0, or several.
        temperature: see :func:`class_probabilities`.
        min_pixels: a dict can be drawn for the classes with more pixels than this.

    Raises:
        ValueError: no dict has more than ``min_pixels`` pixels of any class.
    """

    def __init__(
        self,
        dicts: list[dict[str, Any]],
        counts: np.ndarray,
        seed: Seed,
        temperature: float,
        min_pixels: int,
    ) -> None:
        shown = counts > min_pixels
        if not shown.any():
            raise ValueError(f"no image has more than {min_pixels} pixels of any class")
        self.probabilities = class_probabilities(counts, temperature) * shown.any(axis=0)
        self.probabilities /= self.probabilities.sum()
        self._images = [np.flatnonzero(column) for column in shown.T]
        self._dicts = DatasetFromList(dicts)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        stream = np.random.SeedSequence(self._seed, spawn_key=(RARE_CLASS, position))
        rng = np.random.default_rng(stream)
        drawn = int(rng.choice(len(self.probabilities), p=self.probabilities))
        record = self._dicts[int(rng.choice(self._images[drawn]))]
        return {**record, "position": position, "rare_class": drawn}


def class_probabilities(counts: np.ndarray, temperature: float) -> np.ndarray:
    """DAFormer's P(c) = softmax over c of (1 - f_c) / T, with f_c the share of c in all pixels.

    Args:
        counts: (n, K) pixels of each class in each image.
        temperature: T > 0; the smaller, the more often rare classes are drawn.

    Returns:
        (K,) float64 with sum 1.
    """
    totals = counts.sum(axis=0)
    logits = (1 - totals / totals.sum()) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
