"""Pixel metrics against hand-worked cases, brute force and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from tdos_d2.errors import UserError
from tdos_d2.evaluation import pixel_metrics as module
from tdos_d2.evaluation.frames import Frame, check_frame
from tdos_d2.evaluation.pixel_metrics import KeyBins, count_pixels, float_keys, pixel_metrics


def measure(*frames: Frame):
    return pixel_metrics(lambda bins: count_pixels(frames, bins), "test")


def frame(score, label) -> Frame:
    return check_frame(np.atleast_2d(score), np.atleast_2d(label), "test")


def values(metrics) -> np.ndarray:
    return np.array([metrics.ap, metrics.auroc, metrics.fpr95, metrics.f1])


@np.errstate(invalid="ignore")  # scikit-learn checks for infinity by a sum, which may overflow
def sklearn_values(*frames: Frame) -> np.ndarray:
    score = np.concatenate([f.score[f.label != 255] for f in frames])
    label = np.concatenate([f.label[f.label != 255] for f in frames])
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(label, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    ap, auroc = average_precision_score(label, score), roc_auc_score(label, score)
    return 100 * np.array([ap, auroc, fpr[np.argmax(tpr >= 0.95)], f1.max()])


def brute_force(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Straight from the definitions: one confusion matrix per threshold, all pairs for AUROC."""
    pos, neg = score[label == 1], score[label == 0]
    ap = last_recall = f1 = 0.0
    fpr95 = None
    for threshold in np.unique(score)[::-1]:
        tp, fp = (pos >= threshold).sum(), (neg >= threshold).sum()
        ap += (tp / len(pos) - last_recall) * tp / (tp + fp)
        last_recall = tp / len(pos)
        f1 = max(f1, 2 * tp / (len(pos) + tp + fp))
        if fpr95 is None and tp / len(pos) >= 0.95:
            fpr95 = fp / len(neg)
    pairs = (pos[:, None] > neg).mean() + (pos[:, None] == neg).mean() / 2
    return 100 * np.array([ap, pairs, fpr95, f1])


def test_distinct_scores_worked_by_hand():
    metrics = measure(frame([0.9, 0.8, 0.7, 0.6, 0.5, 7.0], [1, 0, 1, 0, 1, 255]))
    assert metrics.ap == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    assert metrics.auroc == pytest.approx(50)  # 3 of 6 pairs
    assert metrics.fpr95 == pytest.approx(100)
    assert metrics.f1 == pytest.approx(75)
    assert metrics.threshold == np.float32(0.5)


def test_equal_scores_worked_by_hand():
    metrics = measure(frame([1, 1, 0], [1, 0, 1]))
    assert metrics.ap == pytest.approx(100 * (1 / 2 * 1 / 2 + 1 / 2 * 2 / 3))
    assert metrics.auroc == pytest.approx(25)
    assert metrics.f1 == pytest.approx(80)


