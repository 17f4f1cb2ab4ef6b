"""Checks of a run before any process starts, with errors in one line."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from torch import nn

from ..config import set_key
from ..data import TDOSDatasetMapper
from ..data.reading import value_table
from ..data.verify.quick import (
    check_classes,
    check_dataset,
    check_order,
    check_registered,
    check_sampling,
    get_dicts,
    present_datasets,
)
from ..errors import UserError
from ..evaluation.evaluators import check_export, threshold_rule
from ..evaluation.frames import check_space
from ..evaluation.score_files import import_h5py
from ..files import check_output
from ..loading.checkpoint import read_checkpoint_info
from ..loading.config_checks import check_runnable
from ..loading.config_files import local_weights
from ..loading.packing import PACKED, is_packed
from ..loading.resuming import resume_file
from ..modeling.scores import needs_memory
from ..modeling.test_time_augmentation import SemanticSegmentorWithTTA
from ..ood_words import load_groups
from ..value_checks import check_positive
from .optimizer import build_lr_scheduler, build_optimizer
from .trainer import check_periods


def check_run(cfg: CfgNode, args: Namespace) -> list[str]:
    """``check_runnable``, and checks that only a whole run needs: outputs, processes, datasets.

    Called in the parent process, before ``launch``. Test datasets that are not on disk are removed
    from ``DATASETS.TEST`` if ``TEST.MISSING`` is "skip".

    Args:
        cfg: the complete config.
        args: ``num_gpus``, ``num_machines``, ``resume`` and ``eval_only`` of Detectron2's parser.

    Returns:
        Lines for the log: what was filled in or left out.

    Raises:
        UserError: the first problem; the message names the key, file or dataset.
    """
    notes = check_runnable(
        cfg,
        resume=args.resume,
        eval_only=args.eval_only,
        check_surroundings=partial(_check_surroundings, args=args),
        build_from_model=_build_evaluation if args.eval_only else _build_training,
    )
    if cfg.SOLVER.RESUME_FROM and not (args.resume or args.eval_only):
        raise UserError("SOLVER.RESUME_FROM needs --resume (before the KEY VALUE pairs)")
    if cfg.MODEL.META_ARCHITECTURE == "TDOS" and not args.eval_only:
        _check_method(cfg, args)
        notes += _no_outliers(cfg)
    _check_class_names(cfg)
    return notes if args.eval_only else [*notes, *_renamed_classes(cfg)]


def _check_surroundings(cfg: CfgNode, args: Namespace) -> list[str]:
    if cfg.TEST.SHOW_DIR:
        check_output(cfg.TEST.SHOW_DIR, "TEST.SHOW_DIR", folder=True)
    for name in ("", "inference", *(["report"] if cfg.TEST.REPORT else [])):
        check_output(os.path.join(cfg.OUTPUT_DIR, name), "OUTPUT_DIR", folder=True)
    _check_memory(cfg, args)
    _check_processes(cfg, args)
    return _check_datasets(cfg, args)


def _check_processes(cfg: CfgNode, args: Namespace) -> None:
    if args.num_gpus < 1 or args.num_machines < 1:
        raise UserError("--num-gpus (without GPUs: CPU processes) and --num-machines start at 1")
    world, gpus = args.num_gpus * args.num_machines, torch.cuda.device_count()
    if world > 1 and torch.cuda.is_available():
        if args.num_gpus > gpus:
            raise UserError(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
        if not cfg.MODEL.DEVICE.startswith("cuda"):
            raise UserError(
                f"MODEL.DEVICE {cfg.MODEL.DEVICE} with {world} processes: Detectron2 connects them "
                "through the GPUs; hide those (CUDA_VISIBLE_DEVICES=) or use --num-gpus 1"
            )
    batch, name = cfg.SOLVER.IMS_PER_BATCH, "the number of processes"
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:  # Detectron2 scales the batch size relative to it
        world, name = cfg.SOLVER.REFERENCE_WORLD_SIZE, "SOLVER.REFERENCE_WORLD_SIZE"
    if not args.eval_only and batch % world:
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch} is not divisible by {name} ({world})")


def _build_evaluation(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.TEST.AUG.ENABLED:
        SemanticSegmentorWithTTA(cfg, model)


def _check_memory(cfg: CfgNode, args: Namespace) -> None:
    """Check the limits of a NormalityMemory: no training, not empty, no classification."""
    if cfg.MODEL.META_ARCHITECTURE != "NormalityMemory":
        return
    if not args.eval_only:
        raise UserError(
            "MODEL.META_ARCHITECTURE: a NormalityMemory is not trained: tools/fit_memory.py fits "
            "it, train_net.py --eval-only evaluates it"
        )
    if not (cfg.MODEL.WEIGHTS or args.resume):
        raise UserError("MODEL.WEIGHTS is empty: name a memory that tools/fit_memory.py wrote")
    for name in cfg.DATASETS.TEST:
        with _naming("DATASETS.TEST"):
            check_registered(name)
        if MetadataCatalog.get(name).get("evaluator_type") != "ood":
            raise UserError(
                f"DATASETS.TEST: {name} has labels of classes, and a NormalityMemory has no known "
                "classes: only OOD sets can be evaluated"
            )


def _build_training(cfg: CfgNode, model: nn.Module) -> None:
    check_periods(cfg)
    build_lr_scheduler(cfg, build_optimizer(cfg, model))
    TDOSDatasetMapper(cfg, is_train=True)


def _check_datasets(cfg: CfgNode, args: Namespace) -> list[str]:
    for key in ["TEST"] if args.eval_only else ["TRAIN", "TEST"]:
        for name in cfg.DATASETS[key]:
            with _naming(f"DATASETS.{key}"):
                check_registered(name)
    if not args.eval_only:
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: name a training set")
        check_classes(cfg)
        for name in cfg.DATASETS.TRAIN:
            check_dataset(name, training=True)
        check_sampling(cfg)
    threshold_set = cfg.TEST.THRESHOLD_DATASET
    if threshold_set and threshold_set not in cfg.DATASETS.TEST:
        raise UserError(f"TEST.THRESHOLD_DATASET: '{threshold_set}' is not in DATASETS.TEST")
    if cfg.TEST.THRESHOLD == "calibrated" and not args.eval_only:
        raise UserError("TEST.THRESHOLD: what is still being trained has no calibrated threshold")
    threshold_rule(cfg)
    present = present_datasets(cfg)
    for name in present:
        check_export(cfg, name)
        _check_space(cfg, name)
    if cfg.TEST.EXPORT.FORMAT == "smiyc":
        import_h5py()
    absent = [name for name in cfg.DATASETS.TEST if name not in present]
    set_key(cfg, "DATASETS.TEST", tuple(present))
    if args.eval_only and not present:
        raise UserError("DATASETS.TEST has no set that is on disk: nothing to evaluate")
    return [f"not tested, TEST.MISSING is skip: {', '.join(absent)}"] if absent else []


def _check_space(cfg: CfgNode, name: str) -> None:
    """Check the disk space for the scores of an OOD dataset; one dataset is stored at a time."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") == "ood" and metadata.get("has_labels", True):
        with _naming(f"DATASETS.TEST: {name}"):
            check_space(os.path.join(cfg.OUTPUT_DIR, "inference"), get_dicts(name))


