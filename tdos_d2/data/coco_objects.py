"""Outliers from photographs: objects cut out of COCO images by a list of instances."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetFromList

from ..coco import check_object, object_mask
from ..errors import UserError
from ..files import stays_inside
from ..untrusted import read_json
from .reading import read_image

# Photographs enlarged further look too different from the rest of the image.
_MAX_ENLARGEMENT = 1.5
_MAX_LIST = 2**31  # bytes; the list of COCO's train2017 has 10**8


class CocoSource:
    """Cuts objects out of COCO images, each category equally often, half of them mirrored.

    Args:
        list_path: JSON file {"images_root", "instances": [{"file", "category", "bbox" (x, y, w, h),
            "segmentation" (COCO's polygons or run lengths)}, ...]} as
            ``datasets/prepare_coco_outliers.py`` writes it. A relative ``images_root`` is relative
            to the folder of the list.
        categories: names of the categories to use; empty = all.
        image_format: order of channels, "RGB" or "BGR".

    Raises:
        UserError: the list or its images do not exist, it has another format, or it has no object
            of these categories.
    """

    photograph = True  # see ObjectSource

    def __init__(
        self,
        list_path: str | os.PathLike,
        categories: Sequence[str] = (),
        image_format: str = "RGB",
    ) -> None:
        self._path = Path(list_path).expanduser()
        self._format = image_format
        content = _read_list(self._path)
        instances = content["instances"]
        self._root = self._path.parent / content["images_root"]
        first = self._root / instances[0]["file"]
        if not first.is_file():
            raise UserError(f"{self._path}: its first image {first} does not exist")
        self._groups = _by_category(instances, categories, self._path)
        # Packed: lists of numbers would be copied into each loader process.
        self._instances = DatasetFromList(instances, copy=False)

    def sample(self, rng: np.random.Generator, max_side: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut out an object.

        Args:
            rng: the only source of randomness.
            max_side: largest side of the patch in pixels. Objects are enlarged by at most 50 %.

        Returns:
            patch (h, w, 3) uint8, with the object's original background, and mask (h, w) float32
            in 0..1, with at least one pixel of 1.

        Raises:
            UserError: the image cannot be read or has another size than that of the annotations, or
                the object has no pixel.
        """
        group = self._groups[rng.integers(len(self._groups))]
        instance = self._instances[int(group[rng.integers(len(group))])]
        path = self._root / instance["file"]
        image = read_image(path, self._format)
        height, width = image.shape[:2]
        expected = instance.get("width", width), instance.get("height", height)
        if expected != (width, height):  # the object would be cut from another place
            raise UserError(
                f"{self._path}: {path} is {width}x{height}, but COCO's annotations are for "
                f"{expected[0]}x{expected[1]}: the images must be as published"
            )
        try:
            patch, mask = cut_out(image, instance)
            if not mask.any():
                raise ValueError("no pixel")
        except ValueError as error:
            raise UserError(f"{self._path}: an object in {path} has {error}") from error
        if rng.random() < 0.5:
            patch, mask = patch[:, ::-1], mask[:, ::-1]
        patch, soft = fit(patch, mask, max_side)
        # A thin object might not cover half of any pixel after shrinking.
        return patch, soft / soft.max()


def cut_out(image: np.ndarray, instance: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """An object's box in an image (H, W, 3), as a view (h, w, 3), and its mask (h, w) in 0 / 1.

    Raises:
        ValueError: the run lengths belong to an image of another size.
    """
    mask, rows, columns = object_mask(instance, *image.shape[:2])
    return image[rows, columns], mask


def fit(patch: np.ndarray, mask: np.ndarray, max_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize a patch (h, w, 3) and its mask (h, w), so that no side is above ``max_side``.

    Returns:
        The patch, and the mask as float32. Objects are enlarged by at most 50 %.
    """
    scale = min(max_side / max(mask.shape), _MAX_ENLARGEMENT)
    h, w = (max(1, round(side * scale)) for side in mask.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    patch = cv2.resize(np.ascontiguousarray(patch), (w, h), interpolation=how)
    soft = cv2.resize(mask.astype(np.float32), (w, h), interpolation=how)
    return patch, soft


def _read_list(path: Path) -> dict[str, Any]:
    named, script = f"INPUT.OOD_PASTE.COCO_LIST: {path}", "datasets/prepare_coco_outliers.py"
    if not path.is_file():
        raise UserError(f"{named} does not exist ({script} writes it)")
    try:
        content = read_json(path, _MAX_LIST)
        root, instances = content["images_root"], content["instances"]
        if not isinstance(root, str) or not isinstance(instances, list):
            raise TypeError("it has another structure")
        for place, entry in enumerate(instances):
            _check_instance(place, entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{named} is no list of {script} ({error})") from error
    if not instances:
        raise UserError(f"{named} has no objects")
    return content


def _check_instance(place: int, entry: Any) -> None:
    """Raise ValueError unless the entry describes an object that can be cut out."""
    try:
        if not all(isinstance(entry[key], str) for key in ("file", "category")):
            raise ValueError("file and category must be text")
        if not stays_inside(entry["file"]):
            raise ValueError(f"file {entry['file']} leads out of the folder of the images")
        if check_object(entry) != {key: entry[key] for key in ("bbox", "segmentation")}:
            raise ValueError("its box or a part of its outline has no area")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"object {place}: {error}") from error


def _by_category(
    instances: Sequence[Mapping[str, Any]], categories: Sequence[str], path: Path
) -> list[np.ndarray]:
    """Indices of the instances of each category."""
    names = np.array([instance["category"] for instance in instances])
    there = sorted(set(names.tolist()))
    for name in categories:
        if name not in there:
            raise UserError(
                f"INPUT.OOD_PASTE.COCO_CATEGORIES: '{name}' is not in {path}; "
                f"there are {', '.join(there)}"
            )
    return [np.flatnonzero(names == name) for name in there if not categories or name in categories]
