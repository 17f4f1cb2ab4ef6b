"""The threshold that prediction uses, and its guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from ..errors import UserError
from ..evaluation.calibration import Calibration, calibration_file, load_calibration
from ..evaluation.operating_point import threshold_file
from ..evaluation.threshold_files import changed_settings, with_changes
from ..files import fingerprint
from .predictor import OODPredictor

CALIBRATED, BEST_F1 = "calibrated", "best-f1"
_NO_OBJECTS = "no objects are looked for: "


@dataclass(frozen=True)
class Threshold:
    """Threshold and smallest area of objects.

    Attributes:
        value: pixels with a score of this or more are OOD; None: no objects are looked for.
        min_area: smallest object in pixels; None: by the size of the frame.
        note: a line for the log: the threshold's origin and guarantee.
    """

    value: float | None
    min_area: int | None
    note: str


def choose_threshold(
    predictor: OODPredictor,
    wanted: float | str | None = None,
    *,
    min_area: int | None = None,
    combine: bool = False,
    ego_mask: str | None = None,
    smoothed: bool = False,
) -> Threshold:
    """The requested threshold; by default the calibrated one, else that of the best F1.

    Args:
        predictor: the model.
        wanted: a number, "calibrated", "best-f1" or a file ``*.json``; None: the threshold saved
            beside the checkpoint.
        min_area: smallest object in pixels; None: that of the calibration, if one is used.
        combine: whether words raise the score.
        ego_mask: mask file of the region in which no objects are looked for.
        smoothed: whether the scores of a video are averaged over frames.

    Raises:
        UserError: the requested threshold does not exist or is for another score; a file is
            damaged, or belongs to another checkpoint.
    """
    if isinstance(wanted, Real) and not isinstance(wanted, bool):
        return Threshold(float(wanted), min_area, f"threshold {float(wanted):g}, as given")
    if wanted is not None and predictor.weights is None:
        raise UserError(f"--threshold {wanted}: MODEL.WEIGHTS must be a file")
    calibration = None if wanted == BEST_F1 else _calibration(predictor, wanted)
    if calibration is not None and calibration.score == predictor.score:
        broken = _why_broken(calibration, predictor, min_area, combine, ego_mask)
        if smoothed:  # an alarm lasts longer, so more frames have one
            broken.append("--temporal averages scores over frames")
        if min_area is None and not calibration.by_frame:
            min_area = calibration.min_area
        promise = "its guarantee does not hold: " + "; ".join(broken)
        note = (
            f"threshold {calibration.threshold:g}: calibrated on {calibration.frames} normal "
            f"frames of {calibration.source}; {promise if broken else calibration.promise()}"
        )
        return Threshold(calibration.threshold, min_area, note)
    point = predictor.operating_point if wanted in (None, BEST_F1) else None
    if point is not None and point.score == predictor.score:
        note = f"threshold {point.threshold:g}: best pixel F1 on {point.dataset}"
        note = with_changes(note, changed_settings(point.settings, predictor.settings))
        return Threshold(point.threshold, min_area, note)
    other = point or calibration
    if other is not None:
        reason = (
            f"the threshold beside the checkpoint is for {other.score}, the score is "
            f"{predictor.score}"
        )
        if wanted is not None:
            raise UserError(f"--threshold {wanted}: {reason}")
        return Threshold(None, min_area, f"{_NO_OBJECTS}{reason}; give --threshold")
    if wanted == BEST_F1:
        path = threshold_file(predictor.weights)
        raise UserError(
            f"--threshold {wanted}: no file {path}; an evaluation writes it, unless the "
            "weights ship with tdos_d2"
        )
    return Threshold(
        None, min_area,
        f"{_NO_OBJECTS}give --threshold, calibrate the checkpoint on normal frames "
        "(tools/calibrate.py), or evaluate it on a labelled OOD set (train_net.py --eval-only); "
        "both save one beside it",
    )  # fmt: skip


def _calibration(predictor: OODPredictor, wanted: str | None) -> Calibration | None:
    """The calibration in a file or beside the checkpoint; None if it is optional and missing."""
    weights = predictor.weights
    if weights is None:
        return None
    path = calibration_file(weights) if wanted in (None, CALIBRATED) else Path(wanted)
    found = load_calibration(weights, path)
    if found is None and wanted is not None:
        raise UserError(f"--threshold {wanted}: no file {path}; tools/calibrate.py writes it")
    return found


def _why_broken(
    calibration: Calibration,
    predictor: OODPredictor,
    min_area: int | None,
    combine: bool,
    ego_mask: str | None,
) -> list[str]:
    """Why frames like those of the calibration may raise more alarms than promised."""
    reasons = []
    if min_area is not None and min_area < calibration.min_area:
        reasons.append(f"--min-area is {min_area}, less than the {calibration.min_area} then")
    if combine:
        reasons.append("--combine-words raises scores")
    # If calibration had no mask, a mask in prediction can only make objects smaller.
    if calibration.ego_mask is not None:
        now = None if ego_mask is None else fingerprint(ego_mask)
        if now != calibration.ego_mask:
            reasons.append("--ego-mask is not the file of then")
    return reasons + changed_settings(calibration.settings, predictor.settings)
