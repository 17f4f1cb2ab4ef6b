"""A training set of a few small images, and a config that trains on it in seconds."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from small_set import CLASSES, register


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they give on tensors this small, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_dataset(tmp_path_factory):
    """Registered name of a set of five 64x96 frames with three classes."""
    folder = tmp_path_factory.mktemp("small")
    name = f"small_{folder.name}"
    register(name, folder)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def small_cfg(tiny_cfg, small_dataset, tmp_path):
    """A run of few iterations on ``small_dataset``, without tests."""
    cfg = tiny_cfg
    cfg.MODEL.TDOS.CLASS_NAMES = CLASSES
    cfg.DATASETS.TRAIN = (small_dataset,)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 64]
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg
