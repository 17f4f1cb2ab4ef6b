"""Checks of Cityscapes' files with clear errors; Detectron2's loader has assertions instead."""

from __future__ import annotations

import os

from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ...errors import UserError
from .folder import MissingDatasetError

_IMAGE_END = "leftImg8bit.png"
_LABEL_END = "gtFine_labelTrainIds.png"
# Files that Detectron2's loader opens or asserts for a frame.
_NEEDED_ENDS = (
    "gtFine_polygons.json", "gtFine_labelIds.png", "gtFine_instanceIds.png", _LABEL_END,
)

# Name and colour of the train ids 0..18.
CITYSCAPES_CLASSES = {c["name"]: c["color"] for c in CITYSCAPES_CATEGORIES}


def is_cityscapes(metadata: Metadata) -> bool:
    """Whether a dataset is read by Detectron2's loader for semantic Cityscapes."""
    return metadata.get("evaluator_type") == "cityscapes_sem_seg" and bool(metadata.get("gt_dir"))


def cityscapes_frames(metadata: Metadata) -> list[dict[str, str]]:
    """List a Cityscapes split without opening a file.

    Returns:
        dicts with file_name and sem_seg_file_name.

    Raises:
        MissingDatasetError: a folder is missing.
        UserError: a file that Detectron2 needs is missing, or a folder has other files.
    """
    name, image_dir, gt_dir = metadata.name, metadata.image_dir, metadata.gt_dir
    for folder in (image_dir, gt_dir):
        if not os.path.isdir(folder):
            raise MissingDatasetError(
                f"dataset '{name}': no folder {folder}; DETECTRON2_DATASETS must name the folder "
                "that holds cityscapes, and be set before the start of the program"
            )
    frames, missing = [], []
    for city in sorted(os.listdir(image_dir)):
        labels = _list_files(name, os.path.join(gt_dir, city))
        for file in sorted(_list_files(name, os.path.join(image_dir, city))):
            if not file.endswith(_IMAGE_END):
                raise UserError(
                    f"dataset '{name}': {os.path.join(image_dir, city, file)} is in the way: "
                    f"only files *{_IMAGE_END} may be there"
                )
            stem = file[: -len(_IMAGE_END)]
            needed = {end: os.path.join(gt_dir, city, stem + end) for end in _NEEDED_ENDS}
            missing += [path for end, path in needed.items() if stem + end not in labels]
            image = os.path.join(image_dir, city, file)
            frames.append({"file_name": image, "sem_seg_file_name": needed[_LABEL_END]})
    if missing:
        hint = " (datasets/prepare_cityscapes.py --in-place makes them)"
        raise UserError(
            f"dataset '{name}': {len(missing)} label files are missing, first {missing[0]}"
            + (hint if missing[0].endswith(_LABEL_END) else "")
        )
    if not frames:
        raise UserError(f"dataset '{name}': no images in {image_dir}")
    return frames


def _list_files(name: str, folder: str) -> set[str]:
    if not os.path.isdir(folder):
        raise UserError(f"dataset '{name}': {folder} is missing or not a folder")
    return set(os.listdir(folder))
