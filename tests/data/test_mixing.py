"""Training sets mixed with weights: their shares, and the same order after any restart."""

from __future__ import annotations

from collections import Counter

import pytest
from detectron2.utils import comm
from loading import draw, equal

from tdos_d2.data import build_train_loader
from tdos_d2.data.samplers import MixedDataset, PositionalDataset
from tdos_d2.errors import UserError


def part(name, frames, seed):
    return PositionalDataset([{"file_name": f"{name}{i}"} for i in range(frames)], seed)


def mixed(weights=(1.0, 2.0, 5.0), seed=3):
    frames = {"a": 3, "b": 7, "c": 50}
    parts = [part(name, count, [seed, i]) for i, (name, count) in enumerate(frames.items())]
    return MixedDataset(parts, weights, seed)


def names(dataset, start, stop):
    return [dataset[p]["file_name"] for p in range(start, stop)]


def test_shares_are_those_of_the_weights():
    dataset = mixed()
    for block in range(3):
        counts = Counter(name[0] for name in names(dataset, 1000 * block, 1000 * block + 1000))
        assert counts == {"a": 125, "b": 250, "c": 625}
    # Spread out: also in short stretches, as by chance (standard deviation 4.7 of 125).
    first = Counter(name[0] for name in names(dataset, 0, 200))
    assert first["c"] == pytest.approx(125, abs=25) and first["a"] > 5
    thirds = Counter(name[0] for name in names(mixed((1.0, 1.0, 1.0)), 0, 1000))
    assert sorted(thirds.values()) == [333, 333, 334]


def test_every_set_goes_through_its_own_epochs():
    order = names(mixed(), 0, 3000)
    for name, frames in (("a", 3), ("b", 7), ("c", 50)):
        own = [entry for entry in order if entry[0] == name]
        epochs = [own[i : i + frames] for i in range(0, len(own) - frames + 1, frames)]
        assert all(len(set(epoch)) == frames for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


def test_order_does_not_depend_on_the_way_it_is_asked_for():
    forward = names(mixed(), 0, 2100)
    fresh = mixed()
    backward = [fresh[p]["file_name"] for p in reversed(range(0, 2100, 7))]
    assert backward == forward[::7][::-1]
    assert names(mixed(), 1990, 2010) == forward[1990:2010]
    assert names(mixed(seed=4), 0, 100) != forward[:100]
    assert mixed()[1234]["position"] == 1234


def test_too_small_weights():
    with pytest.raises(ValueError, match=r"at least 0\.002 of their sum"):
        mixed((1.0, 1.0, 0.001))
    assert {name[0] for name in names(mixed((1.0, 1.0, 0.005)), 0, 1000)} == set("abc")


@pytest.fixture
def two_sets(cfg, closed_set):
    cfg.DATASETS.TRAIN = (cfg.DATASETS.TRAIN[0], closed_set("mini_more", frames=3))
    cfg.DATASETS.TRAIN_WEIGHTS = [1.0, 3.0]
    return cfg


def test_loader_mixes(two_sets):
    counts = Counter(sample["dataset_name"] for sample in draw(two_sets, 30))
    # 90 of 120 expected, standard deviation 4.7
    assert counts["mini_more"] == pytest.approx(90, abs=20) and counts.total() == 120
    two_sets.DATASETS.TRAIN_WEIGHTS = []
    counts = Counter(sample["dataset_name"] for sample in draw(two_sets, 2))
    assert counts == {"mini_train": 5, "mini_more": 3}


def test_restart_workers_and_processes(two_sets, monkeypatch):
    alone = draw(two_sets, 8)
    assert equal(draw(two_sets, 3, start_iteration=5), alone[20:])
    two_sets.DATALOADER.NUM_WORKERS = 2
    assert equal(draw(two_sets, 4), alone[:16])
    two_sets.DATALOADER.NUM_WORKERS = 0
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        ranks.append(draw(two_sets, 8))
    assert equal(sorted([*ranks[0], *ranks[1]], key=lambda s: s["position"]), alone)


def test_rare_classes_of_each_set(two_sets, tmp_path, monkeypatch):
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    node = two_sets.INPUT.RARE_CLASS
    node.ENABLED, node.MIN_PIXELS, node.MIN_CROP_PIXELS = True, 100, 10
    samples = draw(two_sets, 30)
    counts = Counter(sample["dataset_name"] for sample in samples)
    assert counts["mini_more"] == pytest.approx(90, abs=20)
    assert {sample["rare_class"] for sample in samples} == {0, 1, 2}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], "TRAIN_WEIGHTS has 1 weights, but DATASETS.TRAIN has 2 names"),
        ([1.0, 0.0], "each above 0"),
        ([0.0, 0.0], "each above 0"),
        ([1.0, -1.0], "each above 0"),
        ([1.0, 0.001], "at least 0.002"),
        ([1.0, "much"], "must be numbers"),
    ],
)
def test_wrong_weights(two_sets, weights, expected):
    two_sets.DATASETS.TRAIN_WEIGHTS = weights
    with pytest.raises(UserError, match=expected) as error:
        build_train_loader(two_sets)
    assert "DATASETS.TRAIN_WEIGHTS" in str(error.value) and "\n" not in str(error.value)


def test_class_names_must_agree(two_sets, closed_set):
    other = closed_set("mini_other", stuff_classes=["road", "sky", "car"])
    two_sets.DATASETS.TRAIN = (two_sets.DATASETS.TRAIN[0], other)
    with pytest.raises(UserError, match=r"mini_train.*mini_other.*differ in classes") as error:
        build_train_loader(two_sets)
    assert "\n" not in str(error.value)
