"""Cityscapes' train ids and class statistics."""

from __future__ import annotations

import json

import numpy as np
import prepare_cityscapes
import pytest
from _common import CITYSCAPES_TRAIN_IDS, PrepareError, read_ids
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from layouts import SIZE, cityscapes, stripes


@pytest.fixture
def download(root):
    """Cityscapes as it is downloaded: without train ids."""
    folder = cityscapes(root)
    for path in folder.rglob("*labelTrainIds.png"):
        path.unlink()
    return folder


def frames_of_detectron2(folder, split):
    parts = [f"{folder}/{part}/{split}/" for part in ("leftImg8bit", "gtFine")]
    return load_cityscapes_semantic(*parts)


def test_train_ids_are_those_of_detectron2():
    expected = np.full(256, 255)
    for category in CITYSCAPES_CATEGORIES:
        expected[category["id"]] = category["trainId"]
    np.testing.assert_array_equal(CITYSCAPES_TRAIN_IDS, expected)


def test_in_place(download, contents):
    before = contents(download)
    with pytest.raises(PrepareError, match="say --in-place"):
        prepare_cityscapes.main([])
    prepare_cityscapes.main(["--in-place", "--dry-run"])
    assert contents(download) == before
    prepare_cityscapes.main(["--in-place"])
    after = contents(download)
    assert {name: after[name] for name in before} == before
    new = sorted(set(after) - set(before))
    assert new[:2] == ["class_statistics_train.json", "class_statistics_val.json"]
    assert len(new) == 8 and all(name.endswith("_gtFine_labelTrainIds.png") for name in new[2:])
    for name in new[2:]:
        label = read_ids(download / name)
        np.testing.assert_array_equal(label, stripes(0, 1, 13, 255))
    assert len(frames_of_detectron2(download, "train")) == 3


@pytest.mark.parametrize("copy", [False, True])
def test_a_second_tree(root, download, contents, copy):
    source = download.rename(root / "download")
    before = contents(source)
    options = ["--source", str(source), "--no-statistics", *(["--copy"] if copy else [])]
    with pytest.raises(PrepareError, match="lies in"):
        prepare_cityscapes.main([*options, "--output", str(source / "new")])
    prepare_cityscapes.main(options)
    assert contents(source) == before
    after = contents(root / "cityscapes")
    assert {name: after.get(name) for name in before} == before
    assert len(after) == len(before) + 6
    assert any(path.is_symlink() for path in (root / "cityscapes").rglob("*")) != copy
    assert len(frames_of_detectron2(root / "cityscapes", "val")) == 3


def test_statistics(download):
    prepare_cityscapes.main(["--in-place", "--splits", "train"])
    found = json.loads((download / "class_statistics_train.json").read_text())
    area = SIZE[0] * SIZE[1] // 4  # a stripe of four
    for name, pixels in found["pixels"].items():
        seen = name in ("road", "sidewalk", "car")
        assert pixels == (3 * area if seen else 0)
        assert found["frames_with_class"][name] == (3 if seen else 0)
    assert (found["frames"], len(found["pixels"])) == (3, 19)
    # Of what is there now, not of what was there first.
    found["frames"] = 1
    (download / "class_statistics_train.json").write_text(json.dumps(found))
    prepare_cityscapes.main(["--in-place", "--splits", "train"])
    assert json.loads((download / "class_statistics_train.json").read_text())["frames"] == 3
    assert not (download / "class_statistics_val.json").exists()


def test_a_label_that_cannot_be_counted_is_named(root):
    path = cityscapes(root) / "gtFine/train/bochum/bochum_000000_000019_gtFine_labelTrainIds.png"
    path.write_bytes(b"")
    with pytest.raises(PrepareError, match=r"cannot read label .*bochum_.*labelTrainIds\.png"):
        prepare_cityscapes.main(["--in-place"])
    assert not (root / "cityscapes" / "class_statistics_train.json").exists()


def test_polygons_by_hand():
    def box(label, left, top, right, bottom, **more):
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        return {"label": label, "polygon": corners, **more}

    annotation = {
        "imgHeight": 12,
        "imgWidth": 20,
        "objects": [
            box("road", 0, 6, 19, 11),
            box("cargroup", 2, 3, 10, 8),
            box("license plate", 4, 4, 6, 5),
            box("ego vehicle", 0, 10, 19, 11),
            box("sky", 0, 0, 19, 11, deleted=1),
        ],
    }
    expected = np.full((12, 20), 255)
    expected[6:12] = 0
    expected[3:9, 2:11] = 13
    expected[10:12] = 255
    np.testing.assert_array_equal(prepare_cityscapes.draw_polygons(annotation), expected)


def test_polygons_stand_in_for_label_ids(download):
    for path in download.rglob("*labelIds.png"):
        path.unlink()
    prepare_cityscapes.main(["--in-place", "--no-statistics"])
    made = list(download.rglob("*labelTrainIds.png"))
    assert len(made) == 6 and all((read_ids(path) == 255).all() for path in made)


def test_messages(root, download, capsys):
    stem = download / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_"
    ids, polygons = (stem.with_name(stem.name + end) for end in ("labelIds.png", "polygons.json"))
    ids.unlink()
    annotation = {"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "boat", "polygon": []}]}
    polygons.write_text(json.dumps(annotation))
    with pytest.raises(PrepareError, match="lindau.*polygons.json: unknown label 'boat'"):
        prepare_cityscapes.main(["--in-place"])
    polygons.unlink()
    with pytest.raises(PrepareError, match="1 of 3 labels .* first .*lindau_.*labelIds.png"):
        prepare_cityscapes.main(["--in-place"])
    (download / "gtFine" / "val").rename(root / "val")
    prepare_cityscapes.main(["--in-place", "--no-statistics"])
    assert f"left out: no folder {download}/gtFine/val" in capsys.readouterr().out
    (download / "gtFine" / "train").rename(root / "train")
    with pytest.raises(PrepareError, match="nothing to do: no folder .*gtFine/train or val"):
        prepare_cityscapes.main(["--in-place"])
