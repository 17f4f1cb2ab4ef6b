"""Objects of COCO's instances files: validation and masks.

It does not need Detectron2, as it is used by a script that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# Outside any image. The memory of pycocotools' polygon filler is proportional to the coordinates.
_FARTHEST = 100_000


def check_object(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """The "bbox" and "segmentation" of an object, without polygons of fewer than three points.

    (pycocotools would interpret four numbers as a box.)

    Returns:
        The two entries; None if the object is degenerate: a box without area, or no outline.

    Raises:
        ValueError: an entry is not in COCO's format; the message has its name and value.
    """
    box, outline = item.get("bbox"), item.get("segmentation")
    if not _are_coordinates(box) or len(box) != 4:
        raise ValueError(f"bbox is {_short(box)}, not [x, y, width, height]")
    if isinstance(outline, list):
        for polygon in outline:
            if not _are_coordinates(polygon) or len(polygon) % 2:
                raise ValueError(f"segmentation has {_short(polygon)}, not [x, y, x, y, ...]")
        outline = [polygon for polygon in outline if len(polygon) >= 6]
    elif isinstance(outline, dict):
        _runs(outline)
    else:
        raise ValueError(f"segmentation is {_short(outline)}, neither polygons nor run lengths")
    thin = min(box[2:]) <= 0
    return None if thin or not outline else {"bbox": box, "segmentation": outline}


def object_mask(
    item: Mapping[str, Any], height: int, width: int
) -> tuple[np.ndarray, slice, slice]:
    """Mask of an object that :func:`check_object` has validated.

    Returns:
        (h, w) uint8 in 0 / 1, and the rows and columns of the image that it covers: the part of the
        object's box that is inside the image.

    Raises:
        ValueError: the run lengths are for an image of another size.
    """
    x, y, w, h = item["bbox"]
    rows = slice(*np.clip([int(y), int(np.ceil(y + h))], 0, height))
    columns = slice(*np.clip([int(x), int(np.ceil(x + w))], 0, width))
    outline = item["segmentation"]
    if isinstance(outline, list):
        whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, height, width)))
    elif outline["size"] != [height, width]:
        raise ValueError(f"run lengths of size {outline['size']} in an image of {[height, width]}")
    else:
        runs = _runs(outline)
        values = np.arange(len(runs), dtype=np.uint8) % 2  # alternating zeros and ones, by columns
        whole = np.repeat(values, runs).reshape(width, height).T
    return whole[rows, columns], rows, columns


def _runs(outline: Mapping[str, Any]) -> list[int]:
    """Run lengths from either encoding, checked to sum to the number of pixels."""
    counts, size = outline.get("counts"), outline.get("size")
    if not _are_coordinates(size) or len(size) != 2:
        raise ValueError(f"size of its run lengths is {_short(size)}, not [height, width]")
    runs = _unpack(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    # With too few runs, pycocotools would leave the rest of the mask uninitialised.
    if not whole or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths {_short(counts)} are not those of an image of size {size}")
    return runs


def _unpack(counts: str) -> list[int]:
    """Unpack COCO's run lengths: five bits per character, from the third on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more of this number follows
            continue
        if bits & 0x10:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _are_coordinates(values: Any) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) <= _FARTHEST for value in values
    )


def _short(value: Any) -> str:
    text = "missing or null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
