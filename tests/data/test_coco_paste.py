"""Objects cut out of COCO images: the right pixels, at the right size and in the right light."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from tdos_d2.data import TDOSDatasetMapper
from tdos_d2.data.augmentation import build_train_augmentations
from tdos_d2.data.coco_objects import CocoSource, cut_out
from tdos_d2.data.ood_paste import OODPaste, build_ood_paste
from tdos_d2.errors import UserError

OOD = 3
GOOD = {"file": "a.png", "category": "cat", "bbox": [0, 0, 5, 5],
        "segmentation": [[0, 0, 5, 0, 5, 5]]}  # fmt: skip
RED, GREEN, GREY = (200, 40, 20), (20, 180, 60), (90, 90, 90)


def box_polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def box_run_lengths(x, y, w, h, height, width):
    """COCO's uncompressed run lengths: zeros and ones by turns, column by column."""
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    return {"counts": np.diff([0, *ends, flat.size]).tolist(), "size": [height, width]}


@pytest.fixture
def coco(tmp_path, write):
    """Path of a list: nine red 40x24 dogs as polygons, one green 10x50 chair as run lengths."""
    boxes = {"dog": (20, 30, 40, 24), "chair": (5, 8, 10, 50)}
    for name, colour in (("dog", RED), ("chair", GREEN)):
        x, y, w, h = boxes[name]
        image = np.full((80, 100, 3), GREY, np.uint8)
        image[y : y + h, x : x + w] = colour
        write(tmp_path / "coco" / "train2017" / f"{name}.png", image)
    outlines = {"dog": box_polygon(*boxes["dog"]),
                "chair": box_run_lengths(*boxes["chair"], 80, 100)}  # fmt: skip
    instances = [
        {
            "file": f"{name}.png",
            "category": name,
            "bbox": boxes[name],
            "area": boxes[name][2] * boxes[name][3],
            "segmentation": outlines[name],
        }
        for name in ["dog"] * 9 + ["chair"]
    ]
    path = tmp_path / "coco_outliers.json"
    content = {"images_root": "coco/train2017", "instances": instances, "parameters": {}}
    path.write_text(json.dumps(content))
    return path


class Square:
    """A photograph of a square of one brightness."""

    photograph = True

    def __init__(self, value=128):
        self.value = value

    def sample(self, rng, max_side):
        patch = np.full((max_side, max_side, 3), self.value, np.uint8)
        return patch, np.ones((max_side, max_side))


def scene(value=100, height=120, width=160):
    return np.full((height, width, 3), value, np.uint8), np.zeros((height, width), np.uint8)


def colour_of(patch, mask):
    return tuple(np.median(patch[mask > 0.5], axis=0).astype(int))


def test_patch_and_mask_are_the_object(coco):
    source = CocoSource(coco)
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(30):
        patch, mask = source.sample(rng, 50)
        assert patch.dtype == np.uint8 and patch.shape == (*mask.shape, 3)
        assert mask.min() >= 0 and mask.max() == 1
        # These objects fill their boxes: 40x24 becomes 50x30, and 10x50 stays.
        seen[colour_of(patch, mask)] = mask.shape
        assert mask.mean() > 0.9
    assert seen == {RED: (30, 50), GREEN: (50, 10)}


def test_outline_is_that_of_the_polygon():
    image = np.zeros((60, 80, 3), np.uint8)
    triangle = {"bbox": [10, 5, 40, 30], "segmentation": [[10, 5, 50, 5, 10, 35]]}
    patch, mask = cut_out(image, triangle)
    assert patch.shape == (30, 40, 3) and mask.shape == (30, 40)
    rows, cols = np.mgrid[:30, :40] + 0.5
    inside = cols / 40 + rows / 30 < 1
    assert (mask == inside).mean() > 0.95
    # A second part is added; what sticks out of the image is cut.
    two = {"bbox": [10, 5, 80, 30], "segmentation": [*triangle["segmentation"],
           *box_polygon(70, 5, 20, 30)]}  # fmt: skip
    patch, mask = cut_out(image, two)
    assert mask.shape == (30, 70) and mask[:, 61:].all() and not mask[25:, 40:60].any()


def test_compressed_run_lengths(coco):
    from pycocotools import mask as coco_mask

    runs = box_run_lengths(5, 8, 10, 50, 80, 100)
    packed = coco_mask.frPyObjects(runs, 80, 100)
    packed["counts"] = packed["counts"].decode()
    _, mask = cut_out(np.zeros((80, 100, 3)), {"bbox": (4, 7, 12, 52), "segmentation": packed})
    assert mask.shape == (52, 12) and mask.sum() == 500 and mask[1:-1, 1:-1].all()


