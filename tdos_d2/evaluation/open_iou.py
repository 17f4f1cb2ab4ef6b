"""Open-IoU: IoU of the known classes when anomalies are in the frames, and are rejected.

The metric of DenseHybrid (arXiv 2301.08555, and its code). A pixel whose score reaches the
threshold is predicted to be of class K, "anomaly"; over the (K + 1) x (K + 1) confusion matrix, IoU
of a known class counts pixels of anomalies that are taken for it, and pixels of its own that are
rejected, as errors. The mean is over the known classes that occur. The threshold is the highest at
which 95 % of the anomalies' pixels are found: DenseHybrid chooses it on the other half of its test
set, here it is that of the dataset itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..labels import VOID
from .frames import Frame
from .threshold_rules import TPR, ThresholdRule

RULE = ThresholdRule(TPR, 0.95)


class FrameClasses(NamedTuple):
    """Classes of a frame.

    Attributes:
        true: (H, W) uint8, 0..K-1 known classes, K anomaly, 255 void.
        predicted: (H, W) uint8, the known class with the largest output.
    """

    true: np.ndarray
    predicted: np.ndarray


def check_classes(true: np.ndarray, sem_seg: np.ndarray, name: str) -> FrameClasses:
    """Classes of a frame from a model's output (K, H, W), of the size of its label.

    Raises:
        UserError: another size, or values that are not finite.
    """
    if sem_seg.shape[1:] != true.shape:
        raise UserError(f"{name}: sem_seg of shape {sem_seg.shape}, label of shape {true.shape}")
    if not np.isfinite(sem_seg.max(axis=0)).all():  # NaN counts as the largest
        raise UserError(f"{name}: sem_seg has values that are NaN or infinite")
    predicted = sem_seg.argmax(axis=0).astype(np.uint8)
    return FrameClasses(np.ascontiguousarray(true, np.uint8), predicted)


def check_class_map(
    true: np.ndarray, predicted: np.ndarray, num_known: int, name: str
) -> FrameClasses:
    """Classes of a frame from a class map (H, W) of integers 0..K-1, of the size of its label.

    Raises:
        UserError: another size or type, or a value that is none of the K known classes.
    """
    if predicted.shape != true.shape:
        raise UserError(
            f"{name}: class map of shape {predicted.shape}, label of shape {true.shape}"
        )
    if predicted.dtype.kind not in "iu":
        raise UserError(f"{name}: classes must be integers, got {predicted.dtype}")
    if predicted.min() < 0 or predicted.max() >= num_known:
        wrong = np.unique(predicted[(predicted < 0) | (predicted >= num_known)])
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise UserError(f"{name}: the labels have classes 0 to {num_known - 1}, it has {shown}")
    return FrameClasses(*(np.ascontiguousarray(array, np.uint8) for array in (true, predicted)))


def confusion_matrices(
    frames: Iterable[tuple[Frame, FrameClasses]],
    threshold: float,
    num_known: int,
    strict: bool = False,
) -> np.ndarray:
    """Pixels of all frames by true (rows) and predicted class.

    Args:
        frames: scores and classes.
        threshold: ``float32(score) >= threshold`` is predicted to be an anomaly.
        num_known: K.
        strict: ``float32(score) > threshold`` instead.

    Returns:
        (2, K + 1, K + 1) int64: with anomalies rejected, and the closed set's, where nothing is.
    """
    size = num_known + 1
    found = np.zeros((2, size * size), np.int64)
    for frame, (true, closed) in frames:
        valid = true != VOID
        true, closed = true[valid].astype(np.int64) * size, closed[valid]
        is_ood = frame.predicted(threshold, strict)[valid]
        for row, classes in zip(found, (np.where(is_ood, num_known, closed), closed), strict=True):
            row += np.bincount(true + classes, minlength=size * size)
    return found.reshape(2, size, size)


def open_iou(matrices: np.ndarray) -> dict[str, float]:
    """Means over the known classes that occur, in percent; NaN if none does.

    Args:
        matrices: of :func:`confusion_matrices`.

    Returns:
        "open_mIoU"; "closed_mIoU", the usual one of the pixels that are of a known class, without
        a threshold; "gap", by how much the first is lower.
    """
    rejected, closed = matrices
    known = len(closed) - 1
    values = [100 * _mean_iou(x, known) for x in (rejected, closed[:known, :known])]
    return {"open_mIoU": values[0], "closed_mIoU": values[1], "gap": values[1] - values[0]}


def _mean_iou(matrix: np.ndarray, num_known: int) -> float:
    """Over those of the first ``num_known`` classes that have true pixels; NaN if none has."""
    both, true = np.diag(matrix), matrix.sum(axis=1)
    iou = (both / np.maximum(true + matrix.sum(axis=0) - both, 1))[:num_known]
    iou = iou[true[:num_known] > 0]
    return float(iou.mean()) if len(iou) else np.nan
