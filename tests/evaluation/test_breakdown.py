"""Instances, images and groups of anomalies; thresholds by rule: by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from tdos_d2.errors import UserError
from tdos_d2.evaluation import evaluate_breakdown, evaluate_scores
from tdos_d2.evaluation.dataset_metrics import KeptCounts
from tdos_d2.evaluation.frames import Frame
from tdos_d2.evaluation.image_metrics import image_metrics, score_image
from tdos_d2.evaluation.instance_metrics import instance_metrics, score_instances
from tdos_d2.evaluation.pixel_metrics import KeyBins, count_pixels, pixel_metrics
from tdos_d2.evaluation.threshold_rules import parse_rule, threshold_by


def boxes(shape: tuple[int, int], *given: tuple) -> np.ndarray:
    """An array with values on boxes (y0, y1, x0, x1, value)."""
    made = np.zeros(shape, np.float32)
    for y0, y1, x0, x1, value in given:
        made[y0:y1, x0:x1] = value
    return made


def test_instances_by_hand():
    """Two of 4x5 pixels, one of 3x3 that is too small to count, and 15 pixels of void."""
    objects = (1, 5, 1, 6, 1), (1, 5, 10, 15, 1), (1, 4, 20, 23, 1)
    label = boxes((20, 40), *objects, (8, 11, 1, 6, 255))
    score = boxes(
        (20, 40),
        (1, 5, 1, 6, 4),  # the first instance, exactly: IoU 1
        (1, 5, 10, 13, 3),  # 12 of the 20 pixels of the second: IoU 0.6
        (1, 4, 20, 23, 6),  # the small one, exactly: does not count
        (8, 12, 1, 6, 5),  # 20 pixels, 15 of them on void: does not count while 0.75 > overlap
        (15, 17, 30, 32, 2),  # nothing
    )
    scores = score_instances(Frame(score, label.astype(np.uint8)), 1.0, 1)
    metrics = instance_metrics([scores])
    assert (metrics["instances"], metrics["predicted"]) == (2, 5)
    # (recall, precision) at 0.5 and 0.55, hit 4, hit 3, wrong 2: (0, 1), (1/2, 1), (1, 1), (1, 2/3)
    assert metrics["AP50"] == pytest.approx(100, abs=1e-12)
    # At 0.6, 0.65, 0.7, hit 4, wrong 3, wrong 2: (0, 1), (1/2, 1), (1/2, 1/2), (1/2, 1/3). From
    # 0.75 to 0.95, wrong 5, hit 4 and so on: (0, 1), (0, 0), (1/2, 1/2), (1/2, 1/3) ...
    by_hand = (2 * 1 + 3 * 1 / 2 + 5 * 1 / 2 * (0 + 1 / 2) / 2) / 10
    assert metrics["AP"] == pytest.approx(100 * by_hand, abs=1e-12)


def test_instances_of_the_label_or_given():
    """Two objects that touch are one component, and one prediction fits both together only."""
    label = boxes((10, 20), (2, 8, 2, 12, 1)).astype(np.uint8)
    frame = Frame(boxes((10, 20), (2, 8, 2, 12, 1)), label)
    ids = boxes((10, 20), (2, 8, 2, 5, 300), (2, 8, 5, 12, 70000)).astype(np.int64)
    assert instance_metrics([score_instances(frame, 1, 1)])["AP"] == 100
    given = instance_metrics([score_instances(frame, 1, 1, instances=ids)])
    # IoU 0.7 with the larger of two: AP50 is the area from (0, 1) to (1/2, 1).
    assert given["instances"] == 2 and given["AP50"] == pytest.approx(50)
    assert given["AP"] == pytest.approx(50 * 4 / 10)  # at 0.5, 0.55, 0.6, 0.65
    whole = Frame(np.ones((4, 5), np.float32), np.ones((4, 5), np.uint8))
    everywhere = score_instances(whole, 1, 1, instances=np.full((4, 5), 3))
    assert instance_metrics([everywhere])["AP"] == 100


def test_instances_that_are_not_there():
    nothing = Frame(np.zeros((5, 5), np.float32), np.zeros((5, 5), np.uint8))
    true = Frame(np.zeros((5, 5), np.float32), np.ones((5, 5), np.uint8))
    assert math.isnan(instance_metrics([score_instances(nothing, 1, 1)])["AP"])
    assert instance_metrics([score_instances(true, 1, 1)])["AP"] == 0
    loud = Frame(np.ones((5, 5), np.float32), np.zeros((5, 5), np.uint8))
    both = instance_metrics([score_instances(true, 1, 1), score_instances(loud, 1, 1)])
    assert both["AP"] == 0 and both["predicted"] == 1
    small = score_instances(loud, 1, 26)
    assert len(small.iou) == 0  # a prediction below min_pred


def test_images_are_as_sklearn_has_them():
    rng = np.random.default_rng(0)
    pairs = [(float(rng.integers(0, 9)), bool(rng.random() < 0.4)) for _ in range(60)]
    scores, ood = np.array([s for s, _ in pairs]), np.array([o for _, o in pairs])
    found = image_metrics(pairs)
    assert found["AUROC"] == pytest.approx(100 * roc_auc_score(ood, scores))
    fpr, tpr, _ = roc_curve(ood, scores, drop_intermediate=False)
    assert found["FPR95"] == pytest.approx(100 * fpr[np.argmax(tpr >= 0.95)])
    assert (found["OOD_images"], found["normal_images"]) == (ood.sum(), (~ood).sum())
    assert math.isnan(image_metrics([(1.0, True)])["AUROC"])
    label = np.array([[0, 1], [255, 0]], np.uint8)
    assert score_image(Frame(np.array([[1, 2], [9, 0]], np.float32), label)) == (2.0, True)
    assert score_image(Frame(np.ones((1, 1), np.float32), label[1:, :1])) is None


@pytest.fixture
def street():
    """Frames of 200x240: anomalies small and near, medium and far, large and middle; one normal."""
    rng = np.random.default_rng(1)
    places = [(180, 190, 5, 15), (20, 60, 30, 80), (20, 140, 90, 190)]
    frames = []
    for shown in ((0, 1), (1, 2), (0, 2), ()):
        label = np.zeros((200, 240), np.uint8)
        label[150:160] = 255
        for place in shown:
            y0, y1, x0, x1 = places[place]
            label[y0:y1, x0:x1] = 1
        score = rng.normal(label == 1, 0.8).astype(np.float32) + 0.4 * (label == 1)
        frames.append((score, label))
    return frames, places


def test_groups_are_the_pixels_of_their_components(street):
    frames, places = street
    rows = evaluate_breakdown(frames, min_pred=1, min_gt=1)
    pairs = {"small": 0, "near": 0, "medium": 1, "far": 1, "large": 2, "middle": 2}
    for name, place in pairs.items():
        y0, y1, x0, x1 = places[place]
        known = [score[label == 0] for score, label in frames]
        ood = [s[y0:y1, x0:x1].ravel() for s, label in frames if label[y0, x0] == 1]
        scores = np.concatenate([*known, *ood])
        truth = np.arange(len(scores)) >= sum(map(len, known))
        assert rows[name]["components"] == 2
        ap = 100 * average_precision_score(truth, scores)
        assert rows[name]["AP"] == pytest.approx(ap, abs=0.005)
    # sIoU of all components is the mean over the groups of either kind, which have two each.
    siou = evaluate_scores(frames, min_pred=1, min_gt=1)["sIoU"]
    for names in (("small", "medium", "large"), ("near", "middle", "far")):
        assert np.mean([rows[name]["sIoU"] for name in names]) == pytest.approx(siou)
    assert (rows["images"]["OOD_images"], rows["images"]["normal_images"]) == (3, 1)
    assert rows["instances"]["instances"] == 6


def test_what_is_too_small_to_count_is_in_no_group(street):
    frames, _ = street
    rows = evaluate_breakdown(iter(frames[:3]), min_pred=1, min_gt=101)
    assert "small" not in rows and "near" not in rows and "images" not in rows
    assert rows["medium"]["components"] == 2
    assert evaluate_breakdown([(np.zeros((4, 4)), np.zeros((4, 4), int))]) == {}


@pytest.mark.parametrize("rule", ["fpr:0.01", "fpr:0.2", "tpr:0.95", "tpr:0.5", "fpr:0.0001"])
@pytest.mark.parametrize("kind", ["spread", "crowded", "few values"])
@pytest.mark.parametrize("strict", [False, True])
def test_thresholds_by_brute_force(rule, kind, strict):
    rng = np.random.default_rng(2)
    label = rng.choice([0, 1, 255], (40, 50), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    score = rng.normal(label == 1, 1).astype(np.float32)
    if kind == "crowded":
        score = (100 - 1e-4 * np.abs(score)).astype(np.float32)  # a few bins of the first pass
    elif kind == "few values":
        score = np.round(score)
    frames = [Frame(score, label)]
    count = KeptCounts(lambda bins: count_pixels(frames, bins))
    pixels = pixel_metrics(count, "")
    last = count.bins, count.counts
    found = threshold_by(parse_rule(rule), pixels.threshold, count, *last, strict)
    share = float(rule[4:])
    values = np.unique(score[label != 255])
    rates = {t: [(score[label == c] >= t).mean() for c in (0, 1)] for t in values.tolist()}
    if rule.startswith("tpr"):
        wanted = max(t for t, (_, tpr) in rates.items() if tpr >= share)
    else:
        wanted = min((t for t, (fpr, _) in rates.items() if fpr <= share), default=math.inf)
    predicted = frames[0].predicted(found, strict)
    assert np.array_equal(predicted, (score >= wanted) & (label != 255))


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 57, 58, 95])
@pytest.mark.parametrize("kind", ["tpr", "fpr"])
def test_shares_of_a_hundred_pixels_are_exact(kind, percent):
    """0.55 * 100 is more than 55 in floating point, and 0.29 * 100 less than 29."""
    label = np.repeat([[0, 1]], 100, axis=0)
    frames = [Frame(np.repeat(np.arange(100.0, dtype=np.float32)[:, None], 2, axis=1), label)]
    count = KeptCounts(lambda bins: count_pixels(frames, bins))
    pixels = pixel_metrics(count, "")
    rule = parse_rule(f"{kind}:{percent / 100}")
    threshold = threshold_by(rule, pixels.threshold, count, count.bins, count.counts)
    assert (np.arange(100) >= threshold).sum() == percent


@pytest.mark.parametrize("share, kept", [("0.9999999", 3), ("0.5", 2), ("1e-7", 0)])
def test_shares_next_to_none_and_all(share, kept):
    """Of four pixels, none is all but one of them or less than one of them."""
    label = np.repeat([[0, 1]], 4, axis=0)
    frames = [Frame(np.repeat(np.arange(4, dtype=np.float32)[:, None], 2, axis=1), label)]
    count = KeptCounts(lambda bins: count_pixels(frames, bins))
    last = pixel_metrics(count, ""), count.bins, count.counts
    for kind, wanted in (("fpr", kept), ("tpr", min(kept + (share != "0.5"), 4))):
        rule = parse_rule(f"{kind}:{share}")
        threshold = threshold_by(rule, last[0].threshold, count, *last[1:])
        assert (np.arange(4) >= threshold).sum() == wanted


def test_rules_in_words(tmp_path):
    coarse = KeyBins.coarse()
    nothing = np.zeros((2, len(coarse)), np.int64)
    assert threshold_by(parse_rule("-1.5"), 0.0, None, coarse, nothing) == -1.5
    assert threshold_by(parse_rule("best-f1"), 0.25, None, coarse, nothing) == 0.25
    assert math.isnan(threshold_by(parse_rule("tpr:0.9"), math.nan, None, coarse, nothing))
    path = tmp_path / "t.json"
    for text, expected in (("{}", "holds no threshold"), ("[1", "holds no"), (None, "cannot read")):
        path.unlink(missing_ok=True) if text is None else path.write_text(text)
        with pytest.raises(UserError, match=expected):
            parse_rule(str(path))
    for wrong in ("fpr", "fpr:0", "tpr:1", "inf", "f1"):
        with pytest.raises(UserError, match="a threshold is best-f1"):
            parse_rule(wrong)
