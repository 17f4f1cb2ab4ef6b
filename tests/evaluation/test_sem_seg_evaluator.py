"""mIoU of the known classes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from tdos_d2.errors import UserError
from tdos_d2.evaluation import SemSegEvaluator

CLASSES = ["road", "traffic sign", "sky", "never there"]


def one_hot(prediction, num_classes: int = len(CLASSES)) -> torch.Tensor:
    prediction = torch.as_tensor(prediction, dtype=torch.int64)
    return torch.nn.functional.one_hot(prediction, num_classes).permute(2, 0, 1).float()


@pytest.fixture
def metrics_of(make_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def measure(labels, predictions, **metadata):
        metadata |= {"evaluator_type": "sem_seg", "ignore_label": 255}
        dicts = make_dataset("tiny_seg", labels, stuff_classes=CLASSES, **metadata)
        before = sorted(os.listdir(tmp_path))
        evaluator = SemSegEvaluator("tiny_seg")
        evaluator.reset()
        for record, prediction in zip(dicts, predictions, strict=True):
            evaluator.process([record], [{"sem_seg": prediction}])
        results = evaluator.evaluate()
        assert sorted(os.listdir(tmp_path)) == before
        return results["sem_seg"]

    return measure


def test_confusion_matrix_worked_by_hand(metrics_of):
    # 200 is an ignored value, 11 the OOD label: neither counts, whatever is predicted there.
    labels = [np.array([[0, 0, 0, 1], [1, 2, 200, 255]]), np.array([[0, 0, 11, 1]])]
    predictions = [
        one_hot([[0, 0, 1, 1], [2, 2, 0, 3]]),
        one_hot([[0, 3, 2, 1]]),
    ]
    metrics = metrics_of(labels, predictions, ignore_values=(200,), ood_values=(11,))
    # road: 3 of 5 found, 0 wrong; sign: 2 of 3, 1 wrong; sky: 1 of 1, 1 wrong.
    road, sign, sky = 3 / 5, 2 / 4, 1 / 2
    assert metrics["IoU-road"] == pytest.approx(100 * road)
    assert metrics["IoU-traffic sign"] == pytest.approx(100 * sign)
    assert metrics["IoU-sky"] == pytest.approx(100 * sky)
    assert np.isnan(metrics["IoU-never there"])  # not in the labels
    assert metrics["mIoU"] == pytest.approx(100 * (road + sign + sky) / 3)
    assert metrics["fwIoU"] == pytest.approx(100 * (5 * road + 3 * sign + 1 * sky) / 9)
    assert metrics["pACC"] == pytest.approx(100 * 6 / 9)
    assert metrics["mACC"] == pytest.approx(100 * (3 / 5 + 2 / 3 + 1) / 3)
    assert not any(name.startswith("Boundary") for name in metrics)


def test_what_does_not_fit_is_an_error(metrics_of, make_dataset):
    label = np.zeros((4, 6), np.uint8)
    with pytest.raises(UserError, match=r"tiny_seg_0.png.*\(3, 4, 6\).*\(4, 4, 6\)"):
        metrics_of([label], [torch.zeros(3, 4, 6)])


def test_a_transposed_prediction_is_an_error(metrics_of):
    with pytest.raises(UserError, match=r"\(4, 6, 4\)"):
        metrics_of([np.zeros((4, 6), np.uint8)], [torch.zeros(4, 6, 4)])


def test_undeclared_label_values_are_an_error(metrics_of):
    with pytest.raises(UserError, match="tiny_seg_0.png.* 7"):
        metrics_of([np.full((4, 6), 7, np.uint8)], [torch.zeros(4, 4, 6)])


def test_a_frame_without_label_is_an_error(make_dataset):
    dicts = make_dataset("no_label", [np.zeros((2, 2))], ignore_label=255, stuff_classes=CLASSES)
    del dicts[0]["sem_seg_file_name"]
    with pytest.raises(UserError, match="'no_label'.*no label"):
        SemSegEvaluator("no_label")


@pytest.mark.parametrize("channel", [0, 3])
def test_scores_that_are_not_finite_are_an_error(metrics_of, channel):
    prediction = torch.zeros(4, 4, 6)
    prediction[channel, 1, 2] = float("nan")
    with pytest.raises(UserError, match="tiny_seg_0.*: 1 of 24 scores are NaN"):
        metrics_of([np.zeros((4, 6), np.uint8)], [prediction])
