"""Pixel metrics over all labelled pixels of a dataset: AP, AUROC, FPR95 and best F1.

Definitions are those of SegmentMeIfYouCan and scikit-learn, on the curve of the whole dataset
(never a mean over images): AP by the step rule, AUROC by the trapezoid rule, FPR95 at the first
point of the curve whose TPR is at least 0.95, best F1 along the curve.

Known and OOD pixels are counted separately in bins of float32 scores. These integer counts are the
whole state: they can be summed over frames and processes in any order. Only the order of scores
within a bin is unknown, which gives a bound on the error of each metric. While a bound exceeds
``TOLERANCE``, the bins that cause it are split and the frames are counted again; a bin of one
float32 value causes no error. So scores such as ``100 - tiny`` or a saturated sigmoid are measured
as exactly as well spread scores, mostly in 2 passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..labels import KNOWN, OOD
from .frames import Frame

logger = logging.getLogger(__name__)

# Largest error of a metric, as a fraction: half of a hundredth of a percentage point.
TOLERANCE = 5e-5
# Bins that one refinement may add: 16 MB of counts for any number of frames.
_NEW_BINS = 2**20
_COARSE_BITS = 16  # a bin of the first pass holds the floats that share their upper 16 bits


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel metrics in percent, NaN if the dataset has no OOD or no known pixel.

    Attributes:
        ap, auroc, fpr95, f1: see the module.
        threshold: of the best F1: ``float32(score) >= threshold`` is predicted OOD.
        bound: largest error of a metric, in percentage points.
    """

    ap: float
    auroc: float
    fpr95: float
    f1: float
    threshold: float
    bound: float

    def as_dict(self) -> dict[str, float]:
        """{"AP", "AUROC", "FPR95", "F1"} in percent."""
        return {"AP": self.ap, "AUROC": self.auroc, "FPR95": self.fpr95, "F1": self.f1}


