"""Breakdown of a dataset's metrics: by instances, images, and size and distance of anomalies.

True components are the 8-connected components of the label. Their groups by size are COCO's (small
below 32x32 pixels, medium below 96x96, large). Groups by distance are defined by this project: the
distance between a component's lowest pixel and the lower edge of the image, as a proxy for the
distance to the vehicle (near below a quarter of the height, middle below a half, far). In the pixel
metrics of a group the anomalies of other groups are void; sIoU is the mean over its components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from ..labels import OOD, VOID
from .component_metrics import ComponentScores
from .frames import Frame
from .image_metrics import image_metrics, score_image
from .instance_metrics import InstanceScores, instance_metrics, score_instances
from .pixel_metrics import KeyBins, count_pixels, pixel_metrics


class Group(NamedTuple):
    """True components with ``low`` <= ``of`` < ``high``.

    Attributes:
        name: name in tables.
        of: "area" in pixels, or "distance" to the lower edge as a share of the height.
    """

    name: str
    of: str
    low: float
    high: float


GROUPS = (
    Group("small", "area", 0, 32**2),
    Group("medium", "area", 32**2, 96**2),
    Group("large", "area", 96**2, math.inf),
    Group("near", "distance", 0, 1 / 4),
    Group("middle", "distance", 1 / 4, 1 / 2),
    Group("far", "distance", 1 / 2, math.inf),
)


class FrameParts(NamedTuple):
    """A frame's contribution to the breakdown.

    Attributes:
        instances: matched instances.
        image: score of the image, and whether it has an anomaly; None = all void.
        area, distance: of the true components that ``component_metrics`` counts, in its order.
        siou: sIoU of these components.
        unnumbered: OOD pixels that are of no given instance.
    """

    instances: InstanceScores
    image: tuple[float, bool] | None
    area: np.ndarray
    distance: np.ndarray
    siou: np.ndarray
    unnumbered: int


def frame_parts(
    frame: Frame,
    components: ComponentScores,
    threshold: float,
    sizes: tuple[int, int],
    strict: bool = False,
    instances: np.ndarray | None = None,
) -> FrameParts:
    """Compute a frame's contribution to the breakdown.

    Args:
        frame: as returned by ``check_frame``.
        components: its components at ``threshold``.
        threshold: threshold of the predictions.
        sizes: smallest predicted and true component in pixels.
        strict: predict score > threshold.
        instances: see :func:`~.instance_metrics.score_instances`.
    """
    _, stats = _components(frame)
    stats = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= sizes[1]]
    lacking = 0 if instances is None else (frame.label == OOD) & (instances == 0)
    return FrameParts(
        score_instances(frame, threshold, sizes[0], strict, instances),
        score_image(frame),
        stats[:, cv2.CC_STAT_AREA],
        _distance(stats, len(frame.label)),
        components.siou,
        np.count_nonzero(lacking),
    )


def true_instances(parts: Iterable[FrameParts], masks: bool, of: str = "the dataset") -> str:
    """A line on what the true instances are: ``masks`` of ``of``, or components of the labels."""
    if not masks:
        return "true instances are the connected components of the labels"
    lacking = sum(part.unnumbered for part in parts)
    note = f"; {lacking} OOD pixels have no number there, and are of no instance" if lacking else ""
    return f"true instances are the instance masks of {of}{note}"


def only(frame: Frame, group: Group) -> Frame:
    """The frame with the anomalies of other groups made void."""
    numbers, stats = _components(frame)
    values = stats[:, cv2.CC_STAT_AREA]
    if group.of == "distance":
        values = _distance(stats, len(frame.label))
    others = ~((values >= group.low) & (values < group.high))
    others[0] = False  # the background
    label = frame.label.copy()
    label[others[numbers]] = VOID
    return Frame(frame.score, label)


def count_group(frames: Iterable[Frame], group: Group, bins: KeyBins) -> np.ndarray:
    """Counts of :func:`~.pixel_metrics.count_pixels` for a group."""
    return count_pixels((only(frame, group) for frame in frames), bins)


def breakdown_rows(
    parts: Sequence[FrameParts], count: Callable[[Group, KeyBins], np.ndarray], name: str
) -> dict[str, dict[str, float]]:
    """Metrics in percent for instances, images and each group.

    Args:
        parts: contributions of all frames, in any order.
        count: counts the pixels of the dataset for a group, as :func:`count_group`.
        name: name of the dataset, for messages.

    Returns:
        "instances" (see ``instance_metrics``), "images" (see ``image_metrics``) and the groups by
        name, with the number of "components", "AP", "AUROC", "FPR95" and "sIoU". Entries that are
        undefined are omitted: "instances" without a true instance, "images" if all or none have
        anomalies, groups without a component; all without frames.
    """
    if not parts:
        return {}
    rows = {
        "instances": instance_metrics(part.instances for part in parts),
        "images": image_metrics([part.image for part in parts if part.image is not None]),
    }
    if not rows["instances"]["instances"]:
        del rows["instances"]
    if math.isnan(rows["images"]["AUROC"]):
        del rows["images"]
    for group in GROUPS:
        values = np.concatenate([getattr(part, group.of) for part in parts])
        siou = np.concatenate([part.siou for part in parts])
        siou = siou[(values >= group.low) & (values < group.high)]
        if len(siou):
            pixels = pixel_metrics(partial(count, group), f"{name}, {group.name}")
            rows[group.name] = {
                "components": len(siou),
                **{key: pixels.as_dict()[key] for key in ("AP", "AUROC", "FPR95")},
                "sIoU": 100 * math.fsum(siou) / len(siou),
            }
    return rows


def _components(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    mask = (frame.label == OOD).view(np.uint8)
    return cv2.connectedComponentsWithStats(mask, connectivity=8)[1:3]


def _distance(stats: np.ndarray, height: int) -> np.ndarray:
    """Rows between each component's lowest pixel and the lower edge, divided by the height."""
    below = height - (stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT])
    return below / height
