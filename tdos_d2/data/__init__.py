"""Datasets, mapper and dataloaders. Importing this package registers the built-in datasets."""

from .dataset_mapper import TDOSDatasetMapper
from .datasets import (
    MissingDatasetError,
    data_root,
    register_from_file,
    register_ood_dataset,
    register_segmentation_dataset,
)
from .loaders import build_test_loader, build_train_loader
from .reading import read_image, read_label
from .verify.quick import check_classes, check_dataset, class_names, get_dicts, present_datasets

__all__ = [
    "MissingDatasetError", "TDOSDatasetMapper", "build_test_loader", "build_train_loader",
    "check_classes", "check_dataset", "class_names", "data_root", "get_dicts", "present_datasets",
    "read_image", "read_label", "register_from_file", "register_ood_dataset",
    "register_segmentation_dataset",
]
