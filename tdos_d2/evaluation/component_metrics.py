"""Component metrics of SegmentMeIfYouCan: sIoU, PPV and mean F1 over connected components.

A frame is scored in this order: pixels with score >= threshold are predicted OOD, except where
the label is void; OOD pixels of label and prediction are grouped into 8-connected components;
predicted components below ``min_pred`` pixels are dropped; true components below ``min_gt`` pixels
become void, also in the predicted components; predicted components without remaining pixels do not
count.

sIoU of a true component is its IoU with the union of the predicted components that touch it, where
pixels of that union on other true components do not count. PPV of a predicted component is the
share of its pixels on true components. At each of the thresholds t = 0.25, 0.30 ... 0.75 a true
component is found (TP) if sIoU >= t, else missed (FN); a predicted one is false (FP) if PPV < t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import UserError
from ..labels import OOD
from .frames import Frame

# Smallest predicted and true component in pixels, for frames of 1280x720 and larger.
PROTOCOLS = {"anomaly": (500, 100), "obstacle": (50, 10)}
SIOU_THRESHOLDS = np.arange(25, 80, 5) / 100


class ComponentScores(NamedTuple):
    """sIoU of true and PPV of predicted components, 1-D float64 arrays of fractions."""

    siou: np.ndarray
    ppv: np.ndarray


def component_sizes(
    protocol: str, min_pred: int | None = None, min_gt: int | None = None
) -> tuple[int, int]:
    """Smallest predicted and true component in pixels.

    Args:
        protocol: "anomaly" (500 and 100 pixels) or "obstacle" (50 and 10).
        min_pred, min_gt: sizes that override the protocol's.

    Raises:
        UserError: unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: there are {', '.join(PROTOCOLS)}")
    pred, gt = PROTOCOLS[protocol]
    return pred if min_pred is None else min_pred, gt if min_gt is None else min_gt


def score_components(
    frames: Iterable[Frame], threshold: float, sizes: tuple[int, int], strict: bool = False
) -> ComponentScores:
    """sIoU and PPV of all components of some frames.

    Args:
        frames: as returned by ``check_frame``.
        threshold: score >= threshold is predicted OOD.
        sizes: smallest predicted and true component in pixels.
        strict: predict score > threshold, as the official tool does.

    Returns:
        The components; those of parts of a dataset can be concatenated.
    """
    return concatenate(_score_frame(frame, threshold, sizes, strict) for frame in frames)


def concatenate(parts: Iterable[ComponentScores]) -> ComponentScores:
    """The components of all ``parts``."""
    empty = ComponentScores(np.empty(0), np.empty(0))
    return ComponentScores(*map(np.concatenate, zip(empty, *parts, strict=True)))


def component_metrics(scores: ComponentScores) -> dict[str, float]:
    """Metrics in percent from the components of a dataset, independent of their order.

    Returns:
        "sIoU", the mean over true components, and "PPV", the mean over predicted ones, each NaN if
        there are none; "mF1", the mean over thresholds of 2 TP / (2 TP + FN + FP), NaN if there is
        neither a true nor a predicted component.
    """
    siou, ppv = scores
    f1 = []
    for threshold in SIOU_THRESHOLDS:
        tp = np.count_nonzero(siou >= threshold)
        false = len(siou) - tp + np.count_nonzero(ppv < threshold)
        f1.append(2 * tp / (2 * tp + false) if tp + false else math.nan)
    return {"sIoU": _percent(siou), "PPV": _percent(ppv), "mF1": _percent(f1)}


def _percent(values: np.ndarray | list[float]) -> float:
    # The exact sum does not depend on the order of the components.
    return 100 * math.fsum(values) / len(values) if len(values) else math.nan


def _score_frame(
    frame: Frame, threshold: float, sizes: tuple[int, int], strict: bool
) -> ComponentScores:
    predicted, is_true = frame.predicted(threshold, strict), frame.label == OOD
    # Only pixels of components are needed, in runs of the same pair of components.
    pixels = np.flatnonzero(predicted | is_true)
    pred, true = (_components(mask).ravel()[pixels] for mask in (predicted, is_true))
    starts = np.flatnonzero(np.diff(pred, prepend=-1) | np.diff(true, prepend=-1))
    length = np.diff(starts, append=len(pixels))
    # A number for each pair (predicted, true), with 0 for the background, and their shared pixels.
    num_pred = pred.max(initial=0) + 1
    pairs = true[starts].astype(np.int64) * num_pred + pred[starts]
    pairs, pair = np.unique(pairs, return_inverse=True)
    true, pred = np.divmod(pairs, num_pred)
    area = np.bincount(pair, length, len(pairs))

    pred_counts, true_counts = (
        np.bincount(component, area, minlength=1) >= size
        for component, size in zip((pred, true), sizes, strict=True)
    )
    inside = (true == 0) | true_counts[true]  # the others became void
    pred, true, area = (pred * pred_counts[pred])[inside], true[inside], area[inside]
    pred_area = np.bincount(pred, area, len(pred_counts))
    true_area = np.bincount(true, area, len(true_counts))

    touch = (true > 0) & (pred > 0)
    true, pred, shared = true[touch], pred[touch], area[touch]
    hit = np.bincount(true, shared, len(true_area))
    on_true = np.bincount(pred, shared, len(pred_area))
    # Union of a true component with the predicted ones that touch it, without their pixels on other
    # true components: the component itself, and their pixels on the background.
    union = true_area + np.bincount(true, (pred_area - on_true)[pred], len(true_area))
    has_true, has_pred = (np.flatnonzero(area[1:]) + 1 for area in (true_area, pred_area))
    return ComponentScores(hit[has_true] / union[has_true], on_true[has_pred] / pred_area[has_pred])


def _components(mask: np.ndarray) -> np.ndarray:
    """(H, W) int32 numbers of 8-connected components from 1 on, 0 = none."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[1]
