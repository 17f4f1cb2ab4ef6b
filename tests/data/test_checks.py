"""What is found out about data before a run starts."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tdos_d2.data import (
    check_classes,
    check_dataset,
    class_names,
    get_dicts,
    present_datasets,
    register_ood_dataset,
)
from tdos_d2.errors import UserError


@pytest.fixture
def ood_set(tmp_path, write):
    for stem in "abcde":
        write(tmp_path / "images" / f"{stem}.png", np.zeros((6, 8, 3), np.uint8))
        write(tmp_path / "labels" / f"{stem}.png", np.ones((6, 8), np.uint8))
    register_ood_dataset("mini_ood", tmp_path / "images", tmp_path / "labels")
    return "mini_ood"


def test_complete_sets(cfg, ood_set):
    assert check_dataset(cfg.DATASETS.TRAIN[0], training=True) == 5
    assert check_dataset(ood_set, training=False) == 5
    cfg.DATASETS.TEST = (ood_set, cfg.DATASETS.TRAIN[0])
    assert present_datasets(cfg) == list(cfg.DATASETS.TEST)


@pytest.mark.parametrize("call", [get_dicts, lambda name: check_dataset(name, True)])
def test_unknown_name_gets_suggestions(call):
    with pytest.raises(UserError, match="'camvid_trian', did you mean camvid_train"):
        call("camvid_trian")
    with pytest.raises(UserError, match="'zebra' .*register_ood_dataset") as error:
        call("zebra")
    assert "mean" not in str(error.value)


def test_missing_files_of_a_training_set(cfg):
    name = cfg.DATASETS.TRAIN[0]
    last = DatasetCatalog.get(name)[-1]
    Path(last["sem_seg_file_name"]).unlink()
    with pytest.raises(UserError, match=r"1 of 5 images have no label.*4_gt\.png"):
        check_dataset(cfg.DATASETS.TRAIN[0], training=True)
    Path(last["file_name"]).unlink()
    with pytest.raises(UserError, match=r"1 image files are missing.*4\.png"):
        check_dataset(cfg.DATASETS.TRAIN[0], training=True)


def test_first_frames_are_read(cfg, ood_set, tmp_path, write):
    first = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    write(Path(first["sem_seg_file_name"]), np.full((40, 60), 9, np.uint8))
    with pytest.raises(UserError, match=r"0_gt\.png.*'mini_train'.*9"):
        check_dataset(cfg.DATASETS.TRAIN[0], training=True)
    write(Path(first["sem_seg_file_name"]), np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match=r"0_gt\.png is 6x4"):
        check_dataset(cfg.DATASETS.TRAIN[0], training=True)
    Path(first["file_name"]).write_text("no image")
    with pytest.raises(UserError, match=r"0\.png"):
        check_dataset(cfg.DATASETS.TRAIN[0], training=True)
    write(tmp_path / "labels" / "a.png", np.full((6, 8), 7, np.uint8))
    with pytest.raises(UserError, match=r"a\.png.*'mini_ood'.*7"):
        check_dataset(ood_set, training=False)


def test_sets_that_are_not_for_training(cfg, ood_set, closed_set):
    cfg.DATASETS.TRAIN = (ood_set,)
    with pytest.raises(UserError, match="mini_ood is for testing"):
        check_classes(cfg)
    unlabelled = closed_set("unlabelled")
    for record in DatasetCatalog.get(unlabelled):
        del record["sem_seg_file_name"]
    assert check_dataset(unlabelled, training=False) == 5
    with pytest.raises(UserError, match="'unlabelled'.*sem_seg_file_name"):
        check_dataset(unlabelled, training=True)


def test_errors_of_other_loaders_become_one_line():
    def broken():
        raise AssertionError("No images\nfound")

    DatasetCatalog.register("broken", broken)
    with pytest.raises(UserError, match="'broken' cannot be loaded: No images found"):
        get_dicts("broken")
    DatasetCatalog.register("gone", lambda: os.listdir("/no/such/file"))
    with pytest.raises(UserError, match="'gone'.*/no/such/file"):
        get_dicts("gone")
    DatasetCatalog.register("void", list)
    with pytest.raises(UserError, match="'void' is empty"):
        get_dicts("void")


def test_class_names(cfg):
    assert class_names(cfg) == ["road", "car", "sky"]
    cfg.MODEL.TDOS.CLASS_NAMES = ["street", "automobile", "clouds"]
    assert class_names(cfg) == ["street", "automobile", "clouds"]
    check_classes(cfg)
    cfg.MODEL.TDOS.CLASS_NAMES = ["street", "automobile"]
    with pytest.raises(UserError, match="2 names, but dataset 'mini_train' has 3 classes"):
        check_classes(cfg)
    cfg.DATASETS.TRAIN = ()
    assert class_names(cfg) == ["street", "automobile"]  # enough to test a model
    cfg.MODEL.TDOS.CLASS_NAMES = []
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is empty"):
        class_names(cfg)


def test_missing_test_sets_are_errors_or_skipped_with_a_line(cfg, ood_set, tmp_path, caplog):
    register_ood_dataset("absent", tmp_path / "nowhere", tmp_path)
    cfg.DATASETS.TEST = ("absent", ood_set)
    with pytest.raises(UserError, match="'absent'.*nowhere"):
        present_datasets(cfg)
    cfg.TEST.MISSING = "skip"
    with caplog.at_level(logging.WARNING):
        assert present_datasets(cfg) == [ood_set]
    assert [r.getMessage() for r in caplog.records if "absent" in r.getMessage()]
    (tmp_path / "labels" / "c.png").unlink()  # on disk, but incomplete
    with pytest.raises(UserError, match="1 of 5"):
        present_datasets(cfg)
    cfg.TEST.MISSING = "maybe"
    with pytest.raises(UserError, match=r"TEST\.MISSING"):
        present_datasets(cfg)


def test_thousands_of_frames_are_checked_quickly(tmp_path, write):
    image = write(tmp_path / "images" / "0.jpg", np.zeros((36, 48, 3), np.uint8))
    label = write(tmp_path / "labels" / "0.png", np.zeros((36, 48), np.uint8))
    for i in range(1, 3000):
        (image.parent / f"{i}.jpg").hardlink_to(image)
        (label.parent / f"{i}.png").hardlink_to(label)
    register_ood_dataset("large", image.parent, label.parent)
    begin = time.process_time()
    assert check_dataset("large", training=False) == 3000
    assert time.process_time() - begin < 1.0
    assert MetadataCatalog.get("large").protocol == "anomaly"
