"""Merging of OOD queries, by brute force from the formulas in NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tdos_d2.modeling.merge import CLASS_MERGE_RULES, MERGE_RULES, merge_ood_queries

KNOWN, QUERIES = 2, 5  # queries 2, 3, 4 are merged; classes 0, 1, OOD = 2, no object = 3


def outputs(num_outputs: int = 2, batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        2 * torch.randn(num_outputs, batch, QUERIES, KNOWN + 2, generator=generator),
        3 * torch.randn(num_outputs, batch, QUERIES, 4, 6, generator=generator),
        torch.rand(batch, QUERIES, 2, 3, generator=generator),
    )


def confidences(logits: np.ndarray) -> np.ndarray:
    """p(ood | q) of the OOD queries from (N, K + 2) logits."""
    exponentials = np.exp(logits[KNOWN:])
    return exponentials[:, KNOWN] / exponentials.sum(1)


def merged_map(maps: np.ndarray, logits: np.ndarray, rule: str) -> np.ndarray:
    """(N, H, W) of one image and its (N, K + 2) class logits -> (H, W), pixel by pixel."""
    result = np.empty(maps.shape[1:])
    p = confidences(logits)
    for y, x in np.ndindex(result.shape):
        values = [maps[q, y, x] for q in range(KNOWN, QUERIES)]
        if rule == "max":
            result[y, x] = max(values)
        elif rule == "mean":
            result[y, x] = sum(values) / len(values)
        else:
            result[y, x] = sum(w * v for w, v in zip(p, values, strict=True)) / sum(p)
    return result


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_maps_follow_the_formulas_image_by_image(rule):
    """Defect 17: a merge over the wrong axis would take one image for all of the batch."""
    given = outputs()
    classes, masks, cosines = (x.double().numpy() for x in given)
    merged = merge_ood_queries(*given, KNOWN, rule=rule)
    assert [x.shape for x in merged] == [(2, 3, 3, 4), (2, 3, 3, 4, 6), (3, 3, 2, 3)]
    for o, b in itertools.product(range(2), range(3)):
        expected = merged_map(masks[o, b], classes[o, b], rule)
        np.testing.assert_allclose(merged[1][o, b, KNOWN], expected, rtol=1e-5, atol=1e-6)
        # There is one score map: the weights of the last output hold for it.
        expected = merged_map(cosines[b], classes[-1, b], rule)
        np.testing.assert_allclose(merged[2][b, KNOWN], expected, rtol=1e-5)
    for before, after in zip(given, merged, strict=True):
        axis = 1 if before is given[2] else 2
        known = [x.narrow(axis, 0, KNOWN) for x in (before, after)]
        assert torch.equal(*known)


@pytest.mark.parametrize("class_rule", CLASS_MERGE_RULES)
@pytest.mark.parametrize("rule", MERGE_RULES)
def test_class_logits_follow_the_formulas(rule, class_rule):
    given = outputs()
    merged = merge_ood_queries(*given, KNOWN, rule=rule, class_rule=class_rule)[0]
    classes = given[0].double().numpy()
    for o, b in itertools.product(range(2), range(3)):
        p = confidences(classes[o, b])
        if class_rule == "strongest":
            expected = classes[o, b, KNOWN + p.argmax()]
        else:
            weights = p if rule == "score_weighted" else np.ones(3)
            expected = (classes[o, b, KNOWN:] * weights[:, None]).sum(0) / weights.sum()
        np.testing.assert_allclose(merged[o, b, KNOWN], expected, rtol=1e-4, atol=1e-6)


def test_published_rule_worked_by_hand():
    """Defect 16: masks by maximum, classes by mean, so a sure query is diluted unless asked not."""
    classes = torch.zeros(1, 1, 3, 3)  # K = 1: one known query, then two OOD queries
    classes[0, 0, 1] = torch.tensor([0.0, 4.0, 0.0])
    classes[0, 0, 2] = torch.tensor([0.0, -2.0, 6.0])
    masks = torch.tensor([0.0, -1.0, 5.0]).view(1, 1, 3, 1, 1)
    arguments = classes, masks, masks[0]
    mean = merge_ood_queries(*arguments, 1)
    assert mean[0][0, 0, 1].tolist() == [0, 1, 3] and mean[1][0, 0, 1].item() == 5
    strongest = merge_ood_queries(*arguments, 1, class_rule="strongest")
    assert strongest[0][0, 0, 1].tolist() == [0, 4, 0] and strongest[1][0, 0, 1].item() == 5


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_extreme_logits_stay_finite(rule):
    classes = torch.zeros(1, 1, 3, 3)
    classes[..., 1] = -300  # p(ood | q) is 0 in float32 for every query
    maps = torch.zeros(1, 1, 3, 2, 2), torch.zeros(1, 3, 1, 1)
    merged = merge_ood_queries(classes, *maps, 1, rule=rule)
    assert all(x.isfinite().all() for x in merged)
