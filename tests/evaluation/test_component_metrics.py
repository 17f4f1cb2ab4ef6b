"""Component metrics against hand-worked frames and the protocol written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from tdos_d2.errors import UserError
from tdos_d2.evaluation.component_metrics import (
    ComponentScores,
    component_metrics,
    component_sizes,
    concatenate,
    score_components,
)
from tdos_d2.evaluation.frames import check_frame

SYMBOLS = {".": 0, "#": 1, "~": 255}


def parse(text: str) -> np.ndarray:
    return np.array([[SYMBOLS[c] for c in row] for row in text.split()], dtype=np.uint8)


def score(label: str, predicted: str, min_pred: int = 1, min_gt: int = 1) -> ComponentScores:
    frame = check_frame(parse(predicted).astype(np.float32), parse(label), "test")
    return score_components([frame], 0.5, (min_pred, min_gt))


def as_lists(scores: ComponentScores) -> tuple[list[float], list[float]]:
    return sorted(scores.siou.tolist()), sorted(scores.ppv.tolist())


def brute_force(score, label, threshold, min_pred, min_gt, strict):
    """The protocol in its own order, one full mask per component."""
    label = label.copy()
    predicted = score > threshold if strict else score >= threshold
    predicted[label == 255] = False
    true_map, num_true = ndimage.label(label == 1, np.ones((3, 3)))
    pred_map, num_pred = ndimage.label(predicted, np.ones((3, 3)))
    for k in range(1, num_pred + 1):
        if (pred_map == k).sum() < min_pred:
            pred_map[pred_map == k] = 0
    for k in range(1, num_true + 1):
        if (true_map == k).sum() < min_gt:
            label[true_map == k] = 255
    true_map, pred_map = true_map[label < 255], pred_map[label < 255]
    siou, ppv = [], []
    for k in set(true_map) - {0}:
        mask = true_map == k
        touching = np.isin(pred_map, list(set(pred_map[mask]) - {0}))
        others = (true_map > 0) & ~mask
        siou.append((mask & touching).sum() / ((mask | touching) & ~(touching & others)).sum())
    for k in set(pred_map) - {0}:
        mask = pred_map == k
        ppv.append((true_map[mask] > 0).mean())
    return sorted(siou), sorted(ppv)


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_the_protocol_written_out(seed):
    rng = np.random.default_rng(seed)
    shape = (48, 64)
    smooth = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.8, 3)) for _ in "abc"]
    label = (smooth[0] > np.quantile(smooth[0], 0.8)).astype(np.uint8)
    label[smooth[1] > np.quantile(smooth[1], 0.85)] = 255
    noisy = smooth[0] / smooth[0].std() + rng.uniform(0.2, 2) * smooth[2] / smooth[2].std()
    levels = np.round(noisy * 4).astype(np.float32) / 4  # many pixels exactly at the threshold
    sizes = (int(rng.integers(1, 15)), int(rng.integers(1, 15)))
    for strict in (False, True):
        frame = check_frame(levels, label, "test")
        got = score_components([frame], 0.75, sizes, strict)
        expected = brute_force(levels, label, 0.75, *sizes, strict)
        assert as_lists(got) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_corners_connect():
    label = """
        #...
        .#..
        ..#."""
    assert as_lists(score(label, label)) == ([1.0], [1.0])


def test_a_prediction_cut_by_void_is_two():
    label = """
        ##~~.
        ##~~."""
    predicted = """
        #####
        #####"""
    assert as_lists(score(label, predicted)) == ([1.0], [0.0, 1.0])


def test_pixels_on_other_true_components_are_not_held_against_one():
    label = """
        ##.##
        ....."""
    predicted = """
        #####
        ....."""
    # Each: 2 shared, union 5 less the 2 on the other.
    assert as_lists(score(label, predicted)) == ([2 / 3, 2 / 3], [4 / 5])


def test_several_predictions_on_one_true_component_count_together():
    label = """
        ######
        ......"""
    predicted = """
        ##..##
        ##...."""
    assert as_lists(score(label, predicted)) == ([4 / 8], [2 / 4, 1.0])


def test_small_predictions_are_dropped_and_small_true_components_become_void():
    label = """
        #..####
        ......."""
    predicted = """
        ###...#
        ......."""
    assert as_lists(score(label, predicted)) == ([1 / 4, 1 / 3], [1 / 3, 1.0])
    assert as_lists(score(label, predicted, min_pred=2)) == ([0.0, 1 / 3], [1 / 3])
    assert as_lists(score(label, predicted, min_gt=2)) == ([1 / 4], [0.0, 1.0])
    # A prediction of which nothing is left is none.
    assert as_lists(score(label, "#...... .......", min_gt=2)) == ([0.0], [])


def test_size_is_measured_before_the_cut():
    label = """
        ##.....
        ......."""
    predicted = """
        ####...
        ......."""
    assert as_lists(score(label, predicted, min_pred=4, min_gt=3)) == ([], [0.0])


def test_mean_f1_counts_over_the_whole_set():
    # TP at 0.25 ... 0.50 (6 thresholds) is 2, from 0.55 on 1; FP is 0 up to 0.30, then 1.
    f1 = [4 / 4] * 2 + [4 / 5] * 4 + [2 / 4] * 5
    metrics = component_metrics(ComponentScores(np.array([1.0, 0.5]), np.array([1.0, 0.3])))
    assert metrics["mF1"] == pytest.approx(100 * sum(f1) / 11)
    assert metrics["sIoU"] == pytest.approx(75) and metrics["PPV"] == pytest.approx(65)


def test_cases_without_components():
    none = np.empty(0)
    nothing = component_metrics(ComponentScores(none, none))
    assert all(map(math.isnan, nothing.values()))
    missed = component_metrics(ComponentScores(np.zeros(3), none))
    assert missed["sIoU"] == 0 and math.isnan(missed["PPV"]) and missed["mF1"] == 0
    invented = component_metrics(ComponentScores(none, np.zeros(3)))
    assert math.isnan(invented["sIoU"]) and invented["PPV"] == 0 and invented["mF1"] == 0


def test_metrics_do_not_depend_on_the_order_of_frames():
    rng = np.random.default_rng(0)
    parts = [ComponentScores(rng.random(7), rng.random(9)) for _ in range(20)]
    assert component_metrics(concatenate(parts)) == component_metrics(concatenate(parts[::-1]))


def test_sizes_of_the_protocols():
    assert component_sizes("anomaly") == (500, 100)
    assert component_sizes("obstacle") == (50, 10)
    assert component_sizes("obstacle", min_pred=0) == (0, 10)
    assert component_sizes("anomaly", min_gt=7) == (500, 7)
    with pytest.raises(UserError, match="'fishy'"):
        component_sizes("fishy")
