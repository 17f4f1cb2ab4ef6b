"""One config per encoder for all benchmarks, each at its own test size."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import write_image

from tdos_d2 import get_config_file
from tdos_d2.data import TDOSDatasetMapper, register_ood_dataset
from tdos_d2.data.verify.quick import check_classes, check_registered
from tdos_d2.engine import load_config
from tdos_d2.errors import UserError

# As in the released code's configs: a frame of the set and what the model sees of it, (W, H).
SIZES = {
    "smiyc_anomalytrack_val": [((2048, 1024), (1280, 640)), ((1280, 720), (1280, 720))],
    "smiyc_obstacletrack_val": [((1920, 1080), (1920, 1080))],
    "fs_laf_val": [((2048, 1024), (2048, 1024))],
    "fs_static_v2_val": [((2048, 1024), (2048, 1024))],
    "road_anomaly": [((1280, 720), (512, 288))],
    "laf_test_noknown": [((2048, 1024), (2048, 1024))],
}


@pytest.mark.parametrize("encoder", ["vitb", "rn50"])
def test_one_config_gives_every_benchmark_its_size(tmp_path, encoder):
    cfg = load_config(get_config_file(f"benchmarks/tdos_{encoder}.yaml"))
    assert encoder == {"ViT-B-16": "vitb", "RN50": "rn50"}[cfg.MODEL.CLIP.NAME]
    assert cfg.DATASETS.TRAIN == ("cityscapes_fine_sem_seg_train",)
    assert set(cfg.DATASETS.TEST) == set(SIZES)
    for name, sizes in SIZES.items():
        mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)
        for (width, height), (seen_width, seen_height) in sizes:
            frame = np.zeros((height, width, 3), np.uint8)
            file = write_image(tmp_path / f"{width}.png", frame)
            assert mapper({"file_name": str(file)})["image"].shape == (3, seen_height, seen_width)


def test_other_sets_have_the_size_of_the_config(tmp_path):
    cfg = load_config(get_config_file("benchmarks/tdos_vitb.yaml"))
    cfg.INPUT.MIN_SIZE_TEST = 10
    file = write_image(tmp_path / "a.png", np.zeros((40, 80, 3), np.uint8))
    for name in ("camvid_ood", None):
        mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)
        assert mapper({"file_name": str(file)})["image"].shape == (3, 10, 20)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([["road_anomaly", 512]], "rows of"),
        ([["road_anomaly", 512, 256]], "rows of"),
        ([["road_anomaly", 0, 256]], "rows of"),
        (["road_anomaly"], "rows of"),
        ([["road_anomalie", 512, 512]], "did you mean road_anomaly"),
        ([["road_anomaly", 512, 512], ["road_anomaly", 256, 256]], "twice"),
    ],
)
def test_malformed_sizes(rows, message):
    cfg = load_config(get_config_file("benchmarks/tdos_vitb.yaml"))
    cfg.INPUT.TEST_SIZES = rows
    with pytest.raises(UserError, match=message):
        TDOSDatasetMapper(cfg, is_train=False, dataset_name="camvid_ood")


@pytest.mark.parametrize("encoder", ["vitb", "rn50"])
def test_published_training_data(encoder):
    cfg = load_config(get_config_file(f"tdos_{encoder}_poc.yaml"))
    assert cfg.DATASETS.TRAIN == ("poc_cityscapes_coco_train",)
    assert cfg.INPUT.OOD_PASTE.SOURCE == "none" and cfg.INPUT.RARE_CLASS.ENABLED
    check_classes(cfg)
    for name in cfg.DATASETS.TEST:
        check_registered(name)


def test_test_size_of_a_set_counts_before_the_config(tmp_path):
    file = write_image(tmp_path / "a.png", np.zeros((40, 80, 3), np.uint8))
    register_ood_dataset("mini", tmp_path, tmp_path, test_size=(20, 30))
    cfg = load_config(get_config_file("benchmarks/tdos_vitb.yaml"))
    cfg.INPUT.TEST_SIZES = [["mini", 10, 10]]
    mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name="mini")
    assert mapper({"file_name": str(file)})["image"].shape == (3, 30, 20)
