"""Data of a report's figures: points of the curves, and histograms of the scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..labels import KNOWN, OOD
from .frames import Frame
from .pixel_metrics import KeyBins

_POINTS = 1000  # more than a figure's width in pixels
_HISTOGRAM_BINS = 100
_OUTSIDE = 1e-3  # share of known and of OOD pixels beyond each end of a histogram


class CurvePoints(NamedTuple):
    """Points of the PR and the ROC curve, from the largest threshold down, as fractions.

    Attributes:
        threshold: (n,) float32; OOD is predicted where ``float32(score) >= threshold``.
        recall, precision, fpr: (n,), with OOD as the positive class.
        best: the point of the best F1.
        at_95: the first point with a recall of 0.95 or more.
    """

    threshold: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    fpr: np.ndarray
    best: int
    at_95: int


def curve_points(bins: KeyBins, counts: np.ndarray) -> CurvePoints | None:
    """Points of the exact curve, at steps of recall and FPR of at most about 1 / 1000.

    Args:
        bins: for example the last bins that ``pixel_metrics`` counted.
        counts: (2, len(bins)) known and OOD pixels of the whole dataset.

    Returns:
        The points; None if no pixel is OOD or none is known.
    """
    if not counts.any(axis=1).all():
        return None
    occupied = np.flatnonzero(counts.any(axis=0))[::-1]
    fp, tp = counts[:, occupied].cumsum(axis=1)
    known, ood = fp[-1], tp[-1]
    best = np.argmax(2 * tp / (ood + tp + fp))
    at_95 = np.argmax(20 * tp >= 19 * ood)
    # The first point of the curve in each of the steps.
    grid = np.linspace(0, 1, _POINTS + 1)
    steps = [np.searchsorted(x, np.ceil(grid * x[-1])) for x in (tp, fp)]
    kept = np.unique(np.concatenate([[0, best, at_95, len(occupied) - 1], *steps]))
    fp, tp = fp[kept], tp[kept]
    return CurvePoints(
        threshold=np.array([bins.smallest(i) for i in occupied[kept]], np.float32),
        recall=tp / ood,
        precision=tp / (tp + fp),
        fpr=fp / known,
        best=int(np.searchsorted(kept, best)),
        at_95=int(np.searchsorted(kept, at_95)),
    )


def central_range(bins: KeyBins, counts: np.ndarray) -> tuple[float, float]:
    """Lowest and highest score, without the outermost thousandth of known and of OOD pixels.

    Args:
        bins, counts: as in ``curve_points``; without a known or OOD pixel the range is around 0.
    """
    ends = [
        bins.smallest(int(np.argmax(cumulative >= share * cumulative[-1])))
        for cumulative in counts[counts.any(axis=1)].cumsum(axis=1)
        for share in (_OUTSIDE, 1 - _OUTSIDE)
    ]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    margin = max(0.5, abs(low) / 100) if low == high else 0.0
    return low - margin, high + margin


class Histogram(NamedTuple):
    """Pixels by score.

    Attributes:
        edges: (n + 1,) of bars of equal width; the outermost bars include all scores beyond them.
        counts: (2, n) int64 known and OOD pixels.
    """

    edges: np.ndarray
    counts: np.ndarray


def histogram(frames: Iterable[Frame], low: float, high: float) -> Histogram:
    """Count pixels by score between ``low`` and ``high``, void left out.

    Counts of parts of a dataset add up to those of the whole.
    """
    edges = np.linspace(low, high, _HISTOGRAM_BINS + 1)
    counts = np.zeros((2, _HISTOGRAM_BINS), np.int64)
    for frame in frames:
        for row, value in zip(counts, (KNOWN, OOD), strict=True):
            # In a narrow range, float32 does not have a hundred different values.
            inside = frame.score[frame.label == value].astype(np.float64).clip(low, high)
            row += np.histogram(inside, _HISTOGRAM_BINS, (low, high))[0]
    return Histogram(edges, counts)