@dataclass(frozen=True, eq=False)
class KeyBins:
    """A partition of the ordered float32 values into bins.

    Attributes:
        low: (n,) uint32, the smallest key (``float_keys``) of each bin, ascending.
        bits: (n,) uint8, a bin holds 2**bits consecutive keys.
        levels: shift and base of each refinement since the first pass, see ``index``.
    """

    low: np.ndarray
    bits: np.ndarray
    levels: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def coarse(cls) -> KeyBins:
        """The bins of the first pass: 65,536 of 65,536 values each."""
        low = np.arange(2**_COARSE_BITS, dtype=np.uint32) << np.uint32(32 - _COARSE_BITS)
        return cls(low, np.full(len(low), 32 - _COARSE_BITS, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.low)

    @property
    def single(self) -> np.ndarray:
        """(len,) bool: the bin holds only one float32 value, so its scores are equal."""
        return self.bits == 0

    def smallest(self, index: int) -> float:
        """The smallest float32 value of a bin."""
        key = int(self.low[index])
        bits = key ^ (2**31 if key >> 31 else 2**32 - 1)  # inverse of float_keys
        return float(np.uint32(bits).view(np.float32))

    def index(self, keys: np.ndarray) -> np.ndarray:
        """The bin of each of the ``keys`` from ``float_keys``."""
        index = keys >> np.uint32(32 - _COARSE_BITS)
        for shift, base in self.levels:
            index = (keys >> shift[index]) - base[index]
        return index

    def refined(self, doubt: np.ndarray) -> KeyBins:
        """Split the bins whose ``doubt`` (len,), their share of the error bound, is large.

        Splitting a bin into n parts divides its doubt by about n, so the sum over all bins is least
        when each gets new bins in proportion to the square root of its doubt.
        """
        weight = np.sqrt(doubt)
        parts = np.maximum(weight * (_NEW_BINS / weight.sum()), 1)
        split = np.minimum(np.log2(parts).astype(np.uint8), self.bits)
        worst = doubt.argmax()
        split[worst] = max(split[worst], 1)  # at least one bin is split in every pass

        size = 1 << split.astype(np.int64)
        first = np.cumsum(size) - size
        shift = self.bits - split
        # Modulo 2**32: (key >> shift) - base = first + ((key - low) >> shift).
        base = (self.low >> shift) - first.astype(np.uint32)
        parent = np.repeat(np.arange(len(self)), size)
        part = (np.arange(len(parent)) - first[parent]).astype(np.uint32)
        low = self.low[parent] + (part << shift[parent])
        return KeyBins(low, shift[parent], (*self.levels, (shift, base)))


def float_keys(score: np.ndarray) -> np.ndarray:
    """uint32 keys of finite float32 scores, with the same order and equality as the scores."""
    bits = (score + np.float32(0)).view(np.int32)  # -0.0 + 0 = 0.0: one zero
    # More bits mean smaller negative numbers: their bits are all flipped, else only the sign bit.
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def count_pixels(frames: Iterable[Frame], bins: KeyBins) -> np.ndarray:
    """(2, len(bins)) int64 counts of known and of OOD pixels, void left out.

    Counts of parts of a dataset add up to those of the whole.
    """
    counts = np.zeros((2, len(bins)), dtype=np.int64)
    for frame in frames:
        keys = float_keys(frame.score)
        for row, value in zip(counts, (KNOWN, OOD), strict=True):
            row += np.bincount(bins.index(keys[frame.label == value]), minlength=len(bins))
    return counts


def pixel_metrics(count: Callable[[KeyBins], np.ndarray], name: str) -> PixelMetrics:
    """Pixel metrics within ``TOLERANCE`` of those of the exact curve.

    Args:
        count: returns the counts of the whole dataset in given bins, as ``count_pixels`` does. It
            is called until the bins are fine enough, and must count the same pixels every time.
        name: name of the dataset in messages.

    Returns:
        The metrics; all NaN, with a warning in the log, if no pixel is OOD or none is known.

    Raises:
        UserError: ``count`` did not count the same pixels every time.
    """
    bins = KeyBins.coarse()
    counts = count(bins)
    total = counts.sum(axis=1)
    if not total.all():
        lacking = " and no ".join(np.array(["known", "OOD"])[total == 0])
        logger.warning(f"{name}: no {lacking} pixel in the labels, so all metrics are NaN")
        return PixelMetrics(*[math.nan] * 6)
    while True:
        occupied = np.flatnonzero(counts.any(axis=0))[::-1]  # from the largest score down
        neg, pos = counts[:, occupied].astype(np.float64)
        curve = curve_of_counts(neg, pos, ~bins.single[occupied])
        bound = 100 * float(curve.bounds.max())
        if bound <= 100 * TOLERANCE:
            threshold = bins.smallest(occupied[curve.best])
            return PixelMetrics(*(100 * curve.metrics).tolist(), threshold, bound)
        doubt = np.zeros(len(bins))
        doubt[occupied] = curve.doubt
        bins = bins.refined(doubt)
        counts = count(bins)
        if (counts.sum(axis=1) != total).any():
            raise UserError(f"{name}: scores or labels changed between two passes over the frames")


class Curve(NamedTuple):
    """Metrics of one or more curves, as fractions; leading axes (...) are separate datasets.

    Attributes:
        metrics: (4, ...) AP, AUROC, FPR95 and best F1; NaN without OOD or without known pixels.
        bounds: (4, ...) largest difference to the metrics of the exact curve.
        doubt: (..., n) share of each bin in the bounds.
        best: (...,) bin of the best F1.
    """

    metrics: np.ndarray
    bounds: np.ndarray
    doubt: np.ndarray
    best: np.ndarray


@np.errstate(invalid="ignore", divide="ignore")  # NaN without OOD or known pixels
def curve_of_counts(neg: np.ndarray, pos: np.ndarray, hidden: np.ndarray) -> Curve:
    """Pixel metrics from counts.

    Args:
        neg, pos: (..., n) float64, known and OOD pixels per bin, from the largest score down.
        hidden: (n,) bool, whether the order of the scores inside the bin is unknown.
    """
    fp, tp = neg.cumsum(-1), pos.cumsum(-1)
    num_neg, num_pos = fp[..., -1:], tp[..., -1:]

    ap_low, ap_high = _precision_range(pos, neg, tp, fp, hidden)
    ap = (ap_low + ap_high).sum(-1) / 2 / num_pos[..., 0]
    # With many known pixels above, rounding may leave a difference below 0.
    ap_doubt = (ap_high - ap_low).clip(min=0) / 2 / num_pos

    # Inside a bin, any number from 0 to pos * neg of the pairs is in the right order.
    num_pairs = num_pos * num_neg
    auroc = (pos * (num_neg - fp + neg / 2)).sum(-1) / num_pairs[..., 0]
    auroc_doubt = hidden * pos * neg / 2 / num_pairs

    at_95 = np.argmax(20 * tp >= 19 * num_pos, axis=-1, keepdims=True)
    fpr_doubt = hidden * (np.arange(len(hidden)) == at_95) * neg / 2 / num_neg
    fpr_bound = fpr_doubt.sum(-1)
    fpr95 = (np.take_along_axis(fp, at_95, -1) / num_neg)[..., 0] - fpr_bound

    f1 = 2 * tp / (num_pos + tp + fp)  # of score >= the smallest value of the bin
    best_f1 = f1.max(-1, keepdims=True)
    # Largest possible excess of F1 inside a bin over the best F1.
    f1_doubt = hidden * (2 * tp / (num_pos + tp + fp - neg) - best_f1).clip(min=0)
    return Curve(
        metrics=np.stack([ap, auroc, fpr95, best_f1[..., 0]]),
        bounds=np.stack([ap_doubt.sum(-1), auroc_doubt.sum(-1), fpr_bound, f1_doubt.max(-1)]),
        doubt=ap_doubt + auroc_doubt + f1_doubt * (f1_doubt > TOLERANCE) + fpr_doubt,
        best=f1.argmax(-1),
    )


def _precision_range(
    pos: np.ndarray, neg: np.ndarray, tp: np.ndarray, fp: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """(2, ..., n): smallest and largest sum of the precisions at the OOD pixels of each bin.

    Equal scores have one precision, tp / (tp + fp). Otherwise the sum is largest if all OOD pixels
    have one score above the known ones, and smallest if their scores differ and are all below: the
    sum over j = 1 ... pos of f(tp - pos + j) with f(t) = t / (t + fp). As f is concave, f(t) is at
    least its mean from t - 1/2 to t + 1/2, and the sum at least the integral.
    """
    tied = pos * tp / np.maximum(tp + fp, 1)
    largest = pos * tp / np.maximum(tp + fp - neg, 1)
    least = pos - fp * np.log1p(pos / (tp - pos + fp + 0.5))
    return np.stack([np.where(hidden, least, tied), np.where(hidden, largest, tied)])