def test_categories_come_equally_often_and_can_be_chosen(coco):
    rng = np.random.default_rng(0)
    source = CocoSource(coco)
    counts = Counter(colour_of(*source.sample(rng, 20)) for _ in range(200))
    assert abs(counts[RED] - 100) < 30  # four standard deviations
    only = CocoSource(coco, ["chair"])
    assert {colour_of(*only.sample(rng, 20)) for _ in range(20)} == {GREEN}


def test_size_and_channel_order(coco):
    rng = np.random.default_rng(0)
    dogs = CocoSource(coco, ["dog"], "BGR")
    for side, shape in ((4, (2, 4)), (20, (12, 20)), (300, (36, 60))):  # at most 1.5 times
        patch, mask = dogs.sample(rng, side)
        assert mask.shape == shape
        assert colour_of(patch, mask) == RED[::-1]


def test_half_are_mirrored_with_their_outlines(tmp_path, write):
    image = np.full((60, 60, 3), GREY, np.uint8)
    cv2.fillPoly(image, [np.array([[10, 10], [50, 10], [10, 50]])], RED)
    write(tmp_path / "a.png", image)
    entry = {"file": "a.png", "category": "cat", "bbox": [10, 10, 40, 40],
             "segmentation": [[10, 10, 50, 10, 10, 50]]}  # fmt: skip
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"images_root": ".", "instances": [entry]}))
    source, rng = CocoSource(path), np.random.default_rng(0)
    left = 0
    for _ in range(100):
        patch, mask = source.sample(rng, 40)
        assert (patch[mask > 0.5] == RED).all(-1).mean() > 0.95
        left += mask[:, :20].sum() > mask[:, 20:].sum()
    assert 30 < left < 70  # four standard deviations


def test_thin_objects_do_not_vanish(tmp_path, write):
    write(tmp_path / "a.png", np.zeros((100, 100, 3), np.uint8))
    line = [[0, 0, 100, 98, 100, 100, 0, 2]]
    path = tmp_path / "list.json"
    entry = {"file": "a.png", "category": "ski", "bbox": [0, 0, 100, 100], "segmentation": line}
    path.write_text(json.dumps({"images_root": ".", "instances": [entry]}))
    _, mask = CocoSource(path).sample(np.random.default_rng(0), 5)
    assert mask.shape == (5, 5) and (mask > 0.5).any()


def test_pasted_objects_are_labelled_and_the_seam_is_soft(coco):
    image, label = scene()
    paste = OODPaste(CocoSource(coco), 1.0, ood_label=OOD)
    for seed in range(20):
        pasted, pasted_label = paste(image, label, np.random.default_rng(seed))
        inside = (pasted_label == OOD).astype(np.uint8)
        assert inside.any() and set(np.unique(pasted_label)) == {0, OOD}
        seam = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > 0
        np.testing.assert_array_equal(pasted[~seam], image[~seam])
        assert (pasted != image).any(-1)[inside > 0].mean() > 0.9
        again, again_label = paste(image, label, np.random.default_rng(seed))
        np.testing.assert_array_equal(again, pasted)
        np.testing.assert_array_equal(again_label, pasted_label)


def pasted_boxes(rows=(0.0, 1.0), count=150):
    """(lower edge, height) of squares that lie wholly inside a 200x200 image."""
    image, label = scene(height=200, width=200)
    paste = OODPaste(Square(), 1.0, (1, 1), (0.3, 0.3), ood_label=OOD)
    rng = np.random.default_rng(1)
    boxes = []
    for _ in range(count):
        ys, xs = np.nonzero(paste(image, label, rng, rows)[1] == OOD)
        if xs.min() > 0 and xs.max() < 199 and ys.max() < 199:
            boxes.append((ys.max() + 1, np.ptp(ys) + 1))
    return np.array(boxes)


def test_objects_are_larger_the_nearer_they_stand():
    foot, size = pasted_boxes().T
    # 0.3 of 200 pixels at the bottom; nothing there has less than 0.15 of it.
    assert size[foot > 195].min() >= 57 and size.max() <= 60
    assert size[foot < 80].max() <= 10 and size.min() == 9
    order = np.argsort(foot)
    assert (np.diff(size[order]) >= -1).all()  # rounding
    # Half way between the horizon at 0.4 and the bottom: half the size.
    assert size[np.abs(foot - 140) < 4].mean() == pytest.approx(30, abs=4)


