"""Data sets, their files, the mapper and the loaders. Importing it registers the built-in sets."""

from tdos_d2.data.build import build_test_loader, build_train_loader
from tdos_d2.data.checks import (
    check_classes,
    check_dataset,
    class_names,
    get_dicts,
    present_datasets,
)
from tdos_d2.data.dataset_mapper import TDOSDatasetMapper
from tdos_d2.data.datasets import (
    MissingDatasetError,
    data_root,
    register_from_file,
    register_ood_dataset,
)
from tdos_d2.data.reading import read_image, read_label

__all__ = [
    "MissingDatasetError",
    "TDOSDatasetMapper",
    "build_test_loader",
    "build_train_loader",
    "check_classes",
    "check_dataset",
    "class_names",
    "data_root",
    "get_dicts",
    "present_datasets",
    "read_image",
    "read_label",
    "register_from_file",
    "register_ood_dataset",
]