def test_fpr95_needs_95_percent_not_all():
    # 20 OOD pixels of which one is below the known ones: 19 of 20 are exactly 95 %.
    metrics = measure(frame([*range(2, 21), 0, 1, 1.5], [1] * 20 + [0, 0]))
    assert metrics.fpr95 == 0
    metrics = measure(frame([*range(2, 20), 0, 1, 1.5], [1] * 19 + [0, 0]))
    assert metrics.fpr95 == 100


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    levels = rng.choice([2, 5, 1000])
    label = rng.permutation(np.arange(200) < rng.integers(1, 100))
    score = (rng.integers(0, levels, 200) - levels // 2) * rng.choice([1e-30, 0.1, 1e20])
    score = (score + label * rng.integers(0, 3)).astype(np.float32)
    metrics = measure(frame(score, label))
    error = np.abs(values(metrics) - brute_force(score, label))
    assert (error <= metrics.bound + 1e-9).all() and metrics.bound <= 0.005


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SHAPES = {
    "logits": lambda x: x,
    "negative logits": lambda x: x - 12,
    "near a large number": lambda x: x + 1000,
    "100 - tiny": lambda x: 100 - 1e-4 * np.exp(-x),
    "sigmoid": sigmoid,
    "saturated sigmoid": lambda x: sigmoid(6 * x + 10),
    "log of a probability": lambda x: np.log(sigmoid(3 * x - 12)),
    "float16": lambda x: sigmoid(5 * x + 6).astype(np.float16),
    "8 bit": lambda x: np.round(255 * sigmoid(x)),
    "decision": lambda x: x > 1,
    "constant": lambda x: 0 * x - 3,
    "two zeros": lambda x: np.round(x) * np.where(x > 0.2, 1.0, -0.0),
    "subnormal": lambda x: x * 1e-42,
    "huge": lambda x: x * 3e37,
    "one OOD pixel on top": lambda x: x * 1e-3 + (x == x.max()),
    # Two neighbouring floats in each of thousands of bins of the first pass.
    "pairs of neighbours": lambda x: (
        (np.floor((x + 6) * 1000).astype(np.uint32) * 65536 + 0x3F800000 + (x % 2e-4 > 1e-4))
        .astype(np.uint32)
        .view(np.float32)
    ),
}


@pytest.mark.parametrize("share", [0.3, 0.01, 2e-4])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scikit_learn(shape, share):
    rng = np.random.default_rng(5)
    num_ood, num = max(int(40_000 * share), 1), 40_000
    x = np.concatenate([rng.normal(2.5, 1, num_ood), rng.normal(0, 1, num)])
    label = np.concatenate([np.ones(num_ood), np.zeros(num)])
    given = frame(SHAPES[shape](x), label)
    metrics = measure(given)
    error = np.abs(values(metrics) - sklearn_values(given))
    assert (error <= metrics.bound + 1e-9).all(), (metrics, error)
    assert metrics.bound <= 0.005

    predicted = given.score >= np.float32(metrics.threshold)
    true = given.label == 1
    f1 = 200 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert f1 == pytest.approx(metrics.f1, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_bound_holds_where_it_is_large(shape, monkeypatch):
    """The result of the first pass is within its own bound, which may be many points."""
    monkeypatch.setattr(module, "TOLERANCE", 1.0)
    rng = np.random.default_rng(6)
    for num_ood in (1, 3, 500):
        x = np.concatenate([rng.normal(1, 1, num_ood), rng.normal(0, 1, 3000)])
        given = frame(SHAPES[shape](x), [1] * num_ood + [0] * 3000)
        metrics = measure(given)
        error = np.abs(values(metrics) - sklearn_values(given))
        assert (error <= metrics.bound + 1e-9).all(), (metrics, error)


def test_state_is_small_and_passes_are_few():
    rng = np.random.default_rng(7)
    for shape in SHAPES:
        given = frame(SHAPES[shape](rng.normal(0, 1, 20_000)), np.arange(20_000) % 3 == 0)
        sizes = []

        def count(bins, given=given, sizes=sizes):
            counts = count_pixels([given], bins)
            sizes.append(counts.nbytes)
            return counts

        pixel_metrics(count, "test")
        assert len(sizes) <= 5, shape
        assert max(sizes) <= 100e6, shape


def test_rounding_leaves_no_doubt_below_zero():
    """Its square root would be NaN, and every pass would then split a single bin."""
    known, ood = np.array([3e7, 0, 1000]), np.array([1e6, 1, 50])
    curve = module.curve_of_counts(known, ood, np.array([False, True, True]))
    assert (curve.doubt >= 0).all() and curve.doubt[2] > 0
    doubt = np.zeros(len(KeyBins.coarse()))
    doubt[:3] = curve.doubt
    assert len(KeyBins.coarse().refined(doubt)) > 1.9 * len(doubt), "all that it may split"


def test_metrics_are_those_of_the_whole_set_not_means_over_frames():
    easy = frame([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
    shifted = frame([5.1, 5.2, 5.3, 5.4], [0, 0, 1, 1])
    assert measure(easy).ap == measure(shifted).ap == 100
    # From the top: 2 OOD, 2 known, 2 OOD, 2 known.
    assert measure(easy, shifted).ap == pytest.approx(100 * (1 + 1 + 3 / 5 + 4 / 6) / 4)


def test_counts_add_up_and_order_does_not_matter():
    rng = np.random.default_rng(8)
    frames = [
        frame(rng.normal(i, 1, (20, 30)), rng.choice([0, 1, 255], (20, 30))) for i in range(5)
    ]
    passes = 0

    def in_parts(bins):
        nonlocal passes
        passes += 1
        counts = count_pixels(frames[3:], bins) + count_pixels(frames[:3][::-1], bins)
        assert (counts == count_pixels(frames, bins)).all()
        return counts

    assert pixel_metrics(in_parts, "test") == measure(*frames)
    assert passes > 1


@pytest.mark.parametrize("label, lacking", [(0, "no OOD"), (1, "no known"), (255, "no known and")])
def test_a_missing_class_gives_nan_and_one_warning(label, lacking, caplog):
    metrics = measure(frame([1.0, 2.0], [label, label]))
    assert np.isnan(values(metrics)).all() and math.isnan(metrics.threshold)
    assert len(caplog.records) == 1 and lacking in caplog.text and "test" in caplog.text


def test_frames_that_change_between_passes_are_an_error():
    rng = np.random.default_rng(9)
    frames = [frame(rng.normal(size=100), np.arange(100) % 2) for _ in range(3)]
    with pytest.raises(UserError, match="changed"):
        pixel_metrics(lambda bins: count_pixels([frames.pop()] * len(frames), bins), "test")


def test_keys_have_the_order_of_the_scores():
    bits = np.random.default_rng(10).integers(0, 2**32, 100_000, dtype=np.uint32)
    score = bits.view(np.float32)
    score = np.sort(np.concatenate([score[np.isfinite(score)], np.float32([-1e-45, 0, 1e-45])]))
    keys = float_keys(score).astype(np.int64)
    assert ((np.diff(score) > 0) == (np.diff(keys) > 0)).all() and (np.diff(keys) >= 0).all()
    assert float_keys(np.float32([-0.0])) == float_keys(np.float32([0.0]))


def test_every_score_lies_in_its_bin_after_several_refinements():
    rng = np.random.default_rng(11)
    score = np.concatenate([rng.normal(size=3000), rng.normal(size=3000) * 1e-40, [0.0]])
    score = score.astype(np.float32)
    bins = KeyBins.coarse()
    for _ in range(3):
        bins = bins.refined(rng.random(len(bins)) * ~bins.single * (rng.random(len(bins)) < 1e-3))
        index = bins.index(float_keys(score)).astype(int)
        assert index.max() < len(bins)
        for i, value in zip(index[::50], score[::50], strict=True):
            assert bins.smallest(i) <= value < bins.smallest(i + 1)
            assert not bins.single[i] or bins.smallest(i) == value
