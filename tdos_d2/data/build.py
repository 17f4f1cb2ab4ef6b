"""Loaders for training and testing, Detectron2's with the data order of :mod:`.samplers`."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader

from tdos_d2.data.checks import check_classes, get_dicts
from tdos_d2.data.dataset_mapper import TDOSDatasetMapper
from tdos_d2.data.samplers import PositionalDataset, PositionSampler
from tdos_d2.errors import UserError


def build_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
    """Endless batches of the sets in ``DATASETS.TRAIN``, joined and shuffled.

    Batch i of all processes together depends on ``cfg.SEED`` and ``start_iteration + i`` only, not
    on the number of workers or on restarts. With a negative seed, one is drawn.

    Args:
        cfg: reads ``DATASETS``, ``DATALOADER.NUM_WORKERS``, ``SOLVER.IMS_PER_BATCH``, ``SEED`` and
            what :class:`TDOSDatasetMapper` reads.
        start_iteration: iteration that the first batch is for.

    Raises:
        UserError: a set is unknown, missing or incomplete, the sets differ in classes, or the
            batch cannot be shared out evenly.
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
    dataset = PositionalDataset(_train_dicts(cfg), seed)
    return build_detection_train_loader(
        # The sampler shares out batches to loader workers itself.
        ToIterableDataset(dataset, sampler, shard_sampler=False),
        mapper=TDOSDatasetMapper(cfg, is_train=True, seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """The images of one set in order, one per batch, shared out to processes.

    Raises:
        UserError: the set is unknown, missing or incomplete.
    """
    return build_detection_test_loader(
        get_dicts(dataset_name),
        mapper=TDOSDatasetMapper(cfg, is_train=False, dataset_name=dataset_name),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _train_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """Dicts of all training sets, each with the name of its set."""
    check_classes(cfg)
    return [
        {**record, "dataset_name": name}
        for name in cfg.DATASETS.TRAIN
        for record in get_dicts(name)
    ]
