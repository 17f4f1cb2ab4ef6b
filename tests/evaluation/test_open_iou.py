"""Open-IoU worked by hand, by brute force, and as a task of the evaluator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA

from tdos_d2.errors import UserError
from tdos_d2.evaluation import OODEvaluator
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.open_iou import FrameClasses, confusion_matrices, open_iou

CLASSES = {10: 0, 11: 1, 12: 2}  # values of the label files
METADATA = OOD_METADATA | {
    "id_values": (10, 11, 12, 13), "ood_values": (5,), "class_values": CLASSES,
}  # fmt: skip


def test_by_hand():
    """K = 2. Eight pixels of class 0, four of class 1, four anomalies, one void."""
    true = np.array([[0] * 8 + [1] * 4 + [2] * 4 + [255]], np.uint8)
    predicted = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0]], np.uint8)
    score = np.zeros((1, 17), np.float32)
    score[0, [0, 7, 11, 12, 13, 14, 16]] = 1  # three anomalies found, three known pixels rejected
    frame = check_frame(score, np.where(true == 255, 255, true == 2), "test")
    matrices = confusion_matrices([(frame, FrameClasses(true, predicted))], 1.0, 2)
    assert matrices[0].tolist() == [[5, 1, 2], [0, 3, 1], [0, 1, 3]]
    assert matrices[1].tolist() == [[6, 2, 0], [1, 3, 0], [2, 2, 0]]
    # Class 0: 5 of 8 true, nothing else taken for it. Class 1: 3 of 4, and 1 + 1 others.
    found = open_iou(matrices)
    assert found["open_mIoU"] == pytest.approx(100 * (5 / 8 + 3 / 6) / 2)
    # Without anomalies and threshold. Class 0: 6 of 8, and 1; class 1: 3 of 4, and 2.
    assert found["closed_mIoU"] == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert found["gap"] == pytest.approx(found["closed_mIoU"] - found["open_mIoU"])


def test_a_class_that_does_not_occur_is_no_part_of_the_mean():
    matrices = np.zeros((2, 4, 4), int)
    matrices[0, 0] = [3, 1, 0, 0]  # class 1 is predicted, but has no pixel
    matrices[1, 0] = [3, 1, 0, 0]
    assert open_iou(matrices)["open_mIoU"] == 75
    assert math.isnan(open_iou(0 * matrices)["open_mIoU"])


@pytest.fixture
def frames(make_dataset):
    rng = np.random.default_rng(1)
    sizes = [(30, 40), (25, 30), (20, 50)]
    values = [rng.choice([10, 11, 12, 13, 5, 255], size).astype(np.uint8) for size in sizes]
    dicts = make_dataset("open_set", values, **METADATA)
    outputs = []
    for value in values:
        sem_seg = torch.from_numpy(rng.normal(size=(3, *value.shape)).astype(np.float32))
        score = torch.from_numpy(rng.normal(2 * (value == 5), 1).astype(np.float32))
        outputs.append({"ood_score": score, "sem_seg": sem_seg})
    return dicts, values, outputs


def run(dicts, outputs, **kwargs) -> dict:
    evaluator = OODEvaluator("open_set", breakdown=True, **kwargs)
    evaluator.reset()
    evaluator.process(dicts, outputs)
    return evaluator.evaluate()


def test_evaluator_by_brute_force(frames):
    dicts, values, outputs = frames
    value = np.concatenate([v.ravel() for v in values])
    score = np.concatenate([o["ood_score"].numpy().ravel() for o in outputs])
    best = np.concatenate([o["sem_seg"].argmax(0).numpy().ravel() for o in outputs])
    # The highest threshold that finds 95 % of the anomalies.
    anomalies = np.sort(score[value == 5])[::-1]
    threshold = anomalies[math.ceil(0.95 * len(anomalies)) - 1]
    taken = np.where(score >= threshold, 3, best)
    counts = np.isin(value, [10, 11, 12, 5])  # 13 is known, but of no class
    ious = []
    for number, k in CLASSES.items():
        true, predicted = (value == number) & counts, (taken == k) & counts
        ious.append((true & predicted).sum() / (true | predicted).sum())
    results = run(dicts, outputs)
    assert results["ood_open"]["open_mIoU"] == pytest.approx(100 * np.mean(ious))
    again = run(dicts[::-1], outputs[::-1])
    assert again["ood_open"] == results["ood_open"], "whatever the order"


def test_a_model_with_other_classes_has_none(frames, caplog):
    dicts, _, outputs = frames
    for output in outputs:
        output["sem_seg"] = output["sem_seg"][:2]
    results = run(dicts, outputs)
    assert "ood_open" not in results and "ood_images" not in results and "ood" in results
    assert caplog.text.count("no open-IoU, the model has 2 known classes and the labels 3") == 1


def test_nan_is_no_class(frames):
    dicts, _, outputs = frames
    outputs[1]["sem_seg"][1, 3, 4] = float("nan")
    with pytest.raises(UserError, match="sem_seg has values that are NaN"):
        run(dicts, outputs)