def test_the_place_in_the_frame_counts_not_that_in_the_crop():
    upper, lower = pasted_boxes((0.0, 0.4)), pasted_boxes((0.6, 1.0))
    assert upper[:, 1].max() == 9  # all above the horizon
    assert lower[:, 1].min() > 60 * (0.6 - 0.4) / 0.6 and lower[:, 1].max() > 55


def test_mapper_tells_where_the_crop_was(tmp_path, write):
    """Rows of the image hold their number, so that the crop itself says where it was."""
    image = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 90, 3))
    record = {
        "file_name": str(write(tmp_path / "a.png", np.ascontiguousarray(image))),
        "sem_seg_file_name": str(write(tmp_path / "a_gt.png", np.zeros((200, 90), np.uint8))),
    }
    seen = []

    def remember(image, label, rng, rows):
        seen.append(rows)
        return image, label

    for flip in ("horizontal", "vertical"):
        mapper = TDOSDatasetMapper(
            is_train=True,
            augmentations=build_train_augmentations(
                scale_range=(0.8, 1.6),
                crop=("absolute", (64, 64)),
                single_category_max_area=1.0,
                flip=flip,
            ),
            image_format="RGB",
            metadata={"rows": MetadataCatalog.get("rows").set(stuff_classes=["a", "b"])},
            ood_paste=remember,
        )
        for position in range(8):
            crop = mapper({**record, "position": position})["image"][0]
            first, last = seen[-1][0] * 200, seen[-1][1] * 200
            assert [first, last] == pytest.approx(crop[[0, -1], 0].tolist(), abs=2)
    assert any(first > last for first, last in seen)  # upside down


def test_light_is_that_of_the_surroundings():
    image, label = scene(height=100, width=400)
    image[:, :200], image[:, 200:] = 60, 180
    paste = OODPaste(Square(120), 1.0, (1, 1), (0.2, 0.2), ood_label=OOD)
    rng = np.random.default_rng(0)
    dark, bright = [], []
    for _ in range(60):
        pasted, pasted_label = paste(image, label, rng)
        inside = pasted_label == OOD
        (dark if inside[:, :170].any() else bright if inside[:, 230:].any() else []).append(
            pasted[inside].mean()
        )
    # At least half of the way, as a factor: 120 * 0.5 ** 0.5 = 85, 120 * 1.5 ** 0.5 = 147
    assert 60 < np.mean(dark) < 85 and 147 < np.mean(bright) < 180


def test_nothing_is_pasted_onto_nothing(coco):
    image, label = scene()
    for source in (Square(), CocoSource(coco)):
        paste = OODPaste(source, 1.0, (3, 3), (0.1, 0.4), ood_label=OOD)
        label[:] = 255
        pasted, pasted_label = paste(image, label, np.random.default_rng(0))
        np.testing.assert_array_equal(pasted, image)
        assert (pasted_label == 255).all()
        label[:, :80] = 0
        one = OODPaste(source, 1.0, (1, 1), (0.1, 0.4), ood_label=OOD)
        for seed in range(40):
            inside = one(image, label, np.random.default_rng(seed))[1] == OOD
            assert inside.any() and 2 * inside[:, :80].sum() >= inside.sum()


def test_sources_are_mixed_object_by_object():
    black, white = Square(8), Square(240)
    for source in (black, white):
        source.photograph = False
    image, label = scene(height=400, width=400)
    paste = OODPaste([(black, 1.0), (white, 3.0)], 1.0, (2, 2), (0.02, 0.02), ood_label=OOD)
    rng, counts = np.random.default_rng(0), Counter()
    for _ in range(150):
        pasted, pasted_label = paste(image, label, rng)
        inside = pasted_label == OOD
        counts[bool((pasted[inside] < 60).any()), bool((pasted[inside] > 140).any())] += 1
    # Of two objects: both black 1/16, one of each 6/16, both white 9/16.
    shares = [counts[key] / 150 for key in ((True, False), (True, True), (False, True))]
    assert shares == pytest.approx([1 / 16, 6 / 16, 9 / 16], abs=0.12)


