"""Pixel metrics over all labelled pixels of a dataset: AP, AUROC, FPR95 and best F1.

Definitions are those of SegmentMeIfYouCan and scikit-learn, on the exact curve of the whole data
set (never a mean over images): AP by the step rule, AUROC by the trapezoid rule, FPR95 at the first
point of the curve whose TPR is at least 0.95, best F1 along the curve.

The curve needs every score in order, but not every score at hand. Scores are counted in bins of
float32 values, known and OOD pixels apart, and these integer counts are the whole state: they are
added over frames and processes, in any order. What the bins hide, the order of the scores inside a
bin, bounds the error of each metric. While a bound exceeds ``TOLERANCE``, the bins that cause it
are split and the frames are counted again; a bin of one float32 value hides nothing. So the result
is as good for ``100 - tiny`` or a saturated sigmoid as for well spread scores, mostly in 2 passes.
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

# Largest error allowed to a metric, as a fraction: half of a hundredth of a point.
TOLERANCE = 5e-5
# Bins that one refinement may add: 16 MB of counts, whatever the number of frames.
_NEW_BINS = 2**20
_COARSE_BITS = 16  # a bin of the first pass holds the floats that share their upper 16 bits


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel metrics in percent, NaN where the dataset has no OOD or no known pixel.

    Attributes:
        ap, auroc, fpr95, f1: see the module.
        threshold: ``float32(score) >= threshold`` is the prediction that ``f1`` belongs to.
        bound: no metric is further from that of the exact curve, in points.
    """

    ap: float
    auroc: float
    fpr95: float
    f1: float
    threshold: float
    bound: float


