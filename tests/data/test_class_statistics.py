"""Counting classes once."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from layouts import stripes, write_image

from tdos_d2.data import class_statistics as module
from tdos_d2.data.class_statistics import class_statistics
from tdos_d2.errors import UserError

COUNTED = [[10, 10, 0, 10], [30, 0, 0, 0], [0, 20, 10, 0]]  # last column: OOD


@pytest.fixture
def labels(tmp_path):
    """Three labels of 5x6 with the classes 0, 1, 2, OOD (7), and their metadata."""
    dicts = []
    for i, values in enumerate(((0, 1, 7), (0,), (1, 2, 1))):
        path = write_image(tmp_path / "labels" / f"{i}.png", stripes(*values, size=(5, 6)))
        dicts.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
    DatasetCatalog.register("mini", lambda: dicts)
    metadata = MetadataCatalog.get("mini").set(stuff_classes=["a", "b", "c"], ood_values=(7,))
    return dicts, metadata


def no_more(*_):
    raise AssertionError("counted again")


@pytest.mark.parametrize("jobs", [1, 3])
def test_counts_by_hand(labels, jobs):
    dicts, metadata = labels
    counts = class_statistics(dicts, metadata, 4, jobs=jobs)
    assert counts.tolist() == COUNTED
    assert counts.dtype == np.int64
    assert class_statistics(dicts, metadata, 3).tolist() == [row[:3] for row in COUNTED]
    assert class_statistics([], metadata, 3).shape == (0, 3)


def test_void_is_no_class(labels, tmp_path):
    dicts, metadata = labels
    write_image(tmp_path / "labels" / "1.png", stripes(255, 2, size=(5, 6)))
    assert class_statistics(dicts, metadata, 4)[1].tolist() == [0, 0, 15, 0]


def test_counted_once_wherever_the_files_are(labels, tmp_path, monkeypatch):
    dicts, metadata = labels
    cache = tmp_path / "cache"
    class_statistics(dicts, metadata, 4, cache)
    monkeypatch.setattr(module, "read_label", no_more)
    assert class_statistics(dicts, metadata, 4, cache).tolist() == COUNTED
    assert class_statistics(dicts[::-1], metadata, 3, cache).tolist() == [
        row[:3] for row in COUNTED[::-1]
    ]
    shutil.move(tmp_path / "labels", tmp_path / "moved")
    moved = [
        {"sem_seg_file_name": d["sem_seg_file_name"].replace("labels", "moved")} for d in dicts
    ]
    assert class_statistics(moved, metadata, 4, cache).tolist() == COUNTED


def test_other_content_is_counted_again(labels, tmp_path):
    dicts, metadata = labels
    cache = tmp_path / "cache"
    class_statistics(dicts, metadata, 4, cache)
    path = tmp_path / "labels" / "1.png"
    before = path.stat()
    write_image(path, stripes(2, size=(5, 6)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert class_statistics(dicts, metadata, 4, cache)[1].tolist() == [0, 0, 30, 0]
    # The same files, read in another way.
    other = MetadataCatalog.get("other").set(stuff_classes=["a", "b", "c"], ignore_values=(7,))
    assert class_statistics(dicts, other, 4, cache)[0].tolist() == [10, 10, 0, 0]


def test_a_broken_or_unusable_cache(labels, tmp_path, caplog):
    dicts, metadata = labels
    cache = tmp_path / "cache"
    class_statistics(dicts, metadata, 4, cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert class_statistics(dicts, metadata, 4, cache).tolist() == COUNTED
    with caplog.at_level(logging.WARNING):
        class_statistics(dicts, metadata, 4, tmp_path / "labels" / "0.png")
    assert "not kept" in caplog.text


def test_messages(labels, tmp_path):
    dicts, metadata = labels
    with pytest.raises(UserError, match=r"9\.jpg has no label"):
        class_statistics([*dicts, {"file_name": "9.jpg"}], metadata, 4)
    write_image(tmp_path / "labels" / "2.png", stripes(3, size=(5, 6)))
    with pytest.raises(UserError, match=r"labels/2\.png has values"):
        class_statistics(dicts, metadata, 4)
    (tmp_path / "labels" / "2.png").unlink()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match=r"labels/2\.png"):
            class_statistics(dicts, metadata, 4, cache)