def test_config(cfg, coco, monkeypatch):
    node = cfg.INPUT.OOD_PASTE
    node.SOURCE, node.PROB, node.COCO_LIST = "coco", 1.0, str(coco)
    mapper = TDOSDatasetMapper(cfg, is_train=True)
    dicts = [{"dataset_name": cfg.DATASETS.TRAIN[0], "position": p} for p in range(8)]
    frame = {"file_name": str(coco.parent / "mini_train" / "0.png"),
             "sem_seg_file_name": str(coco.parent / "mini_train" / "0_gt.png")}  # fmt: skip
    labels = [mapper({**frame, **record})["sem_seg"] for record in dicts]
    assert sum((label == OOD).any().item() for label in labels) > 5
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco.parent))
    node.COCO_LIST, node.SOURCE = "", "mix"
    node.MIX = [["coco", 0.5], ["shapes", 1.5]]
    assert build_ood_paste(cfg).shares.tolist() == [0.25, 0.75]
    node.SOURCE = "none"
    assert build_ood_paste(cfg) is None


def test_auto_takes_coco_where_it_is_and_else_warns(cfg, coco, caplog):
    node = cfg.INPUT.OOD_PASTE
    node.SOURCE = "auto"
    for path, sources in ((coco, ["Coco"]), (coco / "no", ["Shape", "Piece"])):
        node.COCO_LIST = str(path)
        assert caplog.messages == []
        with caplog.at_level(logging.WARNING):
            found = [type(source).__name__ for source in build_ood_paste(cfg).sources]
        assert found == [f"{source}Source" for source in sources]
    (line,) = caplog.messages
    assert f"SOURCE is auto and {coco / 'no'} does not exist" in line and "drawn shapes" in line


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["SOURCE", "cats"], "one of shapes, pieces, coco, cutouts, auto, mix, none, got .cats"),
        (["SOURCE", "mix"], "MIX is empty"),
        (["SOURCE", "mix", "MIX", [["cats", 1]]], r"MIX: \['cats', 1\] is not"),
        (["SOURCE", "mix", "MIX", [["shapes", 0]]], "MIX must be above 0"),
        (["SOURCE", "coco", "COCO_LIST", "gone.json"], "COCO_LIST: gone.json does not exist"),
        (["COCO_CATEGORIES", ["cat"]], "COCO_CATEGORIES: 'cat' is not.*chair, dog"),
    ],
)
def test_wrong_config(cfg, coco, opts, expected):
    node = cfg.INPUT.OOD_PASTE
    node.SOURCE, node.COCO_LIST = "coco", str(coco)
    node.merge_from_list(opts)
    with pytest.raises(UserError, match=expected) as error:
        build_ood_paste(cfg)
    assert "INPUT.OOD_PASTE" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[", "is no list"),
        ('{"instances": []}', "is no list"),
        ('{"images_root": ".", "instances": [{"file": "a.png"}]}', "is no list"),
        ('{"images_root": ".", "instances": []}', "has no objects"),
        ("[]", "is no list"),
        ('{"images_root": ".", "instances": {}}', "is no list"),
        ('{"images_root": ".", "instances": [null]}', "is no list"),
        *(
            (json.dumps({"images_root": ".", "instances": [GOOD, {**GOOD, **change}]}), says)
            for change, says in (
                ({"bbox": None}, r"is no list .*object 1: bbox is missing or null"),
                ({"bbox": [0, 0, 0, 5]}, "is no list .*object 1: its box"),
                ({"segmentation": []}, "is no list .*object 1: its box or a part of its outline"),
                ({"segmentation": [[1, 2, 3, 4]]}, "is no list .*object 1: its box or a part"),
                ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "is no list .*segmentation has"),
                ({"segmentation": {"counts": [3], "size": [9, 9]}}, "is no list .*run lengths"),
                ({"category": 3}, "is no list .*object 1: file and category must be text"),
            )
        ),
    ],
)
def test_wrong_lists(tmp_path, content, expected):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"list\.json {expected}"):
        CocoSource(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segmentation": {"counts": [81], "size": [9, 9]}}, r"run lengths of size \[9, 9\]"),
        ({"bbox": [500, 500, 9, 9]}, "has no pixel"),
    ],
)
def test_objects_that_do_not_fit_their_image_are_named(coco, change, says):
    content = json.loads(coco.read_text())
    for instance in content["instances"]:
        instance.update(change)
    coco.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"coco_outliers\.json: an object in .*\.png .*{says}"):
        CocoSource(coco).sample(np.random.default_rng(0), 20)


def test_missing_images_are_named(coco):
    (coco.parent / "coco" / "train2017" / "chair.png").unlink()
    with pytest.raises(UserError, match=r"train2017/chair\.png"):
        CocoSource(coco, ["chair"]).sample(np.random.default_rng(0), 20)
    (coco.parent / "coco" / "train2017" / "dog.png").unlink()
    with pytest.raises(UserError, match=r"first image .*dog\.png does not exist"):
        CocoSource(coco)