class KeyBins:
    """A division of the float32 values, ordered by size, into bins.

    Args:
        low: (n,) uint32, the smallest key (``float_keys``) of each bin, ascending.
        bits: (n,) uint8, a bin holds 2**bits consecutive keys.
        levels: how ``refined`` came here from the bins of the first pass.
    """

    def __init__(
        self,
        low: np.ndarray,
        bits: np.ndarray,
        levels: tuple[tuple[np.ndarray, np.ndarray], ...] = (),
    ) -> None:
        self._low = low
        self._bits = bits
        self._levels = levels

    @classmethod
    def coarse(cls) -> KeyBins:
        """The bins of the first pass: 65,536 of 65,536 values each."""
        low = np.arange(2**_COARSE_BITS, dtype=np.uint32) << np.uint32(32 - _COARSE_BITS)
        return cls(low, np.full(len(low), 32 - _COARSE_BITS, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._low)

    @property
    def single(self) -> np.ndarray:
        """(len,) bool: the bin holds one float32 value, so its scores are equal."""
        return self._bits == 0

    def smallest(self, index: int) -> float:
        """The smallest float32 value of a bin."""
        return float(_floats(self._low[index : index + 1])[0])

    def index(self, keys: np.ndarray) -> np.ndarray:
        """The bin of each of the ``keys`` that ``float_keys`` gives."""
        index = keys >> np.uint32(32 - _COARSE_BITS)
        for shift, base in self._levels:
            index = (keys >> shift[index]) - base[index]
        return index

    def refined(self, doubt: np.ndarray) -> KeyBins:
        """Bins split where ``doubt`` (len,), what a bin adds to the error bound, is large.

        Cutting a bin into n parts divides its doubt by about n, so the sum over all bins is least
        when each gets new bins in proportion to the square root of its doubt.
        """
        weight = np.sqrt(doubt)
        parts = np.maximum(weight * (_NEW_BINS / weight.sum()), 1)
        split = np.minimum(np.log2(parts).astype(np.uint8), self._bits)
        worst = doubt.argmax()
        split[worst] = max(split[worst], 1)  # every pass gets further

        size = 1 << split.astype(np.int64)
        first = np.cumsum(size) - size
        shift = self._bits - split
        # Modulo 2**32: (key >> shift) - base = first + ((key - low) >> shift).
        base = (self._low >> shift) - first.astype(np.uint32)
        parent = np.repeat(np.arange(len(self)), size)
        part = (np.arange(len(parent)) - first[parent]).astype(np.uint32)
        low = self._low[parent] + (part << shift[parent])
        return KeyBins(low, shift[parent], (*self._levels, (shift, base)))


def float_keys(score: np.ndarray) -> np.ndarray:
    """uint32 keys of finite float32 scores: ordered and equal just as the scores are."""
    bits = (score + np.float32(0)).view(np.int32)  # -0.0 + 0 = 0.0: one zero
    # Negative numbers grow in magnitude with their bits: all bits are flipped, else the sign only.
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _floats(keys: np.ndarray) -> np.ndarray:
    """The float32 scores that have these keys."""
    flip = np.where(keys >> np.uint32(31), np.uint32(2**31), np.uint32(2**32 - 1))
    return (keys ^ flip).view(np.float32)


def count_pixels(frames: Iterable[Frame], bins: KeyBins) -> np.ndarray:
    """Count pixels by class and score.

    Args:
        frames: frames as ``check_frame`` gives them; void pixels count nowhere.
        bins: the division of the scores.

    Returns:
        (2, len(bins)) int64 counts of known and of OOD pixels; counts of parts of a dataset add up
        to those of the whole.
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
        count: gives the counts of the whole dataset in given bins, as ``count_pixels`` does. It is
            called until the bins are fine enough, and has to count the same pixels every time.
        name: what the dataset is called in messages.

    Returns:
        the metrics; all NaN, with a warning in the log, if no pixel is OOD or none is known.

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
        metrics, doubt = _measure(bins, counts)
        if metrics.bound <= 100 * TOLERANCE:
            return metrics
        bins = bins.refined(doubt)
        counts = count(bins)
        if (counts.sum(axis=1) != total).any():
            raise UserError(f"{name}: scores or labels changed between two passes over the frames")


class Curve(NamedTuple):
    """What counts in bins say of a curve, as fractions, and what they leave open.

    Leading axes (...) are datasets of their own.

    Attributes:
        ap, auroc, fpr95, f1: (...,) the metrics, NaN without an OOD or without a known pixel.
        at_95, best: (...,) bin that FPR95 and F1 belong to.
        ap_doubt, auroc_doubt: (..., n) share of each bin in the error bound of the metric.
        fpr_doubt: (...,) error bound of FPR95.
        f1_gain: (..., n) how much larger F1 may be inside the bin.
    """

    ap: np.ndarray
    auroc: np.ndarray
    fpr95: np.ndarray
    f1: np.ndarray
    at_95: np.ndarray
    best: np.ndarray
    ap_doubt: np.ndarray
    auroc_doubt: np.ndarray
    fpr_doubt: np.ndarray
    f1_gain: np.ndarray

    @property
    def bounds(self) -> np.ndarray:
        """(4, ...) AP, AUROC, FPR95 and F1 of the exact curve are no further away than this."""
        doubts = self.ap_doubt.sum(-1), self.auroc_doubt.sum(-1)
        return np.stack([*doubts, self.fpr_doubt, self.f1_gain.max(-1)])


@np.errstate(invalid="ignore", divide="ignore")  # NaN without OOD or known pixels
def curve_of_counts(neg: np.ndarray, pos: np.ndarray, hidden: np.ndarray) -> Curve:
    """Pixel metrics from counts.

    Args:
        neg, pos: (..., n) float64, known and OOD pixels per bin, from the largest score down.
        hidden: (n,) bool, the order of the scores inside the bin is not known.
    """
    fp, tp = neg.cumsum(-1), pos.cumsum(-1)
    num_neg, num_pos = fp[..., -1:], tp[..., -1:]

    ap_low, ap_high = _precision_range(pos, neg, tp, fp, hidden)

    # Inside a bin, between none and all of the pos * neg pairs are in the right order.
    num_pairs = num_pos * num_neg
    ordered = pos * (num_neg - fp + neg / 2)

    at_95 = np.argmax(20 * tp >= 19 * num_pos, axis=-1)
    fp_95, neg_95 = (np.take_along_axis(x, at_95[..., None], -1)[..., 0] for x in (fp, neg))
    fpr_doubt = hidden[at_95] * neg_95 / 2 / num_neg[..., 0]

    f1 = 2 * tp / (num_pos + tp + fp)  # of score >= the smallest value of the bin
    best = f1.argmax(-1)
    best_f1 = np.take_along_axis(f1, best[..., None], -1)
    return Curve(
        ap=(ap_low + ap_high).sum(-1) / 2 / num_pos[..., 0],
        auroc=ordered.sum(-1) / num_pairs[..., 0],
        fpr95=fp_95 / num_neg[..., 0] - fpr_doubt,
        f1=best_f1[..., 0],
        at_95=at_95,
        best=best,
        ap_doubt=(ap_high - ap_low) / 2 / num_pos,
        auroc_doubt=hidden * pos * neg / 2 / num_pairs,
        fpr_doubt=fpr_doubt,
        f1_gain=hidden * (2 * tp / (num_pos + tp + fp - neg) - best_f1).clip(min=0),
    )


def _measure(bins: KeyBins, counts: np.ndarray) -> tuple[PixelMetrics, np.ndarray]:
    """Metrics and error bound that follow from the counts, and each bin's share in the bound."""
    occupied = np.flatnonzero(counts.any(axis=0))[::-1]  # from the largest score down
    neg, pos = counts[:, occupied].astype(np.float64)
    curve = curve_of_counts(neg, pos, ~bins.single[occupied])
    doubt = np.zeros(len(bins))
    doubt[occupied] = (
        curve.ap_doubt + curve.auroc_doubt + curve.f1_gain * (curve.f1_gain > TOLERANCE)
    )
    doubt[occupied[curve.at_95]] += curve.fpr_doubt
    metrics = PixelMetrics(
        ap=100 * float(curve.ap),
        auroc=100 * float(curve.auroc),
        fpr95=100 * float(curve.fpr95),
        f1=100 * float(curve.f1),
        threshold=bins.smallest(occupied[curve.best]),
        bound=100 * float(curve.bounds.max()),
    )
    return metrics, doubt


def _precision_range(
    pos: np.ndarray, neg: np.ndarray, tp: np.ndarray, fp: np.ndarray, hidden: np.ndarray
) -> np.ndarray:
    """(2, ..., n): least and largest sum of the precisions at the OOD pixels of each bin.

    Equal scores share one precision, tp / (tp + fp). Else it is largest when all OOD pixels tie
    above the known ones, and smallest when each stands alone below them: the sum over j = 1 ... pos
    of f(tp - pos + j) with f(t) = t / (t + fp). As f is concave, f(t) is at least its mean from
    t - 1/2 to t + 1/2, and the sum at least the integral.
    """
    tied = pos * tp / np.maximum(tp + fp, 1)
    largest = pos * tp / np.maximum(tp + fp - neg, 1)
    least = pos - fp * np.log1p(pos / (tp - pos + fp + 0.5))
    return np.stack([np.where(hidden, least, tied), np.where(hidden, largest, tied)])
