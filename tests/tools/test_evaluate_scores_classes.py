"""Open-IoU of tools/evaluate_scores.py, from class maps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from script_loading import load_script

from tdos_d2.config import add_tdos_config
from tdos_d2.data import register_ood_dataset
from tdos_d2.errors import UserError
from tdos_d2.evaluation import build_evaluator

NAME = "tiny_with_classes"
OPEN = ("open_mIoU", "closed_mIoU", "gap")


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """``make(labels, class_values)`` registers a set; its result calls the tool on it."""
    tool = load_script("tools/evaluate_scores.py")

    def register(labels: dict[str, np.ndarray], class_values: dict[int, int]):
        for frame, label in labels.items():
            write(tmp_path / f"images/{frame}.png", np.zeros((*label.shape, 3), np.uint8))
            write(tmp_path / f"labels/{frame}.png", label)
        register_ood_dataset(
            NAME, tmp_path / "images", tmp_path / "labels", id_values=(10, 11, 12, 13),
            ood_values=(5,), class_values=class_values, min_pred=1, min_gt=1,
        )  # fmt: skip

        def run(scores: Path, *words: str) -> tuple[dict, str]:
            argv = ["tool", "--dataset", NAME, "--scores", str(scores), "--format", "json", *words]
            monkeypatch.setattr(sys, "argv", argv)
            tool.run()
            out, err = capsys.readouterr()
            return json.loads(out), err

        return run

    yield register
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def by_hand(make, tmp_path):
    """Calls the tool on 8 pixels of class 0, 4 of class 1, 4 anomalies, one void, one classless."""
    label = np.array([[10] * 8 + [11] * 4 + [5] * 4 + [255, 13]], np.uint8)
    classes = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1]], np.uint8)
    score = np.zeros((1, 18), np.float32)
    score[0, [0, 7, 12, 13, 14, 15, 16]] = 3.5, 2.5, 4, 3, 3, 2, 9
    write(tmp_path / "scores/a/x.npy", score)
    write(tmp_path / "classes/a/x.png", classes)
    run = make({"a/x": label}, {10: 0, 11: 1})
    return lambda *words: run(tmp_path / "scores", "--classes", str(tmp_path / "classes"), *words)


def test_by_hand(by_hand):
    # Closed set: class 0 has 6 of 8 pixels, and one of the other class; class 1 has 3 of 4, and 2.
    closed = 100 * (6 / 9 + 3 / 6) / 2
    # 95 % of four anomalies are all four, at 2. Of class 0 two pixels are rejected, one of them
    # taken for class 1 before: 5 / (8 + 1) and 3 / (4 + 1).
    expected = 100 * (5 / 9 + 3 / 5) / 2
    # At 3.2, one of the anomalies and one pixel of class 0 are rejected: 5 / (8 + 1 + 1) and
    # 3 / (4 + 2 + 2).
    at_threshold = 100 * (5 / 10 + 3 / 8) / 2
    for words in (("3.2",), ("3", "--strict")):
        result, err = by_hand("--threshold", *words)
        groups = result["breakdown"]
        assert set(groups) == {"open", "open_at_threshold"} and set(groups["open"]) == set(OPEN)
        for row, value in (("open", expected), ("open_at_threshold", at_threshold)):
            found = [groups[row][name] for name in OPEN]
            assert found == pytest.approx([value, closed, closed - value])
        assert "(highest with TPR >= 0.95); open_at_threshold: 3" in err
    # At 3 also two more anomalies, one taken for class 0 and one for class 1: 5 / 9 and 3 / 7.
    result, _ = by_hand("--threshold", "3")
    found = result["breakdown"]["open_at_threshold"]["open_mIoU"]
    assert found == pytest.approx(100 * (5 / 9 + 3 / 7) / 2)
    assert result["open_threshold"] == 2 and result["threshold"] == 3


def test_exported_scores_and_classes_give_what_the_evaluator_gives(make, tmp_path):
    rng = np.random.default_rng(1)
    sizes = {"a/x": (30, 40), "a/y": (25, 30), "b/z": (20, 50)}
    values = [10, 11, 12, 13, 5, 255]
    labels = {frame: rng.choice(values, size).astype(np.uint8) for frame, size in sizes.items()}
    run = make(labels, {10: 0, 11: 1, 12: 2})
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.OUTPUT_DIR, cfg.TEST.BREAKDOWN = str(tmp_path / "out"), True
    cfg.TEST.EXPORT.FORMAT = "fishyscapes"
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    for record, (frame, label) in zip(DatasetCatalog.get(NAME), labels.items(), strict=True):
        score = torch.from_numpy(rng.normal(2 * (label == 5)).astype(np.float32))
        logits = torch.from_numpy(rng.normal(size=(3, *label.shape)).astype(np.float32))
        evaluator.process([record], [{"ood_score": score, "sem_seg": logits}])
        write(tmp_path / f"classes/{frame}.png", logits.numpy().argmax(axis=0).astype(np.uint8))
    results = evaluator.evaluate()
    exported = tmp_path / "out/inference/fishyscapes" / NAME
    for classes in (exported, tmp_path / "classes"):
        found, _ = run(exported, "--breakdown", "--classes", str(classes))
        assert {name: found[name] for name in results["ood"]} == results["ood"]
        groups = found["breakdown"]
        del groups["open_at_threshold"]
        assert {f"ood_{name}": row for name, row in groups.items()} | {
            "ood": results["ood"]
        } == results


def test_class_maps_that_do_not_fit_are_errors(by_hand, tmp_path):
    path = tmp_path / "classes/a/x.png"
    classes = np.asarray(Image.open(path))
    for array, message in (
        (classes[:, 1:], r"class map .*x\.png is 17x1, but the label .*x\.png is 18x1"),
        (classes + 2, r"class map .*x\.png: the labels have classes 0 to 1, it has 2, 3"),
        (classes * 255, r"the labels have classes 0 to 1, it has 255"),
        (np.stack([classes] * 3, -1), r"class map .*x\.png has 3 channels"),
        (classes.astype(bool), r"cannot read class map .*a bit depth of 1"),
    ):
        write(path, array)
        with pytest.raises(UserError, match=message) as error:
            by_hand()
        assert "\n" not in str(error.value)
    path.unlink()
    for array, message in (
        (classes.astype(np.float32), "classes must be integers, got float32"),
        (classes.astype(np.int64) - 1, "it has -1"),
        (np.stack([classes] * 2), r"class map of shape \(2, 1, 18\), label of shape \(1, 18\)"),
    ):
        write(tmp_path / "classes/a/x_segmentation.npy", array)
        with pytest.raises(UserError, match=rf"class map .*x_segmentation\.npy: .*{message}"):
            by_hand()
    write(path, classes)
    with pytest.raises(UserError, match="--classes: two files for frame a/x"):
        by_hand()
    (tmp_path / "classes/a/x_segmentation.npy").unlink()
    path.rename(tmp_path / "classes/a/w.png")
    with pytest.raises(UserError, match=r"--classes: 1 of 1 frames .*a/x .*belong .*w\.png"):
        by_hand()
    with pytest.raises(UserError, match="--classes: no folder .*nowhere"):
        by_hand("--classes", str(tmp_path / "nowhere"))


def test_a_set_without_classes_has_none(make, tmp_path):
    label = np.array([[10, 5]], np.uint8)
    run = make({"x": label}, {})
    write(tmp_path / "scores/x.npy", label.astype(np.float32))
    message = rf"--classes: the labels of dataset '{NAME}' have no classes \(class_values\)"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "scores", "--classes", str(tmp_path))
