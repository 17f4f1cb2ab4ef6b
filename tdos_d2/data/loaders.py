"""Detectron2's dataloaders for training and testing with the data order of :mod:`.samplers`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..cores import usable_cores
from ..errors import UserError
from .class_statistics import class_statistics, statistics_cache
from .dataset_mapper import TDOSDatasetMapper
from .rare_class import RareClassDataset
from .samplers import MixedDataset, PositionalDataset, PositionSampler, Seed
from .verify.quick import check_classes, check_sampling, class_names, get_dicts


def build_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
    """Infinite batches of the datasets in ``DATASETS.TRAIN``, concatenated and shuffled.

    With ``DATASETS.TRAIN_WEIGHTS`` the datasets are shuffled separately and mixed with these
    weights. With ``INPUT.RARE_CLASS.ENABLED`` frames are sampled by the classes that they contain.

    Batch i of all processes together depends only on ``cfg.SEED`` and ``start_iteration + i``, not
    on the number of workers or on restarts. If the seed is negative, a random one is used.

    Args:
        cfg: reads ``DATASETS``, ``INPUT.RARE_CLASS``, ``DATALOADER.NUM_WORKERS``,
            ``SOLVER.IMS_PER_BATCH``, ``SEED`` and the keys of :class:`TDOSDatasetMapper`.
        start_iteration: iteration of the first batch.

    Raises:
        UserError: a dataset is unknown, missing or incomplete; the datasets differ in classes;
            there is not one weight per dataset; no frame has enough pixels of a class for rare
            class sampling; or the batch size is not divisible by the number of processes.
    """
    world_size = comm.get_world_size()
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if batch_size < 1 or rest:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of the "
            f"{world_size} processes"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = PositionSampler(
        start_iteration * cfg.SOLVER.IMS_PER_BATCH, comm.get_rank(), world_size, batch_size
    )
    check_classes(cfg)
    check_sampling(cfg)
    names, weights = cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS
    if weights:
        parts = [_positions(cfg, [name], [seed, i]) for i, name in enumerate(names)]
        dataset = MixedDataset(parts, weights, seed)
    else:
        dataset = _positions(cfg, names, seed)
    return build_detection_train_loader(
        # The sampler itself distributes the batches over the workers.
        ToIterableDataset(dataset, sampler, shard_sampler=False),
        mapper=TDOSDatasetMapper(cfg, is_train=True, seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=_workers(cfg),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """The images of one dataset in order, one per batch, distributed over the processes.

    Raises:
        UserError: the dataset is unknown, missing or incomplete.
    """
    return build_detection_test_loader(
        get_dicts(dataset_name),
        mapper=TDOSDatasetMapper(cfg, is_train=False, dataset_name=dataset_name),
        num_workers=_workers(cfg),
    )


def _workers(cfg: CfgNode) -> int:
    """``DATALOADER.NUM_WORKERS``, at most one per core: more only take each other's time."""
    return min(cfg.DATALOADER.NUM_WORKERS, usable_cores())


def _positions(cfg: CfgNode, names: Sequence[str], seed: Seed) -> Dataset:
    """The frames of these datasets, concatenated, and shuffled or sampled by rare class."""
    frames = {name: get_dicts(name) for name in names}
    dicts = [{**record, "dataset_name": name} for name in names for record in frames[name]]
    node = cfg.INPUT.RARE_CLASS
    if not node.ENABLED:
        return PositionalDataset(dicts, seed)
    counts = None
    if comm.is_main_process():
        num_classes, cache = len(class_names(cfg)), statistics_cache()
        counts = np.concatenate([
            class_statistics(frames[name], MetadataCatalog.get(name), num_classes, cache)
            for name in names
        ])  # fmt: skip
    counts = comm.all_gather(counts)[0]
    try:
        return RareClassDataset(dicts, counts, seed, node.TEMPERATURE, node.MIN_PIXELS)
    except ValueError as error:
        raise UserError(f"INPUT.RARE_CLASS with {', '.join(names)}: {error}") from error
