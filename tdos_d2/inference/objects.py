"""Objects in a score map."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Pixels of the smallest object in SegmentMeIfYouCan's anomaly protocol, and pixels of a frame.
_MIN_AREA, _OF_FRAME = 100, 1280 * 720


@dataclass(frozen=True)
class OODObject:
    """A connected region of OOD pixels.

    Attributes:
        box: x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row outside.
        area: pixels.
        mean_score: mean of the score over the region.
        max_score: its maximum.
    """

    box: tuple[int, int, int, int]
    area: int
    mean_score: float
    max_score: float


def default_min_area(shape: tuple[int, int]) -> int:
    """100 pixels in a frame of 1280x720, and the same share of the area of other frames (H, W)."""
    return max(1, round(_MIN_AREA * shape[0] * shape[1] / _OF_FRAME))


def find_objects(
    score: np.ndarray,
    threshold: float,
    *,
    min_area: int = 1,
    valid: np.ndarray | None = None,
) -> tuple[list[OODObject], np.ndarray]:
    """8-connected regions with ``float32(score) >= threshold``, as in evaluation.

    Args:
        score: (H, W), larger = more anomalous.
        threshold: in the score's units.
        min_area: smallest region, in pixels.
        valid: (H, W) bool, where objects may be; None = everywhere.

    Returns:
        The objects, largest first, and an (H, W) int32 map: i at object number i (from 1), else 0.
    """
    above = score.astype(np.float32) >= np.float32(threshold)
    if valid is not None:
        above &= valid
    _, found, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")
    order = order[areas[order] >= min_area]
    number = np.zeros(len(stats), np.int32)
    number[order + 1] = np.arange(1, len(order) + 1)
    regions = number[found]
    means = region_means(regions, score, len(order))
    objects = []
    for i, row in enumerate(stats[order + 1]):
        x, y, width, height, area = (int(value) for value in row)
        inside = regions[y : y + height, x : x + width] == i + 1
        highest = score[y : y + height, x : x + width][inside].max()
        box = (x, y, x + width, y + height)
        objects.append(OODObject(box, area, float(means[i]), float(highest)))
    return objects, regions


def region_means(regions: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Mean of ``values`` (H, W) over each of the ``count`` regions, (count,) float64.

    Args:
        regions: (H, W) int: 1..count in a region, 0 outside.
        values: (H, W) numbers.
        count: number of regions.
    """
    flat = regions.ravel()
    sums = np.bincount(flat, weights=values.ravel(), minlength=count + 1)[1:]
    return sums / np.bincount(flat, minlength=count + 1)[1:]
