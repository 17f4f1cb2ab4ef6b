"""Per-pixel scores against NumPy and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tdos_d2.errors import UserError
from tdos_d2.modeling.scores import SCORES, AnomalyScores, class_scores, log_s_ood, text_only

TEMPERATURE = 0.07


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 5, generator=generator),  # K = 3: classes 0, 1, 2, OOD, no object
        3 * torch.randn(2, 4, 5, 6, generator=generator),
        torch.rand(2, 4, 5, 6, generator=generator) - 0.5,
    )


MEMORY = torch.linspace(0, 1, 60).view(2, 5, 6)


def all_scores() -> AnomalyScores:
    """With log_s_ood of median -3 and unit 2 on normal frames, and memory of 0.25 and 0.1."""
    scores = AnomalyScores(SCORES, TEMPERATURE)
    scores.normal.copy_(torch.tensor([[-3.0, 2.0], [0.25, 0.1]]))
    return scores


def expected_scores(outputs, b: int, y: int, x: int) -> tuple[list[float], dict[str, float]]:
    """S of the known classes and every score of one pixel, from the papers' formulas."""
    class_logits, mask_logits, cosines = (t.double().numpy()[b] for t in outputs)
    p = np.exp(class_logits) / np.exp(class_logits).sum(1, keepdims=True)
    mask = 1 / (1 + np.exp(-mask_logits[:, y, x]))
    s = [sum(p[q, c] * mask[q] for q in range(4)) for c in range(4)]
    known, ood = s[:3], s[3]
    shares = np.exp(cosines[:, y, x] / TEMPERATURE)
    memory = MEMORY[b, y, x].item()
    return known, {
        "memory": memory,
        "combined": (math.log(ood) + 3) / 2 + (memory - 0.25) / 0.1,
        "log_s_ood": math.log(ood),
        "text_only": math.log(shares[3] / shares.sum()),
        "s_ood_softmax": math.exp(ood) / sum(math.exp(v) for v in s),
        "max_logit": 1 - max(known),
        "energy": -math.log(sum(math.exp(v) for v in known)),
        "rba": -sum(math.tanh(v) for v in known),
    }


def test_all_scores_follow_the_formulas(outputs):
    scores = all_scores()
    maps = scores.window_maps(*outputs, (5, 6), MEMORY)
    for b, y, x in ((0, 0, 0), (1, 4, 5), (0, 2, 3)):
        known, found = scores.finish(maps[b])
        assert known.shape == (3, 5, 6) and list(found) and set(found) == set(SCORES)
        s, expected = expected_scores(outputs, b, y, x)
        assert known[:, y, x].tolist() == pytest.approx(s, rel=1e-5)
        values = {name: found[name][y, x].item() for name in SCORES}
        assert values == pytest.approx(expected, rel=1e-4)


def test_released_softmax_worked_by_hand():
    """Defect 9: the extra softmax ranks S_ood = 0.50 alone above 0.55 beside a known 1.0."""
    alone, beside = torch.zeros(2, 20, 1, 1)
    alone[19], beside[19], beside[0] = 0.50, 0.55, 1.0
    scores = AnomalyScores(["s_ood_softmax"])
    low = scores.finish(beside)[1]["s_ood_softmax"].item()
    high = scores.finish(alone)[1]["s_ood_softmax"].item()
    assert high == pytest.approx(math.exp(0.5) / (math.exp(0.5) + 19))
    assert low == pytest.approx(math.exp(0.55) / (math.exp(0.55) + math.e + 18))
    assert high > low
    one = torch.zeros(20, 1, 1)
    one[19] = 1  # the best there can be is not 1 but e / (e + 19)
    assert scores.finish(one)[1]["s_ood_softmax"].item() == pytest.approx(0.125, abs=5e-4)


