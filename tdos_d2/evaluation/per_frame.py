"""Each frame for itself: where a method fails. No metric of a dataset is a mean of these."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..labels import KNOWN, OOD, VOID
from .component_metrics import ComponentScores, component_metrics
from .frames import Frame
from .pixel_metrics import count_pixels, pixel_metrics


def frame_metrics(
    frame: Frame, threshold: float, components: ComponentScores, strict: bool = False
) -> dict[str, float]:
    """Metrics of one frame.

    Args:
        frame: as ``check_frame`` gives it.
        threshold: operating threshold of the whole dataset.
        components: of this frame, at that threshold.
        strict: scores have to be above the threshold.

    Returns:
        numbers of known, OOD and void pixels; AP, AUROC, FPR95 and best F1 of the frame's own curve
        in percent, NaN without OOD or known pixels; "F1_at_threshold"; numbers of true and
        predicted components and their sIoU, PPV and mF1.
    """
    score, label = frame
    pixels = {
        name: np.count_nonzero(label == value)
        for name, value in (("known", KNOWN), ("OOD", OOD), ("void", VOID))
    }
    curve = dict.fromkeys(("AP", "AUROC", "FPR95", "F1"), math.nan)
    if pixels["known"] and pixels["OOD"]:
        own = pixel_metrics(partial(count_pixels, [frame]), "frame")
        curve = {"AP": own.ap, "AUROC": own.auroc, "FPR95": own.fpr95, "F1": own.f1}
    limit = np.float32(threshold)
    predicted = ((score > limit) if strict else (score >= limit)) & (label != VOID)
    tp, all_predicted = np.count_nonzero(predicted & (label == OOD)), np.count_nonzero(predicted)
    either = pixels["OOD"] + all_predicted
    return {
        **pixels,
        **curve,
        "F1_at_threshold": 200 * tp / either if either else math.nan,
        "true_components": len(components.siou),
        "predicted_components": len(components.ppv),
        **component_metrics(components),
    }
