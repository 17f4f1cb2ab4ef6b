"""Registers the built-in data sets when imported."""

from tdos_d2.data.datasets.camvid import register_camvid
from tdos_d2.data.datasets.cityscapes import register_poc
from tdos_d2.data.datasets.demo import register_demo
from tdos_d2.data.datasets.folder import MissingDatasetError, data_root
from tdos_d2.data.datasets.ood import register_ood, register_ood_dataset
from tdos_d2.data.datasets.registration_file import register_from_file
from tdos_d2.data.datasets.synthetic import register_synthetic

__all__ = ["MissingDatasetError", "data_root", "register_from_file", "register_ood_dataset"]

register_camvid()
register_ood()
register_poc()
register_synthetic()
register_demo()
