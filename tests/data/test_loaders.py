"""The loaders: the same batches for any number of workers, processes and restarts."""

from __future__ import annotations

import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from loading import batches, equal, flat

from tdos_d2.data import build_test_loader, build_train_loader
from tdos_d2.errors import UserError


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_workers(cfg, workers, monkeypatch):
    monkeypatch.setattr("tdos_d2.data.loaders.usable_cores", lambda: 3)
    alone = batches(cfg, 5)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert equal(flat(batches(cfg, 5)), flat(alone))


def test_at_most_one_worker_per_core(cfg, monkeypatch):
    monkeypatch.setattr("tdos_d2.data.loaders.usable_cores", lambda: 2)
    for asked, expected in ((0, 0), (1, 1), (7, 2)):
        cfg.DATALOADER.NUM_WORKERS = asked
        assert build_test_loader(cfg, cfg.DATASETS.TRAIN[0]).num_workers == expected


def test_restart_continues(cfg):
    assert equal(flat(batches(cfg, 3, start_iteration=5)), flat(batches(cfg, 8)[5:]))


def test_processes_share_the_batch_of_one(cfg, monkeypatch):
    alone = batches(cfg, 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    # build_detection_train_loader asks for it by this name
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        ranks.append(batches(cfg, 4))
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        assert equal(sorted(flat(parts), key=lambda s: s["position"]), whole)


def test_seeds_differ(cfg):
    first = flat(batches(cfg, 2))
    cfg.SEED = 8
    assert not equal(flat(batches(cfg, 2)), first)
    cfg.SEED = -1  # drawn
    assert not equal(flat(batches(cfg, 2)), first)


def test_several_sets_are_joined(cfg, closed_set):
    cfg.DATASETS.TRAIN = (cfg.DATASETS.TRAIN[0], closed_set("mini_more", frames=3))
    names = [sample["image_id"] for sample in flat(batches(cfg, 2))]
    assert sorted(names) == sorted([*(f"mini_train/{i}" for i in range(5)),
                                    *(f"mini_more/{i}" for i in range(3))])  # fmt: skip


def test_several_sets_must_agree_on_classes(cfg, closed_set):
    other = closed_set("mini_more", stuff_classes=["road", "sky", "car"])
    cfg.DATASETS.TRAIN = (cfg.DATASETS.TRAIN[0], other)
    with pytest.raises(UserError, match="mini_train.*mini_more"):
        build_train_loader(cfg)


def test_batch_must_be_shared_evenly(cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH 4"):
        build_train_loader(cfg)


def test_error_in_a_worker_ends_with_the_cause(cfg, tmp_path, write):
    MetadataCatalog.pop(cfg.DATASETS.TRAIN[0])
    MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).set(stuff_classes=["only"])
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(UserError) as error:
        batches(cfg, 1)
    message = str(error.value)
    assert message.startswith("label ") and "does not declare" in message and "\\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_gives_each_frame_once_in_order(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_test_loader(cfg, cfg.DATASETS.TRAIN[0])
    samples = [sample for batch in loader for sample in batch]
    assert [s["image_id"] for s in samples] == [f"mini_train/{i}" for i in range(5)]
    assert [tuple(s["image"].shape) for s in samples] == [(3, 40 + 4 * i, 60) for i in range(5)]
