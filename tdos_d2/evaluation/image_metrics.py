"""Image-level metrics: detection of images with an anomaly.

The score of an image is the largest of its scores outside of void, as in PatchCore (Roth et al.,
arXiv 2106.08265, section 3.3). AUROC and FPR95 are defined as in the pixel metrics, with images in
place of pixels: by the trapezoid rule, and at the first threshold that finds 95 % of OOD images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..labels import OOD, VOID
from .frames import Frame


def score_image(frame: Frame) -> tuple[float, bool] | None:
    """The image's score and whether it has an OOD pixel; None if all pixels are void."""
    counted = frame.score[frame.label != VOID]
    return (float(counted.max()), bool((frame.label == OOD).any())) if counted.size else None


def image_metrics(images: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Image-level metrics.

    Returns:
        "AUROC" and "FPR95" in percent, NaN unless there are images with and without OOD pixels;
        "OOD_images" and "normal_images", the numbers of these images.
    """
    scores = np.array([score for score, _ in images])
    is_ood = np.array([ood for _, ood in images], bool)
    ood, normal = scores[is_ood], scores[~is_ood]
    metrics = {"AUROC": math.nan, "FPR95": math.nan}
    if len(ood) and len(normal):
        ranks = np.searchsorted(np.sort(normal), ood, side="left"), np.searchsorted(
            np.sort(normal), ood, side="right"
        )
        metrics["AUROC"] = 100 * float(np.mean(ranks) / len(normal))  # ties count half
        needed = -(-19 * len(ood) // 20)  # 95 % of them, rounded up
        threshold = np.sort(ood)[-needed]
        metrics["FPR95"] = 100 * float(np.mean(normal >= threshold))
    return {**metrics, "OOD_images": len(ood), "normal_images": len(normal)}
