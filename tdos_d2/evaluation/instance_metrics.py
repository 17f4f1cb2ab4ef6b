"""Instance AP as OoDIS defines it (Nekrasov et al., arXiv 2406.11835, and its scoring program).

It is the AP of Cityscapes' instance evaluation with one class, "anomaly", and true instances of at
least 10 pixels. At an overlap threshold t a predicted instance is a true positive if its IoU with a
true instance of that size is above t. It is ignored if its IoU with a smaller true instance is
above t, or if a share of more than t of it is on void and on smaller true instances. Otherwise it
is a false positive. Predictions are ranked by their confidence, over the dataset. AP is the area
under the precision-recall curve by the trapezoid rule, from precision 1 at recall 0; "AP" is the
mean over t = 0.50, 0.55 ... 0.95, "AP50" the value at 0.50.

Predicted instances are disjoint here, so that at most one has an IoU above 1/2 with a true one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from ..labels import OOD, VOID
from .frames import Frame

MIN_INSTANCE = 10  # pixels
OVERLAPS = np.arange(50, 100, 5) / 100


class InstanceScores(NamedTuple):
    """Overlaps and confidences of the instances of some frames, 1-D float64 arrays.

    Attributes:
        true_iou: IoU of each true instance with the best matching predicted one.
        true_confidence: confidence of that prediction.
        iou: IoU of each predicted instance with the best matching true one of any size.
        confidence: confidence of each predicted instance.
        ignored: its share on void and on true instances that are too small to count.
    """

    true_iou: np.ndarray
    true_confidence: np.ndarray
    iou: np.ndarray
    confidence: np.ndarray
    ignored: np.ndarray


def score_instances(
    frame: Frame,
    threshold: float,
    min_pred: int,
    strict: bool = False,
    instances: np.ndarray | None = None,
) -> InstanceScores:
    """Match the predicted instances of a frame, which do not depend on its label, to the true ones.

    A predicted instance is an 8-connected component of at least ``min_pred`` pixels; its
    confidence is its mean score.

    Args:
        frame: as returned by ``check_frame``.
        threshold: score >= threshold is predicted OOD; > if ``strict``.
        min_pred: smallest predicted instance in pixels.
        strict: see ``threshold``.
        instances: (H, W) int, a number per true instance where the label is OOD; None: instances
            are the 8-connected components of the label, so touching objects form one instance.
    """
    above = frame.score > threshold if strict else frame.score >= np.float32(threshold)
    pred = cv2.connectedComponents(above.astype(np.uint8), connectivity=8)[1]
    is_true = frame.label == OOD
    if instances is None:
        true = cv2.connectedComponents(is_true.astype(np.uint8), connectivity=8)[1]
    else:
        values, true = np.unique(np.where(is_true, instances, 0), return_inverse=True)
        true = true.reshape(is_true.shape) + int(values[0] != 0)
    num_true, num_pred = int(true.max()) + 1, int(pred.max()) + 1
    pairs = np.bincount((true.astype(np.int64) * num_pred + pred).ravel(),
                        minlength=num_true * num_pred).reshape(num_true, num_pred)  # fmt: skip
    pred_area, true_area = pairs.sum(axis=0)[1:], pairs.sum(axis=1)[1:]
    void = np.bincount(pred.ravel(), (frame.label == VOID).ravel(), num_pred)[1:]
    shared = pairs[1:, 1:].astype(np.float64)
    iou = shared / (true_area[:, None] + pred_area - shared)
    sums = np.bincount(pred.ravel(), frame.score.ravel(), num_pred)[1:]
    kept, counts = pred_area >= min_pred, true_area >= MIN_INSTANCE
    confidence, pred_area, void = (sums / pred_area)[kept], pred_area[kept], void[kept]
    iou, shared = iou[:, kept], shared[:, kept]
    of_true = iou[counts]
    best = of_true.argmax(axis=1) if kept.any() else np.zeros(len(of_true), int)
    return InstanceScores(
        true_iou=of_true.max(axis=1, initial=0),
        true_confidence=confidence[best] if kept.any() else np.full(len(of_true), -np.inf),
        iou=iou.max(axis=0, initial=0),
        confidence=confidence,
        ignored=(void + shared[~counts].sum(axis=0)) / pred_area,
    )


def instance_metrics(parts: Iterable[InstanceScores]) -> dict[str, float]:
    """Instance metrics of a dataset, independent of the order of ``parts``.

    Returns:
        "AP" and "AP50" in percent, NaN without a true instance and 0 without a predicted one;
        "instances" and "predicted", the numbers of true and predicted instances.
    """
    empty = InstanceScores(*[np.empty(0)] * 5)
    scores = InstanceScores(*map(np.concatenate, zip(empty, *parts, strict=True)))
    ap = [_average_precision(scores, t) for t in OVERLAPS]
    return {
        "AP": 100 * math.fsum(ap) / len(ap),
        "AP50": 100 * ap[0],
        "instances": len(scores.true_iou),
        "predicted": len(scores.iou),
    }


def _average_precision(scores: InstanceScores, overlap: float) -> float:
    number = len(scores.true_iou)
    if not number:
        return math.nan
    hits = scores.true_confidence[scores.true_iou > overlap]
    wrong = (scores.iou <= overlap) & (scores.ignored <= overlap)
    ranked = np.concatenate([hits, scores.confidence[wrong]])
    if not len(ranked):
        return 0.0
    is_hit = np.arange(len(ranked)) < len(hits)
    order = np.argsort(-ranked, kind="stable")
    ends = np.flatnonzero(np.diff(ranked[order], append=-np.inf))  # last of equal confidences
    tp = is_hit[order].cumsum()[ends]
    precision = np.concatenate([[1.0], tp / (ends + 1)])
    recall = np.concatenate([[0.0], tp / number])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
