"""Merging the M + 1 OOD queries (the OOD word and the negatives) into one.

Queries are merged per image, in training and inference. Rules for the maps (mask logits and
cosines) f_q(x) of the OOD queries:

- ``max``: max_q f_q(x), per pixel (the published rule);
- ``mean``: mean_q f_q(x);
- ``score_weighted``: sum_q w_q f_q(x) with w_q = p(ood | q) / sum_q' p(ood | q') of the query's
  own class logits. Each decoder output has its own weights; the score map takes the last one's.

Rules for the class logits l_q (one vector per query for all pixels):

- ``mean``: sum_q w_q l_q with the weights of ``score_weighted`` maps, else mean_q l_q (published);
- ``strongest``: l_q of the q with the largest p(ood | q), undiluted by the other queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..value_checks import check_choice

MERGE_RULES = ("max", "mean", "score_weighted")
CLASS_MERGE_RULES = ("mean", "strongest")


def check_merge_rules(rule: str, class_rule: str) -> None:
    """Raise UserError if one of the rules is unknown."""
    check_choice("MODEL.TDOS.MERGE", rule, MERGE_RULES)
    check_choice("MODEL.TDOS.CLASS_MERGE", class_rule, CLASS_MERGE_RULES)


def merge_ood_queries(
    class_logits: Tensor,
    mask_logits: Tensor,
    score_map: Tensor,
    num_known: int,
    *,
    rule: str = "max",
    class_rule: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the outputs of N = K + 1 + M queries into those of K + 1.

    Args:
        class_logits: (O, B, N, K + 2) of O decoder outputs; OOD is class K.
        mask_logits: (O, B, N, H, W).
        score_map: (B, N, h, w) cosines.
        num_known: K.
        rule: one of MERGE_RULES, for masks and score map.
        class_rule: one of CLASS_MERGE_RULES.

    Returns:
        (O, B, K + 1, K + 2), (O, B, K + 1, H, W), (B, K + 1, h, w).
    """
    ood_logits = class_logits[..., num_known:, :]  # (O, B, M + 1, K + 2)
    log_p = ood_logits.log_softmax(-1)[..., num_known]  # (O, B, M + 1)
    # The softmax of log p is p / sum p, even if every p underflows in float32.
    weights = log_p.softmax(-1) if rule == "score_weighted" else None
    if class_rule == "strongest":
        # The index, repeated over classes: gather takes the query's whole vector, (O, B, 1, K + 2).
        strongest = log_p.argmax(-1)[..., None, None].expand(*log_p.shape[:-1], 1, num_known + 2)
        merged = ood_logits.gather(-2, strongest)
    elif weights is None:
        merged = ood_logits.mean(-2, keepdim=True)
    else:
        merged = (weights[..., None] * ood_logits).sum(-2, keepdim=True)
    return (
        torch.cat([class_logits[..., :num_known, :], merged], dim=-2),
        _merge_maps(mask_logits, num_known, rule, weights),
        _merge_maps(score_map, num_known, rule, None if weights is None else weights[-1]),
    )


def _merge_maps(maps: Tensor, num_known: int, rule: str, weights: Tensor | None) -> Tensor:
    """(..., N, H, W) -> (..., K + 1, H, W)."""
    ood = maps[..., num_known:, :, :]
    if weights is not None:
        merged = torch.einsum("...q,...qhw->...hw", weights.to(ood.dtype), ood).unsqueeze(-3)
    elif rule == "max":
        merged = ood.amax(-3, keepdim=True)  # amax, not max: tied queries share the gradient
    else:
        merged = ood.mean(-3, keepdim=True)
    return torch.cat([maps[..., :num_known, :, :], merged], dim=-3)
