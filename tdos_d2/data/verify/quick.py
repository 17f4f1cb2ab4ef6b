"""Quick checks of datasets before a run starts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import UserError
from ...value_checks import check_positive
from ..datasets.cityscapes import cityscapes_frames, is_cityscapes
from ..datasets.folder import MissingDatasetError, check_labels_exist
from ..reading import check_same_size, read_image, read_instances, read_label
from ..samplers import MIN_SHARE

_FRAMES_READ = 3  # number per dataset


def get_dicts(name: str) -> list[dict[str, Any]]:
    """Dataset dicts of a registered dataset: ``DatasetCatalog.get`` with errors for users.

    Raises:
        MissingDatasetError: the dataset is not on disk.
        UserError: the name is unknown, or the dataset is empty or incomplete.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    if is_cityscapes(metadata):
        cityscapes_frames(metadata)
    try:
        dicts = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        missing = error.filename or error
        raise MissingDatasetError(f"dataset '{name}': no file or folder {missing}") from error
    except (AssertionError, OSError) as error:  # raised by Detectron2's loaders
        cause = " ".join(str(error).split())
        raise UserError(f"dataset '{name}' cannot be loaded: {cause}") from error
    if not dicts:
        raise UserError(f"dataset '{name}' is empty")
    return dicts


def list_frames(name: str) -> list[dict[str, Any]]:
    """As :func:`get_dicts`, but for Cityscapes without Detectron2's loader, which takes seconds."""
    metadata = MetadataCatalog.get(name)
    return cityscapes_frames(metadata) if is_cityscapes(metadata) else get_dicts(name)


def check_registered(name: str) -> None:
    """Raise UserError, with similar names, if no dataset has this name."""
    if name in DatasetCatalog:
        return
    close = difflib.get_close_matches(name, DatasetCatalog.keys(), n=3)
    hint = f", did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"unknown dataset '{name}'{hint} (your own: list it in a YAML file, see "
        "datasets/README.md, and name that by DATASETS.REGISTER or --register; in Python "
        "tdos_d2.data.register_ood_dataset, or Detectron2's DatasetCatalog)"
    )


def class_names(cfg: CfgNode) -> list[str]:
    """Names of the K known classes: ``MODEL.TDOS.CLASS_NAMES``, or those of the training set.

    Raises:
        UserError: there are none, or too many for labels of 8 bits.
    """
    names = list(cfg.MODEL.TDOS.CLASS_NAMES) or _train_class_names(cfg)
    if len(names) > 254:  # 255 is ignored and K is OOD
        raise UserError(f"at most 254 classes are possible, got {len(names)}")
    return names


def check_order(names: Sequence[str], dataset: str) -> None:
    """Raise UserError if a class of the model has another number in the dataset.

    Names that the dataset lacks are allowed: prompts may call its classes otherwise.
    """
    of_set = [name.lower() for name in MetadataCatalog.get(dataset).get("stuff_classes", ())]
    for number, name in enumerate(names):
        if name.lower() in of_set and of_set.index(name.lower()) != number:
            raise UserError(
                f"class {number} of the model is '{name}', but in dataset '{dataset}' this is "
                f"class {of_set.index(name.lower())}: labels would be taken for other classes"
            )


def check_classes(cfg: CfgNode) -> None:
    """Raise UserError if the sets in ``DATASETS.TRAIN`` and the model disagree on the classes."""
    own = _train_class_names(cfg)
    first, *others = cfg.DATASETS.TRAIN
    for name in others:
        _check_for_training(name)
        if list(MetadataCatalog.get(name).get("stuff_classes", ())) != own:
            raise UserError(f"datasets '{first}' and '{name}' in DATASETS.TRAIN differ in classes")
    if len(class_names(cfg)) != len(own):
        raise UserError(
            f"MODEL.TDOS.CLASS_NAMES has {len(class_names(cfg))} names, but dataset '{first}' has "
            f"{len(own)} classes (MODEL.TDOS.CLASS_NAMES \"[]\" takes the names of the dataset)"
        )
    check_order(class_names(cfg), first)


