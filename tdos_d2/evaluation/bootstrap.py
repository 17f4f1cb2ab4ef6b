"""Confidence intervals: what the metrics of a dataset would be on other frames of its kind.

Frames are drawn with replacement, as many as there are, and the metrics of the drawn set are those
of the whole dataset again. Of each frame at most ``MAX_BINS`` counts of scores are kept, in bins
between quantiles of the scores of all frames, so the metrics of a drawn set have an error; its
bound follows from the counts, as in ``pixel_metrics``. Percentiles move no further than the largest
error of what they are percentiles of: that is the error of the interval.

Component metrics are those of the one operating threshold of the whole set: exact, but how much the
threshold itself depends on the frames is not in their intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .component_metrics import SIOU_THRESHOLDS, ComponentScores
from .frames import Frame
from .pixel_metrics import KeyBins, count_pixels, curve_of_counts

MAX_BINS = 4096
# Each quantile makes up to two bins per class: between two of them, and around one.
_QUANTILES = MAX_BINS // 4 - 1
_BATCH = 32  # drawn sets evaluated together: some 20 MB
_PIXEL = ("AP", "AUROC", "FPR95", "F1")
_COMPONENT = ("sIoU", "PPV", "mF1")


class Intervals(NamedTuple):
    """95 % intervals of the metrics of ``evaluate_scores``, in percent.

    Attributes:
        intervals: (low, high) of each metric, over the drawn sets in which it is defined; NaN if
            there is none.
        errors: no end of an interval is further from that of exact metrics, in points.
        undefined: number of drawn sets without an OOD or without a known pixel.
    """

    intervals: dict[str, tuple[float, float]]
    errors: dict[str, float]
    undefined: int


def bootstrap(
    frames: Iterable[Frame],
    components: Sequence[ComponentScores],
    bins: KeyBins,
    counts: np.ndarray,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Percentile intervals over drawn sets of frames.

    Args:
        frames: the frames of the dataset.
        components: of each frame, at one threshold.
        bins: fine bins, such as the last that ``pixel_metrics`` asked for.
        counts: (2, len(bins)) counts of all frames in them.
        replicates: number of drawn sets.
        seed: of the random draws.
    """
    starts, hidden = quantile_bins(counts, bins.single)
    per_frame = [
        np.add.reduceat(count_pixels([frame], bins), starts, axis=1)[:, ::-1] for frame in frames
    ]
    table = component_table(components)
    number = len(per_frame)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(number, np.full(number, 1 / number), replicates).astype(np.float64)
    values, bounds = pixel_replicates(draws, np.stack(per_frame), hidden[::-1])
    values = np.concatenate([values, component_replicates(draws, table)])
    return _intervals(100 * values, 100 * bounds)


def quantile_bins(counts: np.ndarray, single: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join bins to at most ``MAX_BINS``, none of which joins much of either class.

    Args:
        counts: (2, n) int64 counts of known and of OOD pixels, neither class without any.
        single: (n,) bool, the bin holds one float32 value.

    Returns:
        (m,) the first bin of each joined one, and (m,) bool: the order of the scores inside is not
        known.
    """
    end = counts.cumsum(axis=1)
    total = end[:, -1:]
    # A bin that a quantile falls into stays alone: equal scores may be half of all pixels.
    rank = (_QUANTILES * (end - counts) // total + _QUANTILES * end // total).sum(axis=0)
    starts = np.flatnonzero(np.diff(rank, prepend=-1))
    occupied = counts.any(axis=0)
    inside = np.add.reduceat(occupied.astype(int), starts)
    spread = np.add.reduceat((occupied & ~single).astype(int), starts)
    return starts, (inside > 1) | (spread > 0)


def pixel_replicates(
    draws: np.ndarray, per_frame: np.ndarray, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AP, AUROC, FPR95 and F1 of drawn sets, as fractions.

    Args:
        draws: (R, N), how often each frame is in each drawn set.
        per_frame: (N, 2, m) counts of known and of OOD pixels from the largest score down.
        hidden: (m,) bool, the order of the scores inside the bin is not known.

    Returns:
        (4, R) metrics, NaN in a set without OOD or known pixels, and (4, R) bounds of their errors.
    """
    number, _, num_bins = per_frame.shape
    flat = per_frame.reshape(number, -1).astype(np.float64)
    values, bounds = [], []
    for first in range(0, len(draws), _BATCH):
        sums = (draws[first : first + _BATCH] @ flat).reshape(-1, 2, num_bins)
        curve = curve_of_counts(sums[:, 0], sums[:, 1], hidden)
        defined = sums.any(axis=2).all(axis=1)
        metrics = np.stack([curve.ap, curve.auroc, curve.fpr95, curve.f1])
        values.append(np.where(defined, metrics, np.nan))
        bounds.append(np.where(defined, curve.bounds, np.nan))
    return np.concatenate(values, axis=1), np.concatenate(bounds, axis=1)


def component_table(components: Sequence[ComponentScores]) -> np.ndarray:
    """(N, 4 + 2 * 11) sums over the components of each frame.

    Number and sum of sIoU, number and sum of PPV; then true components found, and false predicted
    ones, at each threshold.
    """
    rows = [
        [
            *(len(siou), siou.sum(), len(ppv), ppv.sum()),
            *(siou[:, None] >= SIOU_THRESHOLDS).sum(axis=0),
            *(ppv[:, None] < SIOU_THRESHOLDS).sum(axis=0),
        ]
        for siou, ppv in components
    ]
    return np.array(rows, dtype=np.float64)


@np.errstate(invalid="ignore", divide="ignore")
def component_replicates(draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(3, R) sIoU, PPV and mean F1 of drawn sets, as fractions; NaN where there is no component."""
    sums = draws @ table
    num_true, siou, num_pred, ppv = sums[:, :4].T
    tp, fp = np.split(sums[:, 4:], 2, axis=1)
    f1 = 2 * tp / (tp + num_true[:, None] + fp)
    return np.stack([siou / num_true, ppv / num_pred, f1.mean(axis=1)])


def _intervals(values: np.ndarray, bounds: np.ndarray) -> Intervals:
    names = _PIXEL + _COMPONENT
    intervals = {}
    for name, row in zip(names, values, strict=True):
        defined = row[~np.isnan(row)]
        ends = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
        intervals[name] = float(ends[0]), float(ends[1])
    undefined = int(np.isnan(bounds[0]).sum())
    largest = bounds[:, ~np.isnan(bounds[0])].max(axis=1, initial=0)
    errors = dict(zip(names, [*map(float, largest), *[0.0] * len(_COMPONENT)], strict=True))
    return Intervals(intervals, errors, undefined)
