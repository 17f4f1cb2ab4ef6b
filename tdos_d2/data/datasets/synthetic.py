"""Rendered scenes with Cityscapes' 19 classes, to be mixed into training: GTA and SYNTHIA."""

from __future__ import annotations

from ..reading import IGNORE
from .cityscapes import CITYSCAPES_CLASSES
from .folder import BuiltinFolder, ImageFolder, register_folder

# name -> folder that datasets/prepare_gta.py and prepare_synthia.py write
_FOLDERS = {"gta_train": "gta_trainids", "synthia_train": "synthia_trainids"}


def register_synthetic() -> None:
    """Register gta_train and synthia_train."""
    for name, folder in _FOLDERS.items():
        register_folder(
            name,
            BuiltinFolder((folder,), (ImageFolder("images", "labels", image_glob="*"),)),
            evaluator_type="sem_seg",
            stuff_classes=list(CITYSCAPES_CLASSES),
            stuff_colors=list(CITYSCAPES_CLASSES.values()),
            ignore_label=IGNORE,
        )