def check_sampling(cfg: CfgNode) -> None:
    """Raise UserError if the sampling of training frames in the config is invalid.

    ``DATASETS.TRAIN_WEIGHTS`` must be empty or have one weight per dataset in ``DATASETS.TRAIN``.
    """
    check_positive(cfg, "SOLVER", "IMS_PER_BATCH")
    check_positive(cfg, "INPUT.RARE_CLASS", "TEMPERATURE")
    names, weights = cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS
    if not weights:
        return
    if len(weights) != len(names):
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS has {len(weights)} weights, but DATASETS.TRAIN has "
            f"{len(names)} names"
        )
    positive = all(type(weight) in (int, float) and weight > 0 for weight in weights)
    if not positive or min(weights) < MIN_SHARE * sum(weights):
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS must be numbers, each above 0 and at least {MIN_SHARE} of "
            f"their sum, got {list(weights)}"
        )


def check_dataset(name: str, training: bool) -> int:
    """Check that a dataset is complete, and read its first frames.

    All files must exist; labels of the first frames must have declared values and the size of their
    image, instance masks that of their label.

    Args:
        name: a registered dataset.
        training: whether each image must have a label.

    Returns:
        number of frames.

    Raises:
        MissingDatasetError: the dataset is not on disk.
        UserError: the dataset is incomplete or unreadable.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    dicts = list_frames(name)
    labelled = [record for record in dicts if "sem_seg_file_name" in record]
    if training and len(labelled) < len(dicts):
        raise UserError(f"dataset '{name}' has images without sem_seg_file_name: not for training")
    images = [record["file_name"] for record in dicts]
    lost = [path for path in images if not PathManager.isfile(path)]
    if lost:
        raise UserError(f"dataset '{name}': {len(lost)} image files are missing, first {lost[0]}")
    check_labels_exist(name, labelled)
    for record in dicts[:_FRAMES_READ]:
        image = read_image(record["file_name"])
        if "sem_seg_file_name" in record:
            path = record["sem_seg_file_name"]
            label = read_label(path, metadata, record.get("region_mask_file_name"))
            check_same_size(f"label {path}", label, f"its image {record['file_name']}", image)
            if "instance_file_name" in record:
                read_instances(record["instance_file_name"], path, label)
    return len(dicts)


def present_datasets(cfg: CfgNode) -> list[str]:
    """Check the datasets in ``DATASETS.TEST`` and return those that are on disk.

    Raises:
        UserError: a dataset is incomplete, or missing while ``TEST.MISSING`` is not "skip" (which
            only logs a warning).
    """
    if cfg.TEST.MISSING not in ("error", "skip"):
        raise UserError(f"TEST.MISSING must be error or skip, got {cfg.TEST.MISSING!r}")
    present = []
    for name in cfg.DATASETS.TEST:
        try:
            check_dataset(name, training=False)
            present.append(name)
        except MissingDatasetError as error:
            if cfg.TEST.MISSING == "error":
                raise
            logging.getLogger(__name__).warning("Not tested: %s", error)
    return present


def _train_class_names(cfg: CfgNode) -> list[str]:
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: set it, or MODEL.TDOS.CLASS_NAMES")
    name = cfg.DATASETS.TRAIN[0]
    _check_for_training(name)
    names = MetadataCatalog.get(name).get("stuff_classes")
    if not names:
        raise UserError(f"dataset '{name}': its metadata has no stuff_classes")
    return list(names)


def _check_for_training(name: str) -> None:
    check_registered(name)
    if MetadataCatalog.get(name).get("evaluator_type") == "ood":
        raise UserError(
            f"DATASETS.TRAIN: {name} is for testing, its labels are known, OOD and void only"
        )
