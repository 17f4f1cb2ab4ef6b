"""One config per benchmark and encoder: test set and test size."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import write_image

from tdos_d2 import get_config_file
from tdos_d2.data import TDOSDatasetMapper, register_ood_dataset
from tdos_d2.data.checks import check_classes, check_registered
from tdos_d2.engine import load_config

# As in the released code's configs: a frame of the set and what the model sees of it, (W, H).
SIZES = {
    "anomalytrack": [((2048, 1024), (1280, 640)), ((1280, 720), (1280, 720))],
    "obstacletrack": [((1920, 1080), (1920, 1080))],
    "fs_laf": [((2048, 1024), (2048, 1024))],
    "fs_static": [((2048, 1024), (2048, 1024))],
    "road_anomaly": [((1280, 720), (512, 288))],
    "laf_noknown": [((2048, 1024), (2048, 1024))],
}


@pytest.mark.parametrize("encoder", ["vitb", "rn50"])
@pytest.mark.parametrize("benchmark", SIZES)
def test_every_benchmark_has_a_config(tmp_path, encoder, benchmark):
    cfg = load_config(get_config_file(f"benchmarks/tdos_{encoder}_{benchmark}.yaml"))
    (name,) = cfg.DATASETS.TEST
    check_registered(name)
    assert encoder == {"ViT-B-16": "vitb", "RN50": "rn50"}[cfg.MODEL.CLIP.NAME]
    for number, ((width, height), (seen_width, seen_height)) in enumerate(SIZES[benchmark]):
        file = write_image(tmp_path / f"{number}.png", np.zeros((height, width, 3), np.uint8))
        mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)
        assert mapper({"file_name": str(file)})["image"].shape == (3, seen_height, seen_width)


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
    cfg = load_config(get_config_file("benchmarks/tdos_vitb_road_anomaly.yaml"))
    mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name="mini")
    assert mapper({"file_name": str(file)})["image"].shape == (3, 30, 20)
