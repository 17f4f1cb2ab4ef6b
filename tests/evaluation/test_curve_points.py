"""What reports draw: points of curves, histograms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from tdos_d2.evaluation.curve_points import central_range, curve_points, histogram
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.pixel_metrics import KeyBins, count_pixels, pixel_metrics

SCORES = {
    "normal": lambda rng, label: rng.normal(1.5 * (label == 1), 1),
    "close to 100": lambda rng, label: 100 - 1e-4 * rng.random(label.shape) * (label != 1),
    "two values": lambda rng, label: rng.random(label.shape) < 0.3 + 0.4 * (label == 1),
}


def make(kind: str):
    """Frames, and the bins and counts that ``pixel_metrics`` ends with."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 255], (3, 60, 80), p=[0.8, 0.1, 0.1])
    frames = [check_frame(np.float32(SCORES[kind](rng, x)), x, "frame") for x in labels]
    last = {}

    def count(bins):
        last.update(bins=bins, counts=count_pixels(frames, bins))
        return last["counts"]

    pixel_metrics(count, "test")
    return frames, last["bins"], last["counts"]


def pixels(frames):
    score = np.concatenate([f.score[f.label < 255] for f in frames])
    return score, np.concatenate([f.label[f.label < 255] for f in frames])


@pytest.mark.parametrize("kind", SCORES)
def test_points_are_those_of_scikit_learn(kind):
    frames, bins, counts = make(kind)
    curve = curve_points(bins, counts)
    score, label = pixels(frames)
    precision, recall, thresholds = precision_recall_curve(label, score)
    # A point may lie between two scores: it is that of the next larger one.
    at = np.searchsorted(thresholds, curve.threshold)
    assert np.array_equal(curve.recall, recall[at])
    assert np.array_equal(curve.precision, precision[at])
    fpr, tpr, thresholds = roc_curve(label, score, drop_intermediate=False)
    at = len(thresholds) - 1 - np.searchsorted(thresholds[::-1], curve.threshold)
    assert np.array_equal(curve.fpr, fpr[at]) and np.array_equal(curve.recall, tpr[at])

    f1 = 2 * precision * recall / (precision + recall)
    point = 2 / (1 / curve.precision[curve.best] + 1 / curve.recall[curve.best])
    assert point == pytest.approx(f1.max())
    assert curve.fpr[curve.at_95] == fpr[np.argmax(tpr >= 0.95)]
    assert len(curve.recall) <= min(2003, len(thresholds))
    # What is drawn is the curve: the same area under it.
    area = np.diff(curve.recall, prepend=0) @ curve.precision
    assert area == pytest.approx(average_precision_score(label, score), abs=1e-3)
    assert (curve.recall[-1], curve.fpr[-1]) == (1, 1)


def test_no_curve_without_ood():
    frame = check_frame(np.random.default_rng(0).random((5, 6)), np.zeros((5, 6), int), "frame")
    bins = KeyBins.coarse()
    assert curve_points(bins, count_pixels([frame], bins)) is None
    low, high = central_range(bins, count_pixels([frame], bins))
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("kind", SCORES)
def test_histogram_by_brute_force(kind):
    frames, bins, counts = make(kind)
    ends = central_range(bins, counts)
    whole = histogram(frames, *ends)
    width = (ends[1] - ends[0]) / 100
    expected = np.zeros((2, 100), int)
    for score, label in zip(*pixels(frames), strict=True):
        bar = (float(score) - ends[0]) / width
        if abs(bar - round(bar)) < 1e-6:  # scores on an edge belong to the bar above
            bar = round(bar)
        expected[label, min(max(int(np.floor(bar)), 0), 99)] += 1
    assert np.array_equal(whole.counts, expected)
    parts = [histogram([frame], *ends).counts for frame in frames]
    assert np.array_equal(sum(parts), whole.counts) and whole.edges[[0, -1]].tolist() == [*ends]


def test_range_leaves_out_a_thousandth_of_a_class():
    score = np.linspace(0, 1, 20000, dtype=np.float32).reshape(100, 200)
    score[0, :10] = -1e6  # half a thousandth
    frame = check_frame(score, np.zeros(score.shape, int), "frame")
    low, high = central_range(*counted(frame))
    assert 0 <= low < 0.002 and 0.99 < high < 1
    constant = check_frame(np.full((4, 4), 1e20), np.zeros((4, 4), int), "frame")
    low, high = central_range(*counted(constant))
    assert low < 1e20 < high and histogram([constant], low, high).counts.sum() == 16


def counted(frame):
    bins = KeyBins.coarse()
    return bins, count_pixels([frame], bins)
