"""Confidence intervals by the bootstrap over frames.

As many frames as the dataset has are drawn with replacement, and evaluated as a dataset. Of each
frame at most ``MAX_BINS`` counts of scores are kept, in bins between quantiles of the scores of all
frames, so the pixel metrics of a drawn dataset have an error; its bound follows from the counts, as
in ``pixel_metrics``, and the largest one is a bound for the percentiles, too.

Component metrics are exact, at the threshold of the whole dataset: that the threshold depends on
the frames as well is not in their intervals.
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
METRICS = ("AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1")


class Intervals(NamedTuple):
    """95 % intervals of the metrics of ``evaluate_scores``, in percent.

    Attributes:
        intervals: (low, high) of each metric, over the drawn sets in which it is defined; NaN if
            there is none.
        errors: largest error of the ends of the interval, in percentage points.
        undefined: number of drawn sets without an OOD or without a known pixel.
    """

    intervals: dict[str, tuple[float, float]]
    errors: dict[str, float]
    undefined: int


class FrameTable(NamedTuple):
    """What drawn sets of frames are evaluated with.

    Attributes:
        frames: N names.
        counts: (N, 2, m) of known and of OOD pixels from the largest score down.
        hidden: (m,) bool, the order of the scores inside the bin is not known.
        components: see :func:`component_table`.
    """

    frames: list[str]
    counts: np.ndarray
    hidden: np.ndarray
    components: np.ndarray


def bootstrap(
    frames: Iterable[Frame],
    components: Sequence[ComponentScores],
    bins: KeyBins,
    counts: np.ndarray,
    *,
    number: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Percentile intervals over drawn sets of frames.

    Args:
        frames: the frames of the dataset.
        components: of each frame, at one threshold.
        bins, counts: the last that ``pixel_metrics`` asked for, and (2, len(bins)) counts in them.
        number: of drawn sets.
        seed: of the random draws.
    """
    starts, hidden = quantile_bins(counts, bins.single)
    per_frame = count_frames(frames, bins, starts)
    table = FrameTable([], per_frame, hidden[::-1], component_table(components))
    return _intervals(*replicates(table, draw_frames(len(per_frame), number, seed)))


def count_frames(frames: Iterable[Frame], bins: KeyBins, starts: np.ndarray) -> np.ndarray:
    """``FrameTable.counts``, with the joined bins of :func:`quantile_bins`."""
    rows = [np.add.reduceat(count_pixels([f], bins), starts, axis=1)[:, ::-1] for f in frames]
    return np.stack(rows) if rows else np.zeros((0, 2, len(starts)), np.int64)


def draw_frames(frames: int, number: int, seed: int) -> np.ndarray:
    """(number, frames), how often each frame is in each of the drawn sets."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(frames, np.full(frames, 1 / frames), number).astype(np.float64)


def replicates(table: FrameTable, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(7, R) values of ``METRICS`` in percent, and (4, R) error bounds of the first four."""
    values, bounds = pixel_replicates(draws, table.counts, table.hidden)
    values = np.concatenate([values, component_replicates(draws, table.components)])
    return 100 * values, 100 * bounds


def quantile_bins(counts: np.ndarray, single: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join bins to at most ``MAX_BINS``, with about equal shares of known or of OOD pixels.

    Args:
        counts: (2, n) int64 counts of known and of OOD pixels; there are some of both.
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
    values, bounds = np.empty((2, 4, len(draws)))
    for first in range(0, len(draws), _BATCH):
        part = slice(first, first + _BATCH)
        sums = (draws[part] @ flat).reshape(-1, 2, num_bins)
        curve = curve_of_counts(sums[:, 0], sums[:, 1], hidden)
        defined = sums.any(axis=2).all(axis=1)
        values[:, part] = np.where(defined, curve.metrics, np.nan)
        bounds[:, part] = np.where(defined, curve.bounds, np.nan)
    return values, bounds


def component_table(components: Sequence[ComponentScores]) -> np.ndarray:
    """(N, 4 + 2 * 11) sums over the components of each frame.

    Number and sum of sIoU, number and sum of PPV; then TP and FP at each threshold.
    """
    rows = [
        [
            *(len(siou), siou.sum(), len(ppv), ppv.sum()),
            *(siou[:, None] >= SIOU_THRESHOLDS).sum(axis=0),
            *(ppv[:, None] < SIOU_THRESHOLDS).sum(axis=0),
        ]
        for siou, ppv in components
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4 + 2 * len(SIOU_THRESHOLDS))


@np.errstate(invalid="ignore", divide="ignore")
def component_replicates(draws: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(3, R) sIoU, PPV and mean F1 of drawn sets, as fractions; NaN where there is no component."""
    sums = draws @ table
    num_true, siou, num_pred, ppv = sums[:, :4].T
    tp, fp = np.split(sums[:, 4:], 2, axis=1)
    f1 = 2 * tp / (tp + num_true[:, None] + fp)
    return np.stack([siou / num_true, ppv / num_pred, f1.mean(axis=1)])


def _intervals(values: np.ndarray, bounds: np.ndarray) -> Intervals:
    ends = [
        np.percentile(row, (2.5, 97.5)).tolist() if len(row) else (np.nan, np.nan)
        for row in (row[~np.isnan(row)] for row in values)
    ]
    intervals = {name: (low, high) for name, (low, high) in zip(METRICS, ends, strict=True)}
    defined = ~np.isnan(bounds[0])
    largest = bounds[:, defined].max(axis=1, initial=0)
    errors = dict.fromkeys(METRICS, 0.0) | dict(zip(METRICS, largest.tolist(), strict=False))
    return Intervals(intervals, errors, int((~defined).sum()))
