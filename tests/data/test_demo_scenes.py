"""Drawn street scenes and the datasets made of them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from sklearn.metrics import average_precision_score

import tdos_d2.data  # noqa: F401 (registers the datasets)
from tdos_d2.data.demo_scenes.ood_objects import OOD_KINDS
from tdos_d2.data.demo_scenes.scenes import render_scene
from tdos_d2.data.demo_scenes.street import CLASSES, OOD
from tdos_d2.errors import UserError


@pytest.fixture(scope="module")
def streets():
    return [render_scene(np.random.default_rng([77, i])) for i in range(30)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of its own for the whole module."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDOS_CACHE", str(folder))
        yield folder


def read(path):
    return np.array(Image.open(path))


def test_scenes_hold_known_classes_only(streets):
    for image, label in streets:
        assert image.shape == (96, 192, 3) and image.dtype == np.uint8
        assert label.shape == (96, 192) and label.dtype == np.uint8
        assert label.max() < len(CLASSES)


def test_every_class_is_in_most_scenes(streets):
    labels = np.stack([label for _, label in streets])
    for number, name in enumerate(CLASSES):
        scenes = ((labels == number).sum((1, 2)) >= 20).sum()
        assert scenes >= 15, f"{name} in {scenes} of 30 scenes"


def test_colour_alone_does_not_tell_what_is_unknown(streets):
    """Ranking pixels by how rare their colour is among known things is far from enough."""
    known = np.concatenate([image[label != OOD] for image, label in streets]) // 16
    counts = 1 + np.bincount(known @ [256, 16, 1], minlength=4096)
    surprise, truth = [], []
    for kind in ("animal", "sofa", "barrel"):
        for seed in range(8):
            image, label = render_scene(np.random.default_rng(seed), ood_kind=kind)
            surprise.append(-np.log(counts[(image // 16) @ [256, 16, 1]]).ravel())
            truth.append((label == OOD).ravel())
    assert average_precision_score(np.concatenate(truth), np.concatenate(surprise)) < 0.4


def test_same_generator_same_scene():
    first = render_scene(np.random.default_rng(5), ood_kind="animal")
    again = render_scene(np.random.default_rng(5), ood_kind="animal")
    other = render_scene(np.random.default_rng(6), ood_kind="animal")
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


@pytest.mark.parametrize("kind", OOD_KINDS)
def test_share_of_outliers(kind):
    low, high = (0.005, 0.04) if kind in ("ladder", "tyre") else (0.015, 0.06)
    for seed in range(3):
        _, label = render_scene(np.random.default_rng(seed), ood_kind=kind)
        assert low <= (label == OOD).mean() <= high


@pytest.mark.parametrize("size", [(48, 48), (60, 130), (256, 384)])
def test_other_sizes(size):
    image, label = render_scene(np.random.default_rng(0), size, "sofa")
    assert image.shape == (*size, 3) and label.shape == size
    assert (label == OOD).any()


def test_ood_split(cache):
    metadata = MetadataCatalog.get("demo_ood_hard")
    dicts = DatasetCatalog.get("demo_ood_hard")
    assert [record["kind"] for record in dicts] == ["ladder"] * 12 + ["tyre"] * 12
    assert len({record["image_id"] for record in dicts}) == 24
    declared = {*metadata.id_values, *metadata.ood_values, *metadata.ignore_values}
    for record in dicts:
        label = read(record["sem_seg_file_name"])
        assert read(record["file_name"]).shape == (record["height"], record["width"], 3)
        assert set(np.unique(label)) <= declared
        assert (label == OOD).any()
    # 500 and 100 pixels at 1280x720
    assert (metadata.min_pred, metadata.min_gt) == (10, 2)
    assert metadata.evaluator_type == "ood"


def test_training_split_is_made_once_and_always_the_same(cache, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="tdos_d2"):
        first = DatasetCatalog.get("demo_val")
        again = DatasetCatalog.get("demo_val")
    assert first == again and len(first) == 40
    assert len(caplog.records) == 1
    assert not list(cache.glob("*/.*"))  # no temporary folders left
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path))
    for old, new in list(zip(first, DatasetCatalog.get("demo_val"), strict=True))[::10]:
        assert old["file_name"] != new["file_name"]
        for key in ("file_name", "sem_seg_file_name"):
            np.testing.assert_array_equal(read(old[key]), read(new[key]))


def test_scenes_do_not_depend_on_the_processes_that_draw_them(cache, tmp_path, monkeypatch):
    alone = DatasetCatalog.get("demo_val")
    monkeypatch.setattr("tdos_d2.data.demo_scenes.dataset._SCENES_PER_WORKER", 20)
    monkeypatch.setattr("tdos_d2.data.demo_scenes.dataset.usable_cores", lambda: 2)
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path))
    state = torch.get_rng_state()
    for one, other in zip(alone, DatasetCatalog.get("demo_val"), strict=True):
        for key in ("file_name", "sem_seg_file_name"):
            np.testing.assert_array_equal(read(one[key]), read(other[key]))
    # Else a run with an empty cache would differ from the next.
    assert torch.equal(torch.get_rng_state(), state)


def test_loses_a_race_gracefully(tmp_path, monkeypatch):
    """Another process finishes the same split while this one draws it."""
    from tdos_d2.data.demo_scenes import dataset as demo

    monkeypatch.setenv("TDOS_CACHE", str(tmp_path))

    def slow(split, made):
        for folder in (made, demo._cache_folder() / split):
            (folder / "images").mkdir(parents=True)

    monkeypatch.setattr(demo, "_write_scenes", slow)
    assert len(DatasetCatalog.get("demo_ood_dev")) == 40
    assert [path.name for path in demo._cache_folder().iterdir()] == ["ood_dev"]


def test_unwritable_cache(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TDOS_CACHE", str(blocked))
    with pytest.raises(UserError, match=r"demo_train.*file.*TDOS_CACHE") as error:
        DatasetCatalog.get("demo_train")
    assert "\n" not in str(error.value)


def test_splits_and_classes():
    train, val = MetadataCatalog.get("demo_train"), MetadataCatalog.get("demo_val")
    assert train.evaluator_type == val.evaluator_type == "sem_seg"
    for name in ("train", "val", "ood", "ood_hard", "ood_dev"):
        metadata = MetadataCatalog.get(f"demo_{name}")
        assert metadata.stuff_classes == list(CLASSES)
        assert len(metadata.stuff_colors) == len(CLASSES)
        assert metadata.ignore_label == 255
