"""All metrics of a dataset, and of single frames, from score maps and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from ..labels import KNOWN, OOD, VOID
from .breakdown import breakdown_rows, count_group, frame_parts
from .component_metrics import (
    ComponentScores,
    component_metrics,
    component_sizes,
    score_components,
)
from .frames import CheckedFrames, Frame, Spool
from .pixel_metrics import KeyBins, PixelMetrics, count_pixels, pixel_metrics
from .threshold_rules import ThresholdRule, parse_rule, threshold_by


def evaluate_scores(
    frames: Iterable[tuple[ArrayLike, ArrayLike]],
    protocol: str = "anomaly",
    min_pred: int | None = None,
    min_gt: int | None = None,
    *,
    strict: bool = False,
    threshold: str = "best-f1",
) -> dict[str, float]:
    """Evaluate OOD scores over a whole dataset; needs neither torch nor Detectron2.

    Pixel metrics are within 0.005 points of those of the exact curve (``pixel_metrics``), component
    metrics are exact for the threshold of the best pixel F1 (``component_metrics``).

    Args:
        frames: ``(score, label)`` per frame. score: (H, W) finite real numbers, larger = more
            anomalous, compared as float32. label: (H, W) integers 0 (known), 1 (OOD), 255 (void).
            They are iterated over several times; an iterator is first written to a temporary file
            in ``TMPDIR``, 5 bytes per pixel.
        protocol: smallest components in pixels: "anomaly" (predicted 500, true 100) or "obstacle"
            (50 and 10). These are absolute sizes, for frames of 1280x720 and larger.
        min_pred, min_gt: smallest predicted and true component, instead of the protocol's.
        strict: predict score > threshold, as the official tool does. Default: score >= threshold,
            as in the pixel F1.
        threshold: of the component metrics: "best-f1", "fpr:0.01" (the lowest with at most that
            share of the known pixels), "tpr:0.95" (the highest with at least that share of the OOD
            pixels), a number, or a .json file of tools/calibrate.py.

    Returns:
        {"AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1"} in percent. All NaN, with a warning in
        the log, if no pixel is OOD or none is known; see ``component_metrics`` for other cases.

    Raises:
        UserError: shapes differ, scores are not finite or labels are undeclared (the message has
            the number of the frame); unknown protocol or rule.
    """
    sizes, rule = component_sizes(protocol, min_pred, min_gt), parse_rule(threshold)
    with _several_passes(frames) as checked:
        pixels, limit, _ = pixels_and_threshold(checked, rule, "evaluate_scores", strict)
        return all_metrics(pixels, score_components(checked, limit, sizes, strict))


def evaluate_breakdown(
    frames: Iterable[tuple[ArrayLike, ArrayLike]],
    protocol: str = "anomaly",
    min_pred: int | None = None,
    min_gt: int | None = None,
    *,
    strict: bool = False,
    threshold: str = "best-f1",
) -> dict[str, dict[str, float]]:
    """Metrics of instances, of images, and by size and place of the anomalies.

    Arguments and errors are those of :func:`evaluate_scores`; true instances are the components of
    the labels.

    Returns:
        See ``breakdown.breakdown_rows``; {} if no pixel is OOD or none is known.
    """
    sizes, rule = component_sizes(protocol, min_pred, min_gt), parse_rule(threshold)
    with _several_passes(frames) as checked:
        pixels, limit, _ = pixels_and_threshold(checked, rule, "evaluate_breakdown", strict)
        if math.isnan(pixels.threshold):
            return {}
        parts = []
        for frame in checked:
            components = score_components([frame], limit, sizes, strict)
            parts.append(frame_parts(frame, components, limit, sizes, strict))
        return breakdown_rows(parts, partial(count_group, checked), "evaluate_breakdown")


@contextmanager
def _several_passes(frames: Iterable[tuple[ArrayLike, ArrayLike]]) -> Iterator[Iterable[Frame]]:
    """Checked frames for several passes: those of an iterator are kept in a temporary file."""
    checked = CheckedFrames(frames)
    if not isinstance(frames, Iterator):
        yield checked
        return
    with closing(Spool()) as spool:
        for frame in checked:
            spool.append(frame)
        yield spool


def pixels_and_threshold(
    frames: Iterable[Frame], rule: ThresholdRule, name: str, strict: bool = False
) -> tuple[PixelMetrics, float, KeptCounts]:
    """Pixel metrics of frames (iterated over several times), the rule's threshold, and the counts
    that both come from; ``name`` is the dataset's name in warnings, ``strict`` is for the rule."""
    count = KeptCounts(partial(count_pixels, frames))
    pixels = pixel_metrics(count, name)
    last = count.bins, count.counts
    return pixels, threshold_by(rule, pixels.threshold, count, *last, strict), count


class KeptCounts:
    """Counts pixels for ``pixel_metrics`` as ``count`` does, and keeps the last counts."""

    def __init__(self, count: Callable[[KeyBins], np.ndarray]) -> None:
        self._count = count
        self.bins, self.counts = KeyBins.coarse(), np.zeros((2, 0))

    def __call__(self, bins: KeyBins) -> np.ndarray:
        """(2, len(bins)) counts."""
        self.bins, self.counts = bins, self._count(bins)
        return self.counts


def all_metrics(pixels: PixelMetrics, components: ComponentScores) -> dict[str, float]:
    """The metrics of ``evaluate_scores``; all NaN if there is no threshold."""
    metrics = {**pixels.as_dict(), **component_metrics(components)}
    return dict.fromkeys(metrics, math.nan) if math.isnan(pixels.threshold) else metrics


def frame_metrics(
    frame: Frame, threshold: float, components: ComponentScores, strict: bool = False
) -> dict[str, float]:
    """Metrics of one frame. A dataset's metrics are not means of these.

    Args:
        frame: as returned by ``check_frame``.
        threshold: operating threshold of the whole dataset.
        components: of this frame, at that threshold.
        strict: predict score > threshold.

    Returns:
        Number of "known", "OOD" and "void" pixels; "AP", "AUROC", "FPR95" and best "F1" of the
        frame's own curve in percent, NaN without OOD or known pixels; "F1_at_threshold" in percent;
        "true_components" and "predicted_components", and the metrics of ``component_metrics``.
    """
    label = frame.label
    pixels = {
        name: np.count_nonzero(label == value)
        for name, value in (("known", KNOWN), ("OOD", OOD), ("void", VOID))
    }
    curve = dict.fromkeys(("AP", "AUROC", "FPR95", "F1"), math.nan)
    if pixels["known"] and pixels["OOD"]:
        curve = pixel_metrics(partial(count_pixels, [frame]), "frame").as_dict()
    predicted = frame.predicted(threshold, strict)
    tp = np.count_nonzero(predicted & (label == OOD))
    either = pixels["OOD"] + np.count_nonzero(predicted)
    return {
        **pixels,
        **curve,
        "F1_at_threshold": 200 * tp / either if either else math.nan,
        "true_components": len(components.siou),
        "predicted_components": len(components.ppv),
        **component_metrics(components),
    }


def check_defined(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Raise UserError if AP or mIoU is NaN in ``results``: {dataset: {task: {metric: value}}}."""
    for name, tasks in results.items():
        if any(math.isnan(row.get("AP", row.get("mIoU", 0.0))) for row in tasks.values()):
            raise UserError(
                f"dataset '{name}' has no metrics: its labels have no OOD or no known pixel "
                f"(datasets/verify.py {name} shows the values in them, your own with --register)"
            )
