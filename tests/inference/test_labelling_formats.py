"""Pre-annotations: what other libraries read from them, and which frames are chosen."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import nn

from tdos_d2.inference.frame_selection import EncoderFeatures, FrameChooser, score_mass
from tdos_d2.inference.labelling_formats import (
    LabelledFrame,
    brush_run_lengths,
    pack_mask,
    write_coco,
    write_label_studio,
)

SMALL = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
# What label_studio_sdk 2.1.2 makes of it: converter.brush.mask2rle(255 * SMALL).
FROM_SDK = [0, 0, 0, 32, 57, 27, 252, 96, 19, 255, 219, 0, 143, 254, 48, 0]


def blob(height: int = 37, width: int = 53) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (30, 20), (14, 9), 25, 0, 360, 1, -1)
    mask[18:22, 28:33] = 0  # a hole
    mask[0, 0] = mask[-1, -1] = 1
    return mask.astype(bool)


def unpack_brush(data: list[int]) -> np.ndarray:
    """thi.ng's rle-pack read bit by bit, with literal runs too, as its README describes it."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(number: int) -> int:
        nonlocal place
        place += number
        return int(bits[place - number : place], 2)

    size, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    assert len(values) == size
    return np.array(values)


def test_brush_gives_the_mask_back():
    # More equal pixels than one run may have, and none at all.
    wide = np.zeros((300, 400), bool)
    wide[5, 7] = True
    for mask in (SMALL, blob(), wide, np.zeros((4, 5), bool), np.ones((3, 3), bool)):
        rgba = unpack_brush(brush_run_lengths(mask)).reshape(*mask.shape, 4)
        assert set(np.unique(rgba)) <= {0, 255}
        for channel in range(4):
            assert np.array_equal(rgba[..., channel] == 255, mask)


def test_brush_is_that_of_label_studio():
    """The SDK pins OpenCV, Pillow and more, so it is no dependency: its bytes are above."""
    assert np.array_equal(unpack_brush(FROM_SDK).reshape(2, 4, 4)[..., 3] == 255, SMALL)
    assert FROM_SDK[:7] == brush_run_lengths(SMALL)[:7]


def test_brush_is_read_by_label_studio():
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in (SMALL, blob()):
        rgba = np.asarray(brush.decode_rle(brush_run_lengths(mask))).reshape(*mask.shape, 4)
        assert np.array_equal(rgba[..., 3] == 255, mask)


@pytest.fixture
def frames() -> list[LabelledFrame]:
    first, second = blob(), ~blob()
    found = {"score": -1.5, "area": int(first.sum()), "box": (0, 0, 53, 37)}
    of_second = {**found, "score": -9.0, "area": int(second.sum())}
    objects = [
        {"category": 0, **found, "rle": pack_mask(first)},
        {"category": 1, **of_second, "rle": pack_mask(second)},
    ]
    return [LabelledFrame("a b/1.png", 53, 37, objects), LabelledFrame("2.jpg", 5, 4, [])]


