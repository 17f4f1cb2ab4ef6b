"""All metrics of a dataset from score maps and labels, whoever made them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial

from numpy.typing import ArrayLike

from ..errors import UserError
from .component_metrics import (
    ComponentScores,
    component_metrics,
    component_sizes,
    score_components,
)
from .frames import CheckedFrames, Spool
from .pixel_metrics import PixelMetrics, count_pixels, pixel_metrics


def evaluate_scores(
    frames: Iterable[tuple[ArrayLike, ArrayLike]],
    protocol: str = "anomaly",
    min_pred: int | None = None,
    min_gt: int | None = None,
    *,
    strict: bool = False,
) -> dict[str, float]:
    """Evaluate OOD scores over a whole dataset; needs neither torch nor Detectron2.

    Pixel metrics are within 0.005 points of those of the exact curve (``pixel_metrics``), component
    metrics are exact for the threshold of the best pixel F1 (``component_metrics``).

    Args:
        frames: ``(score, label)`` per frame. score: (H, W) finite real numbers, larger = more
            anomalous, compared as float32. label: (H, W) integers 0 (known), 1 (OOD), 255 (void).
            Several passes are needed: a list, or whatever else can be gone through again, is; an
            iterator is written to a temporary file first, 5 bytes per pixel, in ``TMPDIR``.
        protocol: smallest components in pixels: "anomaly" (predicted 500, true 100) or "obstacle"
            (50 and 10). Absolute sizes, meant for frames of 1280x720 and larger.
        min_pred, min_gt: smallest predicted and true component in place of the protocol's.
        strict: predict score > threshold, as the official tool does. Default: score >= threshold,
            which is what the pixel F1 counts.

    Returns:
        {"AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1"} in percent. All NaN, with a warning in
        the log, if no pixel is OOD or none is known; see ``component_metrics`` for other cases.

    Raises:
        UserError: shapes that differ, scores that are not finite, undeclared labels, each
            naming the frame by its number; unknown protocol.
    """
    sizes = component_sizes(protocol, min_pred, min_gt)
    passes = CheckedFrames(frames)
    with ExitStack() as stack:
        if isinstance(frames, Iterator):
            spool = stack.enter_context(closing(Spool()))
            for frame in passes:
                spool.append(frame)
            passes = spool
        pixels = pixel_metrics(partial(count_pixels, passes), "evaluate_scores")
        components = score_components(passes, pixels.threshold, sizes, strict)
    return all_metrics(pixels, components)


def all_metrics(pixels: PixelMetrics, components: ComponentScores) -> dict[str, float]:
    """The metrics of ``evaluate_scores`` from the two kinds they are made of."""
    metrics = {
        "AP": pixels.ap,
        "AUROC": pixels.auroc,
        "FPR95": pixels.fpr95,
        "F1": pixels.f1,
        **component_metrics(components),
    }
    # Without a threshold there are no predicted components to speak of.
    return dict.fromkeys(metrics, math.nan) if math.isnan(pixels.threshold) else metrics


def check_defined(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Refuse results of labels in which there is nothing to find or to leave out.

    Args:
        results: ``{dataset: {task: {metric: value}}}``.

    Raises:
        UserError: AP or mIoU of a task is NaN.
    """
    for name, tasks in results.items():
        if any(math.isnan(row.get("AP", row.get("mIoU", 0.0))) for row in tasks.values()):
            raise UserError(
                f"dataset '{name}' has no metrics: its labels have no OOD or no known pixel "
                f"(datasets/verify.py {name} shows the values in them)"
            )
