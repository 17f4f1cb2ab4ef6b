"""The list of COCO objects that can be pasted as outliers."""

from __future__ import annotations

import json

import numpy as np
import prepare_coco_outliers
import pytest
from _common import PrepareError
from layouts import picture, write_image

from tdos_d2.data.coco_objects import CocoSource

NAMES = [*prepare_coco_outliers.CITYSCAPES_CATEGORIES, "dog", "parking meter"]
SQUARE = [[10.0, 10.0, 90.0, 10.0, 90.0, 90.0, 10.0, 90.0]]
# number: category, area, iscrowd
OBJECTS = {
    1: ("dog", 6400, 0),
    2: ("dog", 4095.9, 0),
    3: ("dog", 6400, 1),
    4: ("train", 9000, 0),
    5: ("stop sign", 9000, 0),
    6: ("parking meter", 4096, 0),
    7: ("person", 9000, 0),
}


@pytest.fixture
def coco(root):
    folder = root / "coco"
    for i in (1, 2):
        write_image(folder / "train2017" / f"{i:012d}.jpg", picture(i, (100, 120)))
    content = {
        "categories": [{"id": 3 * i, "name": name} for i, name in enumerate(NAMES)],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (1, 2)],
        "annotations": [
            {
                "id": i,
                "image_id": 1 + i % 2,
                "category_id": 3 * NAMES.index(name),
                "iscrowd": crowd,
                "area": area,
                "bbox": [10.0, 10.0, 80.0, 80.0],
                "segmentation": {"counts": [5, 5], "size": [2, 5]} if i == 6 else SQUARE,
            }
            for i, (name, area, crowd) in OBJECTS.items()
        ],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


def test_what_is_listed(root, coco, contents):
    before = contents(coco)
    prepare_coco_outliers.main(["--dry-run"])
    assert not (root / "coco_outliers.json").exists()
    prepare_coco_outliers.main([])
    found = json.loads((root / "coco_outliers.json").read_text())
    assert found["images_root"] == "coco/train2017"
    common = {"bbox": [10.0, 10.0, 80.0, 80.0]}
    assert found["instances"] == [
        {"file": "000000000002.jpg", "category": "dog", "area": 6400, "segmentation": SQUARE}
        | common,
        {
            "file": "000000000001.jpg",
            "category": "parking meter",
            "area": 4096,
            "segmentation": {"counts": [5, 5], "size": [2, 5]},
        }
        | common,
    ]
    assert contents(coco) == before


def test_objects_can_be_cut_out(root, coco):
    prepare_coco_outliers.main(["--exclude", "parking meter"])
    source = CocoSource(root / "coco_outliers.json")
    patch, mask = source.sample(np.random.default_rng(0), max_side=20)
    assert patch.shape == (20, 20, 3) and mask.shape == (20, 20)
    assert mask[2:-2, 2:-2].min() == 1


def test_written_once(root, coco, capsys):
    prepare_coco_outliers.main([])
    (coco / "annotations" / "instances_train2017.json").write_text("not read any more")
    prepare_coco_outliers.main([])
    assert "is there" in capsys.readouterr().out
    for options in (["--min-area", "5000"], ["--exclude", "dog"]):
        with pytest.raises(PrepareError, match=r"coco_outliers\.json was made with other options"):
            prepare_coco_outliers.main(options)


def test_options(root, coco):
    prepare_coco_outliers.main(["--min-area", "4000", "--exclude", "parking meter"])
    found = json.loads((root / "coco_outliers.json").read_text())
    assert [i["area"] for i in found["instances"]] == [6400, 4095.9]
    assert found["parameters"]["min_area"] == 4000
    assert "parking meter" in found["parameters"]["excluded"]


def test_messages(root, coco):
    with pytest.raises(PrepareError, match="COCO has no category 'stroller'"):
        prepare_coco_outliers.main(["--exclude", "stroller"])
    (coco / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(PrepareError, match=r"1 of 2 images .* first 000000000002\.jpg"):
        prepare_coco_outliers.main([])
    file = coco / "annotations" / "instances_train2017.json"
    for text, message in (
        ('{"images": [', "is no complete JSON file"),
        ('{"images": []}', "is no instances file of COCO"),
    ):
        file.write_text(text)
        with pytest.raises(PrepareError, match=rf"instances_train2017\.json {message}"):
            prepare_coco_outliers.main([])
    with pytest.raises(PrepareError, match="no .*coco/val2017"):
        prepare_coco_outliers.main(["--split", "val2017"])
