"""Merging of OOD queries and per-pixel scores, by brute force from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from tdos_d2.errors import UserError
from tdos_d2.modeling.merge import merge_classes, merge_maps
from tdos_d2.modeling.scores import get_score, known_scores, log_s_ood, max_logit


def test_merge_rules():
    maps = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert merge_maps(maps, 2, "max")[1, :, 0, 0].tolist() == [1, 2, 5]
    assert merge_maps(maps, 2, "mean")[1, :, 0, 0].tolist() == [1, 2, 4]
    classes = torch.arange(16.0).view(1, 4, 4)
    assert merge_classes(classes, 2)[0, 2].tolist() == [10, 11, 12, 13]


def test_merge_is_per_pixel_and_per_image():
    """Defect 17: a merge over the wrong axis would take one image for all."""
    maps = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    merged = merge_maps(maps, 2, "max")
    for b in range(2):
        for y in range(4):
            for x in range(4):
                assert merged[b, 2, y, x] == max(maps[b, q, y, x] for q in (2, 3, 4))


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, 4, generator=generator),  # K = 2: classes 0, 1, OOD, no object
        3 * torch.randn(2, 3, 5, 6, generator=generator),
    )


def brute_force(class_logits, mask_logits, b, c, y, x) -> float:
    """S_c(x) = sum_q p(c | q) sigmoid(m_q(x)) in Python floats."""
    total = 0.0
    for q in range(3):
        exponentials = [math.exp(v) for v in class_logits[b, q].tolist()]
        mask = 1 / (1 + math.exp(-mask_logits[b, q, y, x].item()))
        total += exponentials[c] / sum(exponentials) * mask
    return total


def test_scores_follow_the_formulas(outputs):
    known, ood, negative = known_scores(*outputs), log_s_ood(*outputs), max_logit(*outputs)
    assert known.shape == (2, 2, 5, 6) and ood.shape == negative.shape == (2, 5, 6)
    for b, y, x in ((0, 0, 0), (1, 4, 5), (0, 2, 3)):
        s = [brute_force(*outputs, b, c, y, x) for c in range(3)]
        assert known[b, :, y, x].tolist() == pytest.approx(s[:2], rel=1e-5)
        assert ood[b, y, x].item() == pytest.approx(math.log(s[2]), rel=1e-5)
        assert negative[b, y, x].item() == pytest.approx(1 - max(s[:2]), rel=1e-4)


def test_log_score_does_not_saturate():
    """Masks of -120 and -110: sigmoid gives 0 for both in float32, the log keeps them apart."""
    class_logits = torch.zeros(1, 2, 3)
    mask_logits = torch.tensor([[-120.0, -110.0], [-120.0, -110.0]]).view(1, 2, 1, 2)
    low, high = log_s_ood(class_logits, mask_logits)[0, 0].tolist()
    assert high - low == pytest.approx(10, rel=1e-4)


def test_unknown_score_is_named():
    with pytest.raises(UserError, match="energetic"):
        get_score("energetic")
