"""Registering folders of images and labels; the built-in sets and their trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

from tdos_d2.data import MissingDatasetError, get_dicts, register_ood_dataset
from tdos_d2.errors import UserError

IMAGE = np.zeros((6, 8, 3), np.uint8)
LABEL = np.zeros((6, 8), np.uint8)


def stems(name: str) -> list[str]:
    return [record["image_id"] for record in DatasetCatalog.get(name)]


def test_nested_folders_and_suffixes(tmp_path, write):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for stem, end in (("b/x.y", ".jpg"), ("b/c/z", ".webp"), ("a", ".PNG")):
        write(images / (stem + end), IMAGE)
        write(labels / f"{stem}_labels_semantic.png", LABEL)
    (images / "notes.txt").write_text("no image")
    write(images / ".hidden.png", IMAGE)
    register_ood_dataset("mini", images, labels, label_suffix="_labels_semantic.png")
    assert stems("mini") == ["a", "b/c/z", "b/x.y"]
    assert DatasetCatalog.get("mini")[2] == {
        "file_name": str(images / "b/x.y.jpg"),
        "sem_seg_file_name": str(labels / "b/x.y_labels_semantic.png"),
        "image_id": "b/x.y",
        "height": 6,
        "width": 8,
    }


@pytest.mark.parametrize("suffix", ["_labels_semantic.png", ".labels/labels_semantic.png"])
def test_labels_among_the_images_are_no_images(tmp_path, write, suffix):
    for stem in ("one", "deep/two"):
        write(tmp_path / f"{stem}.png", IMAGE)
        write(tmp_path / (stem + suffix), LABEL)
    write(tmp_path / ("stray" + suffix), LABEL)
    register_ood_dataset("mini", tmp_path, tmp_path, label_suffix=suffix)
    assert stems("mini") == ["deep/two", "one"]


def test_label_folder_inside_the_image_folder(tmp_path, write):
    write(tmp_path / "a.png", IMAGE)
    write(tmp_path / "gt" / "a.png", LABEL)
    register_ood_dataset("mini", tmp_path, tmp_path / "gt")
    assert stems("mini") == ["a"]


def test_image_folder_inside_the_label_folder(tmp_path, write):
    write(tmp_path / "images" / "a.png", IMAGE)
    write(tmp_path / "a.png", LABEL)
    register_ood_dataset("mini", tmp_path / "images", tmp_path)
    assert stems("mini") == ["a"]


def test_instance_masks_among_images_and_labels(tmp_path, write):
    """They are neither images nor stray labels."""
    write(tmp_path / "one.jpg", IMAGE)
    for end in (".png", "_ids.png"):
        write(tmp_path / f"one{end}", LABEL)
    places = {"instance_root": tmp_path, "instance_suffix": "_ids.png"}
    register_ood_dataset("mini", tmp_path, tmp_path, **places)
    assert stems("mini") == ["one"]
    (record,) = DatasetCatalog.get("mini")
    assert record["instance_file_name"] == str(tmp_path / "one_ids.png")
    assert MetadataCatalog.get("mini").folder.stray_labels() == []


def test_glob_and_links(tmp_path, write):
    for name in ("validation1.jpg", "test1.jpg"):
        write(tmp_path / "images" / name, IMAGE)
    write(tmp_path / "labels" / "validation1.png", LABEL)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    register_ood_dataset("mini", tmp_path / "link", tmp_path / "labels", image_glob="validation*")
    assert stems("mini") == ["validation1"]


def test_registration_is_lazy_and_names_what_is_missing(tmp_path, write):
    register_ood_dataset("mini", tmp_path / "images", tmp_path / "labels")
    with pytest.raises(MissingDatasetError, match=f"'mini'.*{tmp_path}/images"):
        DatasetCatalog.get("mini")
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=f"no images in {tmp_path}/images"):
        DatasetCatalog.get("mini")
    # Images without the folder of their labels: the set is there, and incomplete.
    write(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=f"no folder {tmp_path}/labels with the labels") as found:
        DatasetCatalog.get("mini")
    assert not isinstance(found.value, MissingDatasetError)
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(UserError, match=f"no images in {tmp_path}/images"):
        DatasetCatalog.get("mini")
    for stem in "abc":
        write(tmp_path / "images" / f"{stem}.jpg", IMAGE)
    write(tmp_path / "labels" / "a.png", LABEL)
    with pytest.raises(UserError, match=r"2 of 3 images have no label, first .*b\.jpg"):
        DatasetCatalog.get("mini")
    for stem in "bc":
        write(tmp_path / "labels" / f"{stem}.png", LABEL)
    assert stems("mini") == ["a", "b", "c"]
    write(tmp_path / "images" / "c.png", IMAGE)
    with pytest.raises(UserError, match=r"c\.jpg and c\.png"):
        DatasetCatalog.get("mini")


def test_file_that_is_no_image_is_named(tmp_path, write):
    write(tmp_path / "labels" / "a.png", LABEL)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    register_ood_dataset("mini", tmp_path / "images", tmp_path / "labels")
    with pytest.raises(UserError, match=r"images/a\.png"):
        DatasetCatalog.get("mini")


def test_metadata_of_an_ood_set():
    register_ood_dataset("plain", "x", "y", ood_values=np.array([1]))
    metadata = MetadataCatalog.get("plain")
    assert metadata.evaluator_type == "ood" and metadata.ignore_label == 255
    assert (metadata.id_values, metadata.ood_values, metadata.ignore_values) == ((0,), (1,), (255,))
    assert metadata.protocol == "anomaly" and metadata.test_size is None
    assert metadata.min_pred is None and metadata.min_gt is None
    register_ood_dataset("full", "x", "y", protocol="obstacle", min_pred=9, test_size=[64, 32])
    metadata = MetadataCatalog.get("full")
    assert metadata.protocol == "obstacle" and metadata.min_pred == 9
    assert metadata.test_size == (64, 32)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"undeclared": "void"}, "undeclared"),
        ({"protocol": "pixels"}, "anomaly, obstacle"),
        ({"ood_values": (0, 1)}, "the label value 0 is declared twice"),
        ({"ood_values": (256,)}, "0..255"),
        ({"test_size": (0, 5)}, "test_size"),
        ({"test_size": 512}, "test_size must be a list of integers, got 512"),
        ({"ood_values": (1.0,)}, r"ood_values must be a list of integers, got \(1\.0,\)"),
        ({"ood_values": (True,)}, "ood_values must be"),
        ({"id_values": 1}, "id_values must be a list of integers, got 1"),
        ({"ignore_values": "255"}, "ignore_values must be"),
        ({"min_pred": "9"}, "min_pred must be an integer, got '9'"),
        ({"min_gt": 9.5}, "min_gt must be"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(UserError, match=f"'mini'.*{message}"):
        register_ood_dataset("mini", "x", "y", **wrong)
    assert "mini" not in DatasetCatalog


def test_a_name_is_registered_once():
    register_ood_dataset("mini", "x", "y")
    with pytest.raises(UserError, match="'mini' is already registered"):
        register_ood_dataset("mini", "x", "y")
    DatasetCatalog.remove("mini")
    with pytest.raises(UserError, match="'mini' already has other metadata"):
        register_ood_dataset("mini", "x", "y", protocol="obstacle")


@pytest.mark.parametrize("name", ["camvid_train", "camvid_ood", "smiyc_anomalytrack_val"])
def test_builtin_sets_name_the_data_root(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDatasetError, match=f"{name}.*{tmp_path}.*DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDatasetError, match="no folder datasets/"):
        DatasetCatalog.get(name)


def make_cityscapes(root: Path, write) -> str:
    images, labels = root / "leftImg8bit", root / "gtFine"
    for stem in ("ulm/ulm_0_", "bonn/bonn_0_", "bonn/bonn_1_"):
        write(images / f"{stem}leftImg8bit.png", IMAGE)
        for kind in ("labelIds", "instanceIds", "labelTrainIds"):
            write(labels / f"{stem}gtFine_{kind}.png", LABEL)
        size = {"imgHeight": 6, "imgWidth": 8}
        (labels / f"{stem}gtFine_polygons.json").write_text(json.dumps(size))
    DatasetCatalog.register("city", lambda: load_cityscapes_semantic(str(images), str(labels)))
    MetadataCatalog.get("city").set(
        evaluator_type="cityscapes_sem_seg",
        image_dir=str(images),
        gt_dir=str(labels),
        stuff_classes=["road"],
        ignore_label=255,
    )
    return "city"


def test_cityscapes_tree_is_checked_before_detectron2_reads_it(tmp_path, write):
    name = make_cityscapes(tmp_path, write)
    assert len(get_dicts(name)) == 3
    stray = write(tmp_path / "leftImg8bit/bonn/.thumb.png", IMAGE)
    with pytest.raises(UserError, match=r"\.thumb\.png is in the way"):
        get_dicts(name)
    stray.unlink()
    (tmp_path / "gtFine/ulm/ulm_0_gtFine_labelTrainIds.png").unlink()
    lacking = r"1 label files.*ulm_0_gtFine_labelTrainIds.*prepare_cityscapes"
    with pytest.raises(UserError, match=lacking):
        get_dicts(name)
    (tmp_path / "gtFine/bonn/bonn_1_gtFine_polygons.json").unlink()
    with pytest.raises(UserError, match="2 label files.*bonn_1_gtFine_polygons.json$"):
        get_dicts(name)
    (tmp_path / "gtFine").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingDatasetError, match=f"{tmp_path}/gtFine.*DETECTRON2_DATASETS"):
        get_dicts(name)