def test_coco_reads_its_file(tmp_path, frames):
    write_coco(tmp_path / "labels.json", frames, ["ood", "deer"])
    coco = COCO(str(tmp_path / "labels.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["ood", "deer"]
    assert [i["file_name"] for i in coco.loadImgs(coco.getImgIds())] == ["a b/1.png", "2.jpg"]
    first, second = coco.loadAnns(coco.getAnnIds())
    assert (first["category_id"], second["category_id"]) == (1, 2)
    assert np.array_equal(coco.annToMask(first), blob())
    assert np.array_equal(coco.annToMask(second), ~blob())
    assert (first["score"], second["score"]) == (-1.5, -9)
    assert first["area"] == coco_mask.area(first["segmentation"])
    assert first["bbox"] == coco_mask.toBbox(first["segmentation"]).tolist()


def write_pictures(folder: Path, frames: list[LabelledFrame]) -> None:
    for frame in frames:
        path = folder / frame.file
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((frame.height, frame.width, 3), np.uint8))


def test_fiftyone_reads_its_file(tmp_path, frames):
    coco = pytest.importorskip("fiftyone.utils.coco")
    write_pictures(tmp_path / "data", frames)
    write_coco(tmp_path / "labels.json", frames, ["ood", "deer"])
    importer = coco.COCODetectionDatasetImporter(str(tmp_path), label_types="segmentations")
    with importer:
        samples = {Path(path): labels for path, _, labels in importer}
    assert samples.keys() == {tmp_path / "data" / frame.file for frame in frames}
    assert not samples[tmp_path / "data" / "2.jpg"]
    first, second = samples[tmp_path / "data" / "a b" / "1.png"].detections
    assert [(d.label, d.confidence) for d in (first, second)] == [("ood", -1.5), ("deer", -9)]
    # FiftyOne cuts masks out of the box, here the whole picture.
    assert first.bounding_box == second.bounding_box == [0, 0, 1, 1]
    assert np.array_equal(first.mask, blob()) and np.array_equal(second.mask, ~blob())


def test_datumaro_reads_its_file(tmp_path, frames):
    """Datumaro needs the folders of COCO."""
    datumaro = pytest.importorskip("datumaro")
    (tmp_path / "annotations").mkdir()
    write_pictures(tmp_path / "images", frames)
    write_coco(tmp_path / "annotations" / "instances_default.json", frames, ["ood", "deer"])
    found = datumaro.Dataset.import_from(str(tmp_path), "coco_instances")
    names = [label.name for label in found.categories()[datumaro.AnnotationType.label].items]
    items = {item.id: item for item in found}
    assert items.keys() == {"a b/1", "2"} and not items["2"].annotations
    assert items["a b/1"].media.data.shape[:2] == (37, 53)
    masks = {
        names[a.label]: a
        for a in items["a b/1"].annotations
        if a.type == datumaro.AnnotationType.mask
    }
    assert np.array_equal(masks["ood"].image == 1, blob())
    assert np.array_equal(masks["deer"].image == 1, ~blob())
    assert {name: a.attributes["score"] for name, a in masks.items()} == {"ood": -1.5, "deer": -9}


def test_label_studio_tasks_fit_their_interface(tmp_path, frames):
    path = tmp_path / "label_studio.json"
    write_label_studio(path, frames, ["ood", 'a "big" deer'], "me 1")
    first, second = json.loads(path.read_text())
    assert first["data"]["image"] == "/data/local-files/?d=data/a%20b/1.png"
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.2 and prediction["model_version"] == "me 1"
    root = ET.parse(tmp_path / "label_studio.xml").getroot()
    image, brush = root.find("Image"), root.find("BrushLabels")
    assert image.get("value") == "$image"
    labels = {label.get("value") for label in brush}
    for result, mask in zip(prediction["result"], (blob(), ~blob()), strict=True):
        assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
        assert result["type"] == "brushlabels" and set(result["value"]["brushlabels"]) <= labels
        assert (result["original_width"], result["original_height"]) == (53, 37)
        alpha = unpack_brush(result["value"]["rle"]).reshape(37, 53, 4)[..., 3]
        assert np.array_equal(alpha == 255, mask)
    assert second["predictions"] == [{"model_version": "me 1", "result": []}]


def scored_tasks(path: Path) -> list[dict]:
    """Tasks with two objects each, whose mean scores are those that models have, and one without.

    log_s_ood is negative, memory between 0 and 2, combined about -2 to 15.
    """
    found = {"category": 0, "area": 3, "box": (1, 0, 3, 2), "rle": pack_mask(SMALL)}
    frames = [
        LabelledFrame(f"{i}.png", 4, 2, [{**found, "score": score - 1}, {**found, "score": score}])
        for i, score in enumerate([-19, -1.5, -1e-3, 0.0, 0.7, 3, 14, 15])
    ]
    write_label_studio(path, [*frames, LabelledFrame("none.png", 4, 2, [])], ["ood"], "me")
    return json.loads(path.read_text())


def test_scores_of_label_studio_are_in_its_range(tmp_path):
    *tasks, empty = scored_tasks(tmp_path / "tasks.json")
    assert "score" not in empty["predictions"][0]
    predictions = [task["predictions"][0] for task in tasks]
    scores = [prediction["score"] for prediction in predictions]
    assert scores == sorted(set(scores)) and scores[0] >= 0 and scores[-1] <= 1
    by_hand = [0.025, 0.2, None, 0.5, None, 0.875, None, 0.96875]  # 1/2 - 19/40, 1/2 - 3/10, ...
    for prediction, expected in zip(predictions, by_hand, strict=True):
        assert expected is None or prediction["score"] == pytest.approx(expected, abs=1e-12)
        regions = [result["score"] for result in prediction["result"]]
        assert 0 <= regions[0] < regions[1] == prediction["score"]
    raw = [[r["meta"]["ood_score"] for r in prediction["result"]] for prediction in predictions]
    assert raw[0] == [-20, -19] and raw[-1] == [14, 15]


def test_tasks_are_valid_for_label_studio(tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    path = tmp_path / "tasks.json"
    tasks = scored_tasks(path)
    given = interface(path.with_suffix(".xml").read_text())
    for task in tasks:
        (prediction,) = task["predictions"]
        assert given.validate_prediction(prediction, return_errors=True) == []
        assert given.validate_task({"data": task["data"]})
    assert given.validate_prediction({**prediction, "score": 1.5}, return_errors=True)


def test_score_mass_is_that_of_the_highest_hundredth():
    score = np.arange(400, dtype=np.float32).reshape(20, 20)
    assert score_mass(score) == (399 + 398 + 397 + 396) / 4
    assert score_mass(score[:5, :5]) == score[4, 4]
    assert score_mass(score, score < 300) == (299 + 298 + 297) / 3


def chosen_by_hand(mass: np.ndarray, points: np.ndarray, number: int) -> list[int]:
    weight = (mass - mass.min()) / (mass.max() - mass.min())
    chosen = [int(np.argmax(mass))]
    while len(chosen) < number:
        rest = [i for i in range(len(mass)) if i not in chosen]
        worth = [weight[i] * min(np.linalg.norm(points[i] - points[j]) for j in chosen)
                 for i in rest]  # fmt: skip
        chosen.append(rest[int(np.argmax(worth))])
    return chosen


def test_events_come_before_the_frames_of_one():
    """Three events of 30 nearly equal frames each, and normal frames that are all different."""
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:3]
    points = [centres[i // 30] + rng.normal(0, 0.01, 8) for i in range(90)]
    points += list(rng.normal(size=(30, 8)))
    mass = [5 - i // 30 + rng.uniform(0, 0.5) for i in range(90)] + list(rng.uniform(-5, -4, 30))
    chooser = FrameChooser()
    for m, p in zip(mass, points, strict=True):
        chooser.add(m, p.astype(np.float32))
    chosen = chooser.choose(3)
    assert sorted(i // 30 for i in chosen) == [0, 1, 2] and chosen[0] == int(np.argmax(mass))
    unit = np.array([p / np.linalg.norm(p) for p in points])
    assert chooser.choose(12) == chosen_by_hand(np.array(mass, np.float32), unit, 12)
    assert sorted(chooser.choose(500)) == list(range(120))
    chooser.truncate(20)
    assert len(chooser) == 20 and set(chooser.choose(3)) <= set(range(20))


def test_long_descriptors_are_projected():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(40, 700)).astype(np.float32)
    chooser = FrameChooser()
    for point in points:
        chooser.add(1.0, point)
    stored = np.frombuffer(bytes(chooser._descriptors), np.float16).reshape(40, 64)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    between, kept = (np.linalg.norm(x[:20].astype(float) - x[20:], axis=1) for x in (unit, stored))
    assert np.abs(kept / between - 1).max() < 0.35 and np.abs(kept / between - 1).mean() < 0.12


def test_features_of_the_image_only():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.forward = lambda x: {"a": x, "last": 2 * x, "vector": x.mean((2, 3))}

        def forward(self, images):
            return [self.backbone(image) for image in images]  # windows

    model = Model()
    features = EncoderFeatures(model)
    assert features.take() is None
    for _ in range(2):  # the second image does not mix with the first
        model([torch.full((1, 3, 2, 2), 1.0), torch.full((1, 3, 2, 2), 3.0)])
        model.backbone(torch.full((1, 3, 2, 2), 99.0))  # an object's crop
        assert features.take().tolist() == [4, 4, 4]
