"""Rendered scenes with Cityscapes' 19 classes, to be mixed into training: GTA and SYNTHIA."""

from __future__ import annotations

from tdos_d2.data.datasets.cityscapes import CITYSCAPES_CLASSES
from tdos_d2.data.datasets.folder import BuiltinFolder, ImageFolder, register_folder
from tdos_d2.data.reading import IGNORE

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
