"""Small datasets on disk."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from layouts import write_image

import tdos_d2


@pytest.fixture
def write():
    return write_image


@pytest.fixture(autouse=True)
def catalogs():
    """Forget what a test registers."""
    datasets, metadata = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        for name in set(catalog) - set(before):
            catalog.pop(name)


@pytest.fixture
def closed_set(tmp_path):
    """Registers a training set of 3 classes whose images tell their labels apart by colour.

    Class c has the colour (60 c + 20,) * 3. Frame i has the size (40 + 4 i, 60).
    """

    def make(name: str = "mini_train", frames: int = 5, **metadata) -> str:
        dicts = []
        for i in range(frames):
            rng = np.random.default_rng(i)
            blocks = rng.integers(0, 3, (10 + i, 15), dtype=np.uint8)
            label = blocks.repeat(4, 0).repeat(4, 1)
            image = np.stack([label * 60 + 20] * 3, -1)
            dicts.append(
                {
                    "file_name": str(write_image(tmp_path / name / f"{i}.png", image)),
                    "sem_seg_file_name": str(write_image(tmp_path / name / f"{i}_gt.png", label)),
                    "image_id": f"{name}/{i}",
                }
            )
        DatasetCatalog.register(name, lambda: dicts)
        fields = {"stuff_classes": ["road", "car", "sky"], "ignore_label": 255, **metadata}
        MetadataCatalog.get(name).set(**fields)
        return name

    return make


@pytest.fixture
def cfg(closed_set):
    """A config that trains on ``closed_set`` with crops of 32x48."""
    cfg = get_cfg()
    tdos_d2.add_tdos_config(cfg)
    cfg.DATASETS.TRAIN = (closed_set(),)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 48]
    cfg.SEED = 7
    return cfg
