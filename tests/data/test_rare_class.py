"""Rare class sampling: classes by DAFormer's formula, images and crops that show them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from loading import draw, equal

from tdos_d2.data import TDOSDatasetMapper, build_train_loader, class_statistics
from tdos_d2.data.rare_class import RareClassDataset, class_probabilities
from tdos_d2.errors import UserError

# Four images of 100 pixels: 60 %, 30 %, 10 % and none of the pixels.
COUNTS = np.array([[80, 20, 0, 0], [70, 10, 20, 0], [40, 60, 0, 0], [50, 30, 20, 0]])
DICTS = [{"file_name": str(i), "list": [i]} for i in range(4)]


def softmax(*logits: float) -> list[float]:
    return [math.exp(x) / sum(map(math.exp, logits)) for x in logits]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_probabilities(temperature):
    expected = softmax(*((1 - share) / temperature for share in (0.6, 0.3, 0.1, 0.0)))
    np.testing.assert_allclose(class_probabilities(COUNTS, temperature), expected, rtol=1e-12)


def test_small_temperatures_do_not_overflow():
    probabilities = class_probabilities(COUNTS[:, :3], 1e-4)
    np.testing.assert_allclose(probabilities, [0, 0, 1], atol=1e-12)


def test_classes_come_as_often_as_they_should_in_images_that_show_them():
    dataset = RareClassDataset(DICTS, COUNTS, seed=1, temperature=0.5, min_pixels=19)
    # No image shows the last class: it takes no part.
    weights = [math.exp((1 - share) / 0.5) for share in (0.6, 0.3, 0.1)]
    expected = [weight / sum(weights) for weight in weights]
    records = [dataset[p] for p in range(3000)]
    for number, share in enumerate(expected):
        own = [r for r in records if r["rare_class"] == number]
        assert len(own) / 3000 == pytest.approx(share, abs=0.04)  # 4 standard deviations
        shown = [str(i) for i in np.flatnonzero(COUNTS[:, number] > 19)]
        images = [r["file_name"] for r in own]
        assert set(images) == set(shown)
        for image in shown:  # equally often
            assert images.count(image) / len(own) == pytest.approx(1 / len(shown), abs=0.08)


def test_draws_depend_on_seed_and_position_only():
    def draws(seed, positions):
        dataset = RareClassDataset(DICTS, COUNTS, seed, 1.0, 0)
        return {p: (dataset[p]["file_name"], dataset[p]["rare_class"]) for p in positions}

    forward = draws(3, range(50))
    assert draws(3, reversed(range(50))) == forward
    assert draws(4, range(50)) != forward
    dataset = RareClassDataset(DICTS, COUNTS, 3, 1.0, 0)
    dataset[0]["list"].append("changed")
    assert "changed" not in dataset[0]["list"] and dataset[7]["position"] == 7


def test_no_image_shows_anything():
    with pytest.raises(ValueError, match="no image has more than 80 pixels"):
        RareClassDataset(DICTS, COUNTS, 0, 1.0, 80)


@pytest.fixture
def rare(cfg, tmp_path, write, monkeypatch):
    """A config with a set of six 40x240 frames; two of them have 20x20 pixels of class 2."""
    dicts = []
    for i in range(6):
        label = np.zeros((40, 240), np.uint8)
        label[20:] = 1
        if i in (1, 4):
            label[5:25, 150:170] = 2
        image = np.stack([label * 60] * 3, -1)
        dicts.append(
            {
                "file_name": str(write(tmp_path / "rare" / f"{i}.png", image)),
                "sem_seg_file_name": str(write(tmp_path / "rare" / f"{i}_gt.png", label)),
            }
        )
    DatasetCatalog.register("rare", lambda: dicts)
    MetadataCatalog.get("rare").set(stuff_classes=["road", "car", "sky"], ignore_label=255)
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    cfg.DATASETS.TRAIN = ("rare",)
    cfg.INPUT.SCALE_RANGE = (0.5, 1.5)
    cfg.INPUT.CROP.SIZE = [30, 60]
    cfg.INPUT.OOD_PASTE.SOURCE = "none"
    node = cfg.INPUT.RARE_CLASS
    node.ENABLED, node.MIN_PIXELS, node.MIN_CROP_PIXELS = True, 300, 150
    return cfg


def test_crops_show_their_class(rare):
    samples = draw(rare, 20)
    assert {s["rare_class"] for s in samples} == {0, 1, 2}
    for sample in samples:
        assert (sample["sem_seg"] == sample["rare_class"]).sum() > 150
    drawn = [s for s in samples if s["rare_class"] == 2]
    assert len(drawn) / len(samples) == pytest.approx(1 / 3, abs=0.2)
    assert all(s["file_name"].endswith(("1.png", "4.png")) for s in drawn)
    # Without it crops of these two frames do so in a fourth of the cases or so.
    rare.INPUT.RARE_CLASS.ENABLED = False
    samples = [s for s in draw(rare, 40) if s["file_name"].endswith(("1.png", "4.png"))]
    assert sum((s["sem_seg"] == 2).sum() > 150 for s in samples) < 0.6 * len(samples)
    assert "rare_class" not in samples[0]


def test_ten_further_tries_then_any_crop(rare, monkeypatch):
    rare.INPUT.RARE_CLASS.MIN_CROP_PIXELS = 10**6
    mapper = TDOSDatasetMapper(rare, is_train=True)
    calls = []
    transform = mapper._transform
    monkeypatch.setattr(mapper, "_transform", lambda *a: calls.append(1) or transform(*a))
    record = {**DatasetCatalog.get("rare")[1], "position": 0}
    assert mapper({**record, "rare_class": 2})["sem_seg"].shape == (30, 60)
    assert len(calls) == 11
    mapper(record)
    assert len(calls) == 12


def test_classes_are_counted_once(rare, monkeypatch):
    first = draw(rare, 2)

    def fail(*_):
        raise AssertionError("counted again")

    monkeypatch.setattr(class_statistics, "_count", fail)
    assert equal(draw(rare, 2), first, "rare_class")


def test_restart_workers_and_processes(rare, monkeypatch):
    alone = draw(rare, 6)
    assert equal(draw(rare, 2, start_iteration=4), alone[16:], "rare_class")
    rare.DATALOADER.NUM_WORKERS = 2
    assert equal(draw(rare, 3), alone[:12], "rare_class")
    rare.DATALOADER.NUM_WORKERS = 0
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    sent, ranks = [], []
    # What the first process counted goes to the second.
    monkeypatch.setattr(comm, "all_gather", lambda data: sent.append(data) or sent[:1])
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        ranks.append(draw(rare, 6))
    assert sent[0] is not None and sent[1] is None
    assert equal(sorted([*ranks[0], *ranks[1]], key=lambda s: s["position"]), alone, "rare_class")


def test_images_without_enough_pixels_are_an_error(rare):
    rare.INPUT.RARE_CLASS.MIN_PIXELS = 10**6
    with pytest.raises(UserError, match=r"INPUT\.RARE_CLASS with rare: no image has more than"):
        build_train_loader(rare)
