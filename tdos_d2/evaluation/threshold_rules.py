"""Rules that choose the threshold of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..untrusted import read_json
from .pixel_metrics import KeyBins

BEST_F1, FPR, TPR, FIXED = "best-f1", "fpr", "tpr", "fixed"
CALIBRATED = "calibrated"  # a rule of TEST.THRESHOLD alone, which has a checkpoint
_FORMS = "best-f1, fpr:SHARE, tpr:SHARE (such as tpr:0.95), a number or a .json file"


@dataclass(frozen=True)
class ThresholdRule:
    """A rule that chooses a threshold.

    Attributes:
        kind: "best-f1"; "fpr", the lowest threshold with at most that share of the known pixels;
            "tpr", the highest with at least that share of the OOD pixels; "fixed".
        value: the share, or the threshold.
        source: origin of a fixed threshold, for messages.
    """

    kind: str = BEST_F1
    value: float = math.nan
    source: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "fpr":
                return f"lowest with FPR <= {self.value:g}"
            case "tpr":
                return f"highest with TPR >= {self.value:g}"
            case "fixed":
                return self.source or "as given"
        return "best pixel F1"


BEST_RULE = ThresholdRule()


def parse_rule(text: str) -> ThresholdRule:
    """Parse a rule: best-f1, fpr:0.01, tpr:0.95, a number or a ``*.json`` file.

    Raises:
        UserError: the text is none of these, or the file cannot be read.
    """
    kind, _, share = text.partition(":")
    if text == BEST_F1:
        return BEST_RULE
    if text == CALIBRATED:
        raise UserError(
            f"'{text}' needs a checkpoint, and score maps have none: name the file beside it, "
            "CHECKPOINT.calibration.json (of tools/calibrate.py)"
        )
    if text.endswith(".json"):
        return _from_file(Path(text).expanduser())
    try:
        if kind in (FPR, TPR) and 0 < float(share) < 1:
            return ThresholdRule(kind, float(share))
        if math.isfinite(float(text)):
            return ThresholdRule(FIXED, float(text))
    except ValueError:
        pass
    raise UserError(f"a threshold is {_FORMS}, not '{text}'; shares lie between 0 and 1")


def threshold_by(
    rule: ThresholdRule,
    best_f1: float,
    count: Callable[[KeyBins], np.ndarray],
    bins: KeyBins,
    counts: np.ndarray,
    strict: bool = False,
) -> float:
    """The exact threshold of a rule for a dataset: ``float32(score) >= threshold`` is OOD.

    Args:
        rule: the rule.
        best_f1: threshold of the best F1; NaN if the metrics are undefined.
        count: counts the pixels of the dataset, as for ``pixel_metrics``.
        bins, counts: the last bins and counts of ``count``.
        strict: ``float32(score) > threshold`` is OOD; shares are then exact as well, but the
            thresholds of the best F1 and of fixed rules stay, as in the official tool.
    """
    if rule.kind == FIXED or math.isnan(best_f1):
        return rule.value if rule.kind == FIXED else best_f1
    if rule.kind == BEST_F1:
        return best_f1
    while True:
        occupied = np.flatnonzero(counts.any(axis=0))[::-1]  # from the largest score down
        fp, tp = counts[:, occupied].cumsum(axis=1)
        if rule.kind == TPR:
            last = unsure = int(np.argmax(tp >= math.ceil(_pixels(rule.value, tp[-1]))))
        else:
            unsure = int(np.count_nonzero(fp <= math.floor(_pixels(rule.value, fp[-1]))))
            last = unsure - 1
        if bins.single[occupied[unsure]]:
            break
        doubt = np.zeros(len(bins))
        doubt[occupied[unsure]] = 1
        bins = bins.refined(doubt)
        counts = count(bins)
    if last < 0:  # even the largest score alone gives too many pixels
        found = np.nextafter(np.float32(bins.smallest(occupied[0])), np.float32(np.inf))
    else:
        found = np.float32(bins.smallest(occupied[last]))
    return float(np.nextafter(found, np.float32(-np.inf)) if strict else found)


def _pixels(share: float, total: float) -> Fraction:
    # As the share is written: 0.55 * 100 is more than 55 in floating point.
    return Fraction(repr(share)) * int(total)


def _from_file(path: Path) -> ThresholdRule:
    try:
        content = read_json(path)
        value = float(content["threshold"])
        if not math.isfinite(value):
            raise ValueError(f"the threshold is {value}")
    except OSError as error:
        raise UserError(f"cannot read threshold {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no threshold ({error!r})") from error
    return ThresholdRule(FIXED, value, f"that of {path}")
