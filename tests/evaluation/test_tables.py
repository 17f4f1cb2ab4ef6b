"""Tables of results, and metrics of single frames."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from tdos_d2.evaluation.component_metrics import ComponentScores, score_components
from tdos_d2.evaluation.dataset_metrics import frame_metrics
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.tables import FORMATS, format_rows, results_rows, to_json

ROWS = [
    {"dataset": "fs_laf_val", "AP": 12.3456, "PPV": math.nan},
    {"dataset": "camvid_ood", "AP": np.float64(7), "frames": 3},
]


def test_markdown():
    lines = format_rows(ROWS, "markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["dataset", "AP", "PPV", "frames"]
    assert cells[2:] == [["fs_laf_val", "12.35", "-", ""], ["camvid_ood", "7.00", "", "3"]]


def test_latex_escapes_names():
    text = format_rows(ROWS, "latex")
    assert r"fs\_laf\_val" in text and r"\toprule" in text and "12.35" in text
    assert r"\begin{tabular}{lrrr}" in text


def test_csv_and_json_have_all_digits():
    read = list(csv.DictReader(format_rows(ROWS, "csv").splitlines()))
    assert read[0] == {"dataset": "fs_laf_val", "AP": "12.3456", "PPV": "nan", "frames": ""}
    assert json.loads(format_rows(ROWS, "json")) == [
        {"dataset": "fs_laf_val", "AP": 12.3456, "PPV": None},
        {"dataset": "camvid_ood", "AP": 7.0, "frames": 3},
    ]


def test_every_format_of_nothing():
    assert all(isinstance(format_rows([{}], form), str) for form in FORMATS)


def test_json_has_no_nan():
    value = {"a": [np.float32(0.5), math.inf], "b": {"c": np.nan}, "d": (1, "x", None)}
    assert json.loads(to_json(value)) == {"a": [0.5, None], "b": {"c": None}, "d": [1, "x", None]}


def test_results_are_grouped_by_their_metrics():
    results = {
        "val": {"sem_seg": {"mIoU": 50.0, "IoU-road": 9.0}},
        "x": {"ood": {"AP": 1.0, "F1": 2.0}, "ood_rba": {"AP": 3.0, "F1": 4.0}},
        "y": {"ood": {"AP": 5.0, "F1": 6.0}},
        "hidden": {},
    }
    segmentation, ood = results_rows(results)
    assert segmentation == [{"dataset": "val", "task": "sem_seg", "mIoU": 50.0}]
    assert [row["task"] for row in ood] == ["ood", "ood_rba", "ood"]
    assert ood[2] == {"dataset": "y", "task": "ood", "AP": 5.0, "F1": 6.0}


@pytest.mark.parametrize("strict", [False, True])
def test_frame_metrics(strict):
    rng = np.random.default_rng(0)
    label = np.zeros((30, 40), np.uint8)
    label[5:15, 5:25], label[25:] = 1, 255
    score = np.round(rng.normal(2 * (label == 1), 1), 1)
    frame = check_frame(score, label, "test")
    components = score_components([frame], 1.0, (3, 3), strict)
    got = frame_metrics(frame, 1.0, components, strict)
    known = label < 255
    truth, values = label[known], frame.score[known]
    predicted = values > 1 if strict else values >= 1
    assert (got["known"], got["OOD"], got["void"]) == (800, 200, 200)
    assert got["AP"] == pytest.approx(100 * average_precision_score(truth, values), abs=0.01)
    assert got["F1_at_threshold"] == pytest.approx(100 * f1_score(truth, predicted))
    assert got["true_components"] == 1 and got["predicted_components"] == len(components.ppv) > 1
    assert got["sIoU"] == pytest.approx(100 * components.siou[0])


def test_frame_without_ood_pixels_has_no_curve_and_no_warning(caplog):
    frame = check_frame(np.ones((4, 4)), np.zeros((4, 4), np.uint8), "test")
    none = ComponentScores(np.empty(0), np.zeros(1))
    got = frame_metrics(frame, 0.5, none)
    assert math.isnan(got["AP"]) and got["F1_at_threshold"] == 0 and got["mF1"] == 0
    assert math.isnan(frame_metrics(frame, 2.0, none)["F1_at_threshold"])
    assert not caplog.records