def test_functions_of_s_are_made_from_the_averaged_s(outputs):
    """Two windows that cover the same pixels: averaged are S and the logarithms, nothing else."""
    scores = all_scores()
    maps = scores.window_maps(*outputs, (5, 6), MEMORY)
    known, found = scores.finish(maps.mean(0))
    for y, x in ((0, 0), (4, 5)):
        windows = [expected_scores(outputs, b, y, x) for b in range(2)]
        s = np.mean([known for known, _ in windows], axis=0)
        assert known[:, y, x].tolist() == pytest.approx(s, rel=1e-5)
        assert found["max_logit"][y, x].item() == pytest.approx(1 - max(s), rel=1e-5)
        assert found["rba"][y, x].item() == pytest.approx(-np.tanh(s).sum(), rel=1e-5)
        assert found["energy"][y, x].item() == pytest.approx(-np.log(np.exp(s).sum()), rel=1e-5)
        for name in ("log_s_ood", "text_only", "memory", "combined"):
            mean = np.mean([values[name] for _, values in windows])
            assert found[name][y, x].item() == pytest.approx(mean, rel=1e-4)


def test_s_is_made_once_whatever_is_asked_for(outputs, monkeypatch):
    import tdos_d2.modeling.scores as module

    calls = []
    monkeypatch.setattr(
        module, "class_scores", lambda *args: calls.append(1) or class_scores(*args)
    )
    scores = all_scores()
    scores.names += ("rba",)
    assert len(scores.finish(scores.window_maps(*outputs, (5, 6), MEMORY)[0])[1]) == len(SCORES)
    assert len(calls) == 1


def test_maps_have_the_size_of_the_window(outputs):
    class_logits, mask_logits, cosines = outputs
    maps = all_scores().window_maps(
        class_logits, mask_logits, cosines[..., :2, :3], (20, 24), MEMORY[..., :1]
    )
    assert maps.shape == (2, 4 + 3, 20, 24)  # S of K + 1 classes, two logarithms, the memory's


def test_logarithms_do_not_saturate():
    """Masks of -120 and -110: sigmoid gives 0 for both in float32, the log keeps them apart."""
    class_logits = torch.zeros(1, 2, 3)
    mask_logits = torch.tensor([[-120.0, -110.0], [-120.0, -110.0]]).view(1, 2, 1, 2)
    low, high = log_s_ood(class_logits, mask_logits)[0, 0].tolist()
    assert high - low == pytest.approx(10, rel=1e-4)
    cosines = torch.tensor([[1.0, 1.0], [-1.0, -0.9]]).view(1, 2, 1, 2)
    low, high = text_only(cosines, 0.01)[0, 0].tolist()  # shares of e^-200 and e^-190
    assert [low, high] == pytest.approx([-200, -190], rel=1e-5)


def test_unknown_score_is_named():
    with pytest.raises(UserError, match="energetic.*log_s_ood"):
        AnomalyScores(["log_s_ood", "energetic"])


def test_parts_of_combined_are_weighed_by_normal_frames():
    scores = AnomalyScores(["combined"])
    frames = torch.randn(3, 4, 20, 30) * torch.tensor([1.0, 1, 5, 0.2])[:, None, None] + 2
    with pytest.raises(UserError, match="never measured.*fit_memory"):
        scores.finish(frames[0])
    scores.fit(list(frames))
    log, memory = (frames[:, i].numpy().astype(np.float64) for i in (2, 3))
    ends = [np.quantile(x, (0.5, 0.99), method="nearest") for x in (log, memory)]
    expected = [[median, high - median] for median, high in ends]
    np.testing.assert_allclose(scores.normal.numpy(), expected, rtol=1e-4)
    found = scores.finish(frames[1])[1]["combined"].numpy()
    parts = sum(
        (x[1] - median) / unit for x, (median, unit) in zip((log, memory), expected, strict=True)
    )
    np.testing.assert_allclose(found, parts, rtol=1e-3, atol=1e-4)
    # Of a large frame pixels of all its parts count, and no more of them than 4,096.
    large = torch.linspace(0, 1, 300 * 400).view(300, 400).expand(4, -1, -1)
    scores.fit([large])
    np.testing.assert_allclose(scores.normal.numpy(), [[0.5, 0.49]] * 2, atol=0.03)
    # Also where every n-th pixel would be in a few columns.
    strip = torch.randn(1024, 2048)
    strip[:, 600:900] += 50
    scores.fit([strip.expand(4, -1, -1)])
    assert scores.normal[0].tolist() == pytest.approx([0.2, 51], abs=1)
    with pytest.raises(UserError, match="same on all normal frames"):
        scores.fit([torch.zeros(4, 5, 5)])
