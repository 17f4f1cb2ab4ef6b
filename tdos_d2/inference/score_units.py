"""Units of the anomaly scores: the range that pictures show, and chances converted to the unit.

Both ends of the range follow from S_c of ``modeling.scores``: the low end is a pixel that one known
class claims fully (S = 1, all others 0), the high end a pixel that only OOD claims.
"""

from __future__ import annotations

import math

import numpy as np

# Logarithms of a share; their low end, -inf, is clipped at a share of about 1/3000.
_LOGARITHMS = ("log_s_ood", "text_only")
_LOWEST_LOGARITHM = -8.0


def score_range(name: str, num_known: int) -> tuple[float, float]:
    """Low and high end of a score, for K known classes.

    Args:
        name: from ``modeling.scores.SCORES``.
        num_known: K.
    """
    if name == "memory":  # does not depend on the known classes
        return 0.25, 0.8  # usual range; 0: a vector of the memory, 1: orthogonal to all of them
    k = num_known
    return {
        "log_s_ood": (_LOWEST_LOGARITHM, 0.0),
        "text_only": (_LOWEST_LOGARITHM, 0.0),
        "combined": (-1.0, 4.0),  # 0: both medians of normal pixels; 2: both 99th percentiles
        "s_ood_softmax": (1 / (math.e + k), math.e / (math.e + k)),
        "max_logit": (0.0, 1.0),
        "energy": (-math.log(math.e + k - 1), -math.log(k)),
        "rba": (-math.tanh(1), 0.0),
    }[name]


def chance_as_score(chance: np.ndarray, name: str, num_known: int) -> np.ndarray:
    """Chances in [0, 1] in the unit of a score: their logarithm, or scaled linearly to its range.

    Args:
        chance: any shape.
        name: from ``modeling.scores.SCORES``.
        num_known: K.

    Returns:
        float32; where the score is a logarithm, a chance of 0 is -inf.
    """
    if name in _LOGARITHMS:
        with np.errstate(divide="ignore"):
            return np.log(chance, dtype=np.float32)
    low, high = score_range(name, num_known)
    return (low + (high - low) * chance).astype(np.float32)