def _check_method(cfg: CfgNode, args: Namespace) -> None:
    """Check the values that training TDOS depends on, also in combination."""
    node, prompts = cfg.MODEL.TDOS, cfg.MODEL.PROMPTS
    check_positive(cfg, "MODEL.TDOS", "NEGATIVE_LENGTH")  # prompts need tokens to learn
    if "{}" not in cfg.MODEL.REG.TEMPLATE:
        raise UserError(f"MODEL.REG.TEMPLATE: '{cfg.MODEL.REG.TEMPLATE}' has no {{}} for the word")
    if prompts.GROUPS and node.NUM_NEGATIVE:
        with _naming("MODEL.PROMPTS.GROUPS"):
            load_groups(prompts.GROUPS, node.NUM_NEGATIVE)
    elif prompts.INIT == "group" and node.NUM_NEGATIVE:
        raise UserError("MODEL.PROMPTS.INIT 'group' needs words: MODEL.PROMPTS.GROUPS is empty")
    resumed = resume_file(cfg) if args.resume else None
    start = resumed or local_weights(cfg)
    if start and is_packed(start):
        raise UserError(f"MODEL.WEIGHTS: {start} {PACKED}")
    evaluated = cfg.DATASETS.TEST and needs_memory([node.SCORE, *node.EXTRA_SCORES])
    if evaluated and not (start and read_checkpoint_info(start).get("memory")):
        raise UserError(
            "MODEL.TDOS.SCORE and EXTRA_SCORES: training fits no memory, without which there is no "
            "score memory or combined: train with others, such as log_s_ood, then run "
            "tools/fit_memory.py"
        )
    if node.HEADS_ONLY and not cfg.MODEL.WEIGHTS and not resumed:
        raise UserError(
            "MODEL.TDOS.HEADS_ONLY trains the heads of a model that is there: name its checkpoint "
            "in MODEL.WEIGHTS"
        )


