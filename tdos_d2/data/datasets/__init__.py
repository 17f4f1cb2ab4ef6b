"""Registers the built-in datasets when imported."""

from ..demo_scenes.dataset import register_demo
from .builtin import register_builtin
from .folder import MissingDatasetError, data_root
from .ood import register_ood_dataset
from .registration_file import register_from_file
from .segmentation import register_segmentation_dataset

__all__ = [
    "MissingDatasetError", "data_root", "register_from_file", "register_ood_dataset",
    "register_segmentation_dataset",
]

register_builtin()
register_demo()
