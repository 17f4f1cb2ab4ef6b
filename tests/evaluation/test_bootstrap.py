"""Confidence intervals against scikit-learn on drawn sets, and a bootstrap worked out in full."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from tdos_d2.evaluation.bootstrap import (
    MAX_BINS,
    bootstrap,
    component_replicates,
    component_table,
    pixel_replicates,
    quantile_bins,
)
from tdos_d2.evaluation.component_metrics import ComponentScores, component_metrics, concatenate
from tdos_d2.evaluation.frames import Frame, check_frame
from tdos_d2.evaluation.pixel_metrics import KeyBins, count_pixels, pixel_metrics

SHAPES = {
    "spread": lambda x: x,
    "saturated": lambda x: 1 / (1 + np.exp(-6 * x - 12)),
    "tied": lambda x: np.round(2 * x),
    "half of it equal": lambda x: np.maximum(x, 0),
}


def make_frames(shape: str, number: int = 6) -> list[Frame]:
    rng = np.random.default_rng(5)
    frames = []
    for i in range(number):
        label = np.zeros((60, 70), np.uint8)
        label[10 : 15 + 3 * i, 20:40], label[55:] = 1, 255
        noisy = rng.normal(1.5 * (label == 1) + rng.normal() / 3, 1)
        frames.append(check_frame(SHAPES[shape](noisy), label, "test"))
    return frames


def fine_counts(frames: list[Frame]) -> tuple[KeyBins, np.ndarray]:
    """The last bins that ``pixel_metrics`` asks for, and their counts."""
    asked = []

    def count(bins: KeyBins) -> np.ndarray:
        asked.append((bins, count_pixels(frames, bins)))
        return asked[-1][1]

    pixel_metrics(count, "test")
    return asked[-1]


def sklearn_values(frames: list[Frame]) -> list[float]:
    score = np.concatenate([f.score[f.label != 255] for f in frames])
    label = np.concatenate([f.label[f.label != 255] for f in frames])
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(label, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    ap, auroc = average_precision_score(label, score), roc_auc_score(label, score)
    return [ap, auroc, fpr[np.argmax(tpr >= 0.95)], f1.max()]


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_sets_agree_with_scikit_learn_within_the_bound(shape):
    frames = make_frames(shape)
    bins, counts = fine_counts(frames)
    starts, hidden = quantile_bins(counts, bins.single)
    assert len(starts) <= MAX_BINS
    per_frame = np.stack(
        [np.add.reduceat(count_pixels([f], bins), starts, axis=1)[:, ::-1] for f in frames]
    )
    draws = np.random.default_rng(1).multinomial(6, [1 / 6] * 6, 20)
    values, bounds = pixel_replicates(draws.astype(float), per_frame, hidden[::-1])
    for draw, value, bound in zip(draws, values.T, bounds.T, strict=True):
        drawn = [f for f, times in zip(frames, draw, strict=True) for _ in range(times)]
        error = np.abs(value - sklearn_values(drawn))
        assert (error <= bound + 1e-9).all() and (bound < 2e-3).all()


def test_bins_hold_little_of_either_class_unless_scores_are_equal():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (2, 50_000))
    counts[:, 700] = 10**6
    starts, hidden = quantile_bins(counts, np.ones(50_000, bool))
    assert len(starts) <= MAX_BINS
    sums = np.add.reduceat(counts, starts, axis=1)
    heavy = int(np.flatnonzero(starts == 700)[0])
    assert starts[heavy + 1] == 701 and not hidden[heavy]
    assert (sums[:, hidden] <= counts.sum(axis=1, keepdims=True) / 1000).all()


def test_intervals_are_those_of_all_possible_draws():
    """Three frames: all 27 draws in order are the whole distribution."""
    frames = make_frames("spread", 3)
    rng = np.random.default_rng(2)
    components = [ComponentScores(rng.random(3), rng.random(2 + i)) for i in range(3)]
    found = bootstrap(frames, components, *fine_counts(frames), number=2000)
    every = list(itertools.product(range(3), repeat=3))
    exact = [sklearn_values([frames[i] for i in draw]) for draw in every]
    parts = [component_metrics(concatenate(components[i] for i in draw)) for draw in every]
    names = ("AP", "AUROC", "FPR95", "F1")
    columns = {name: [100 * row[i] for row in exact] for i, name in enumerate(names)}
    columns |= {name: [part[name] for part in parts] for name in ("sIoU", "PPV", "mF1")}
    assert list(found.intervals) == list(columns)
    for name, values in columns.items():
        # The least and the largest of 27 have a share of 1/27 > 2.5 % each.
        assert found.intervals[name] == pytest.approx(
            (min(values), max(values)), abs=found.errors[name] + 1e-6
        )
    assert found.undefined == 0 and found.errors["sIoU"] == 0 < found.errors["AP"] < 0.2


def test_seed_decides():
    frames = make_frames("spread")
    components = [ComponentScores(np.ones(1), np.ones(1))] * 6
    run = partial(bootstrap, frames, components, *fine_counts(frames), number=50)
    assert run(seed=3) == run(seed=3) != run(seed=4)


def test_draws_without_ood_pixels_are_counted_and_left_out():
    frames = make_frames("spread", 2)
    frames[0] = Frame(frames[0].score, np.where(frames[0].label == 255, 255, 0).astype(np.uint8))
    components = [
        ComponentScores(np.empty(0), np.empty(0)),
        ComponentScores(np.ones(2), np.ones(1)),
    ]
    found = bootstrap(frames, components, *fine_counts(frames), number=400)
    assert 60 < found.undefined < 140  # a quarter
    assert all(math.isfinite(end) for ends in found.intervals.values() for end in ends)


def test_component_sums_give_component_metrics():
    rng = np.random.default_rng(0)
    components = [ComponentScores(rng.random(i), rng.random(2 * i)) for i in range(5)]
    draws = np.array([[1, 0, 2, 0, 3], [0, 1, 1, 1, 1], [5, 0, 0, 0, 0]], float)
    values = component_replicates(draws, component_table(components))
    for draw, value in zip(draws.astype(int), values.T, strict=True):
        parts = [c for c, times in zip(components, draw, strict=True) for _ in range(times)]
        expected = list(component_metrics(concatenate(parts)).values())
        assert 100 * value == pytest.approx(expected, nan_ok=True)