def _no_outliers(cfg: CfgNode) -> list[str]:
    """A line for the log if nothing in training is OOD."""
    paste, perturb = cfg.INPUT.OOD_PASTE, cfg.MODEL.SEM_AUG
    pasted = paste.SOURCE != "none" and paste.PROB > 0
    drawn = perturb.ENABLED and perturb.PROB > 0 and perturb.REGION != "labelled"
    if pasted or drawn or any(_has_ood(MetadataCatalog.get(name)) for name in cfg.DATASETS.TRAIN):
        return []
    return [
        "no pixel of the training is OOD: INPUT.OOD_PASTE and MODEL.SEM_AUG make none, and "
        "DATASETS.TRAIN has no OOD labels; log_s_ood learns nothing, take max_logit as the score"
    ]


def _has_ood(metadata: Metadata) -> bool:
    """Whether label files of a training set can have OOD pixels: the label K."""
    colours = metadata.get("label_colours")
    labels = colours.values() if colours else value_table(metadata).tolist()
    return len(metadata.get("stuff_classes", ())) in labels


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Prefix the message of a UserError with ``key``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _check_class_names(cfg: CfgNode) -> None:
    """Check that a semantic segmentation dataset has the model's classes, in its order."""
    num_classes = len(cfg.MODEL.TDOS.CLASS_NAMES)
    if cfg.MODEL.META_ARCHITECTURE == "TDOS" and not num_classes:
        raise UserError("MODEL.TDOS.CLASS_NAMES is empty, and DATASETS.TRAIN has no class names")
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") == "ood":
            continue
        of_set = len(metadata.get("stuff_classes", ()))
        if num_classes and of_set and of_set != num_classes:
            raise UserError(
                f"dataset {name} has {of_set} classes, the model {num_classes} "
                "(MODEL.TDOS.CLASS_NAMES, or those of its checkpoint)"
            )
        check_order(cfg.MODEL.TDOS.CLASS_NAMES, name)


def _renamed_classes(cfg: CfgNode) -> list[str]:
    """A line for the log if the model calls classes of its training set by other names.

    A config made for another dataset with as many classes does so without an error.
    """
    name, names = cfg.DATASETS.TRAIN[0], cfg.MODEL.TDOS.CLASS_NAMES
    pairs = zip(MetadataCatalog.get(name).get("stuff_classes", ()), names, strict=False)
    other = [f"'{of_set}' is '{own}'" for of_set, own in pairs if of_set.lower() != own.lower()]
    if not other:
        return []
    return [
        f"MODEL.TDOS.CLASS_NAMES renames classes of dataset '{name}': {', '.join(other)} "
        '("[]" takes the names of the dataset)'
    ]
