"""The list of COCO objects that can be pasted as outliers."""

from __future__ import annotations

import json

import numpy as np
import prepare_coco_outliers
import pytest
from _common import PrepareError
from layouts import picture, write_image

from tdos_d2 import coco as coco_format
from tdos_d2.data.coco_objects import CocoSource
from tdos_d2.errors import UserError

NAMES = [*prepare_coco_outliers.CITYSCAPES_CATEGORIES, "dog", "parking meter"]
SQUARE = [[10.0, 10.0, 90.0, 10.0, 90.0, 90.0, 10.0, 90.0]]
RUNS = {"counts": [5000, 7000], "size": [100, 120]}
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
                "segmentation": RUNS if i == 6 else SQUARE,
            }
            for i, (name, area, crowd) in OBJECTS.items()
        ],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


def test_images_of_another_size_than_the_annotations(root, coco):
    """Resized copies, or turned ones: the objects would be cut from another place."""
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["segmentation"] != RUNS]
    for width in (120, 240):
        for image in content["images"]:
            image.update(width=width, height=100)
        path.write_text(json.dumps(content))
        (root / "coco_outliers.json").unlink(missing_ok=True)
        prepare_coco_outliers.main([])
        source = CocoSource(root / "coco_outliers.json")
        if width == 120:
            source.sample(np.random.default_rng(0), 20)
    said = "jpg is 120x100, but COCO's annotations are for 240x100: the images must be as published"
    with pytest.raises(UserError, match=said):
        source.sample(np.random.default_rng(0), 20)


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
            "segmentation": RUNS,
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
        ('{"images": []}', "is no instances file of COCO: it has no annotations"),
        ("[]", "is no instances file of COCO: it holds no object of JSON"),
        ('{"images": [], "annotations": [{"caption": "a dog"}]}', "is no .* but a captions file"),
        (
            '{"images": [], "categories": [], "annotations": [{"segments_info": []}]}',
            "is no .* but a panoptic file",
        ),
    ):
        file.write_text(text)
        with pytest.raises(PrepareError, match=rf"instances_train2017\.json {message}"):
            prepare_coco_outliers.main([])
    with pytest.raises(PrepareError, match="no .*coco/val2017"):
        prepare_coco_outliers.main(["--split", "val2017"])


def edit(coco, change):
    """Change annotation 1, the first dog, in place: ``change`` gets it and the whole content."""
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content["annotations"][0], content)
    file.write_text(json.dumps(content))


def set_item(**values):
    return lambda item, content: item.update(values)


@pytest.mark.parametrize(
    "change",
    [
        set_item(segmentation=[]),
        set_item(segmentation=[[]]),
        set_item(segmentation=[[10, 10, 90, 90]]),
        set_item(segmentation=[[10, 10, 90, 90], [20.5, 20.5]]),
        set_item(segmentation=[[10, 10, 10, 10, 10, 10]]),
        set_item(bbox=[10, 10, 0, 80]),
        set_item(bbox=[10, 10, 80, -1]),
        set_item(bbox=[500, 10, 80, 80]),
        set_item(segmentation={"counts": [12000], "size": [100, 120]}),
        lambda item, content: content["images"][1].update(width=0, height=0),
    ],
)
def test_objects_without_a_pixel_are_left_out_and_counted(root, coco, capsys, change):
    edit(coco, change)
    prepare_coco_outliers.main([])
    found = json.loads((root / "coco_outliers.json").read_text())["instances"]
    assert [instance["category"] for instance in found] == ["parking meter"]
    assert "left out: 1 objects without a pixel" in capsys.readouterr().out


def test_parts_without_area_are_left_out_of_an_outline(root, coco):
    edit(coco, set_item(segmentation=[[10, 10, 90, 90], *SQUARE]))
    prepare_coco_outliers.main([])
    found = json.loads((root / "coco_outliers.json").read_text())["instances"]
    assert found[0]["segmentation"] == SQUARE
    CocoSource(root / "coco_outliers.json").sample(np.random.default_rng(0), 20)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda item, content: item.pop("area"), "annotation 1: area is missing"),
        (set_item(area=None), "annotation 1: area is missing or null"),
        (set_item(area=float("nan")), "annotation 1: area is nan"),
        (set_item(area="6400"), "annotation 1: area is 6400"),
        (set_item(bbox=None), "annotation 1: bbox is missing or null"),
        (set_item(bbox=[1, 2, 3]), r"annotation 1: bbox is \[1, 2, 3\]"),
        (set_item(bbox=[1, 2, 3, float("nan")]), "annotation 1: bbox is"),
        (lambda item, content: item.pop("segmentation"), "annotation 1: segmentation is missing"),
        (set_item(segmentation=[1, 2, 3, 4, 5, 6]), "annotation 1: segmentation has 1"),
        (set_item(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: segmentation has"),
        (set_item(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 1: segmentation has"),
        (set_item(segmentation=[[1, 2, 3, 4, 5, 1e300]]), "annotation 1: segmentation has"),
        (set_item(segmentation={"counts": [5, 5], "size": [100, 120]}), "run lengths"),
        (set_item(segmentation={"counts": [-5, 12005], "size": [100, 120]}), "run lengths"),
        (set_item(segmentation={"counts": "nonsense", "size": [100, 120]}), "run lengths nonsense"),
        (set_item(segmentation={"counts": "", "size": [100, 120]}), "run lengths"),
        (set_item(segmentation={"counts": [12000]}), "size of its run lengths is missing"),
        (set_item(image_id=77), "annotation 1: image_id is 77, not known"),
        (set_item(image_id=[2]), r"annotation 1: image_id is \[2\], not known"),
        (set_item(category_id=None), "annotation 1: category_id is missing or null"),
        (set_item(id=2), "annotation 2 is there twice"),
        (set_item(id=None), "annotation number 0 .* has no id"),
        (lambda item, content: content["images"][0].update(id=2), "image 2 is there twice"),
        (lambda item, content: content["images"][1].pop("file_name"), "image 2 has no file_name"),
        (lambda item, content: content["images"][1].update(height=None, width=9), "image 2 has"),
        (lambda item, content: content["annotations"].append(None), "annotation number 7"),
        (lambda item, content: content.update(images=None), "no list of image entries"),
    ],
)
def test_what_is_not_in_cocos_format_is_named(root, coco, monkeypatch, capsys, change, says):
    edit(coco, change)
    with pytest.raises(PrepareError, match=rf"instances_train2017\.json: .*{says}") as error:
        prepare_coco_outliers.main([])
    assert "\n" not in str(error.value) and not (root / "coco_outliers.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_a_list_that_is_none_is_named(root, coco, text):
    (root / "coco_outliers.json").write_text(text)
    with pytest.raises(PrepareError, match=r"coco_outliers\.json is no list of this script"):
        prepare_coco_outliers.main([])


def test_packed_run_lengths_are_read_as_pycocotools_reads_them():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 60, 2).tolist()
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        mask[: height // 2] = mask[0, 0]  # long runs, too
        packed = coco_mask.encode(np.asfortranarray(mask))
        packed["counts"] = packed["counts"].decode()
        item = {"bbox": [0, 0, width, height], "segmentation": packed}
        assert coco_format.check_object(item) == item
        np.testing.assert_array_equal(coco_format.object_mask(item, height, width)[0], mask)
