"""From merged queries to per-pixel known-class scores S_c and anomaly scores.

Notation: K known classes; Q = K + 1 merged queries; p(c | q) = softmax over K + 2 class logits
(known classes, OOD, no object); m_q(x) = mask logit; S_c(x) = sum_q p(c | q) sigmoid(m_q(x)). Every
score is larger where a pixel is more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

Score = Callable[[Tensor, Tensor], Tensor]


def known_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """S_c of the K known classes.

    Args:
        class_logits: (B, K + 1, K + 2) of the merged queries.
        mask_logits: (B, K + 1, H, W).

    Returns:
        (B, K, H, W) in [0, K + 1], no further softmax.
    """
    probabilities = class_logits.softmax(-1)[..., :-2]
    return torch.einsum("bqc,bqhw->bchw", probabilities, mask_logits.sigmoid())


def log_s_ood(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """log S_ood = logsumexp_q(log p(ood | q) + logsigmoid(m_q)), (B, H, W).

    Never ``log(sigmoid(x))``: in log space no two pixels tie because a sigmoid saturated.
    """
    log_p = F.log_softmax(class_logits, dim=-1)[..., -2]
    return torch.logsumexp(log_p[..., None, None] + F.logsigmoid(mask_logits), dim=1)


def max_logit(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """1 - max_c S_c over the known classes, (B, H, W): ranks as max-logit on ``sem_seg`` does."""
    return 1 - known_scores(class_logits, mask_logits).amax(1)


SCORES: dict[str, Score] = {"log_s_ood": log_s_ood, "max_logit": max_logit}


def get_score(name: str) -> Score:
    """The score of that name.

    Raises:
        UserError: no such score.
    """
    if name not in SCORES:
        raise UserError(f"MODEL.TDOS.SCORE: no score '{name}'; there are: {', '.join(SCORES)}")
    return SCORES[name]
