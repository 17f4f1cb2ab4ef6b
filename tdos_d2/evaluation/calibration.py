"""A threshold from normal frames alone, with a guarantee about false alarms.

Split-conformal calibration (Vovk et al., Algorithmic Learning in a Random World, 2005; Angelopoulos
and Bates, arXiv 2107.07511): if a new normal frame is exchangeable with the n calibration frames,
it raises an alarm with probability at most a, for any model and any finite n.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from .threshold_files import read_threshold, write_threshold


@dataclass(frozen=True)
class Calibration:
    """A threshold and its guarantee.

    Attributes:
        threshold: ``score >= threshold`` is predicted OOD; in the score's own units.
        false_alarm_rate: a, the largest share of normal frames with an alarm.
        frames: n, the number of calibration frames.
        min_area: smallest object in pixels that raises an alarm; with ``by_frame``, that of the
            largest frame.
        by_frame: whether each frame has the default smallest object for its size.
        score: name of the score.
        source: the folder or dataset of the frames.
        ego_mask: SHA-256 of the mask file of the region where no objects are looked for; None =
            no mask.
        settings: by config key, what the scores depend on beside the checkpoint.
    """

    threshold: float
    false_alarm_rate: float
    frames: int
    min_area: int
    by_frame: bool = False
    score: str = "ood_score"
    source: str = ""
    ego_mask: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 < self.false_alarm_rate < 1 and self.frames >= 1 and self.min_area >= 1):
            raise ValueError(f"not a calibration: {self}")

    def promise(self) -> str:
        """The guarantee of the threshold, in a sentence."""
        size = f"{self.min_area} pixels or more"
        if self.by_frame:
            size += " (of a smaller frame the same share)"
        return (
            f"a new normal frame from the source of the {self.frames} calibration frames has an "
            f"object of {size} with probability at most {self.false_alarm_rate:g}"
        )


def alarm_level(score: np.ndarray, min_area: int, valid: np.ndarray | None = None) -> float:
    """The highest threshold at which a frame still has an object of ``min_area`` pixels.

    Objects are 8-connected regions with ``float32(score) >= threshold``, as in prediction. They
    grow as the threshold falls, so the level is found by bisection over the frame's scores.

    Args:
        score: (H, W), finite.
        min_area: pixels, at least 1.
        valid: (H, W) bool, where objects may be; None = everywhere.

    Returns:
        The level; -inf if no threshold gives such an object.

    Raises:
        ValueError: a score is not finite, or ``min_area`` is below 1.
    """
    if min_area < 1:
        raise ValueError(f"min_area must be at least 1, got {min_area}")
    score = np.asarray(score, np.float32)
    if not np.isfinite(score).all():
        raise ValueError("scores are not finite")
    inside = np.ones(score.shape, bool) if valid is None else valid
    levels = np.unique(score[inside])
    low, high = -1, len(levels)  # an object at levels[low], none at levels[high]
    while high - low > 1:
        middle = (low + high) // 2
        # levels[0] is the lowest score: nothing below it adds a pixel
        if _has_object((score >= levels[middle]) & inside, min_area):
            low = middle
        else:
            high = middle
    return float(levels[low]) if low >= 0 else -math.inf


def calibrate(levels: Sequence[float], false_alarm_rate: float, min_area: int) -> Calibration:
    """The lowest threshold with the guarantee: just above the ceil((n + 1)(1 - a))-th level.

    Args:
        levels: ``alarm_level`` of each of n normal frames.
        false_alarm_rate: a, in (0, 1).
        min_area: smallest object of the levels, in pixels.

    Raises:
        UserError: the rate is outside (0, 1), or needs more frames.
    """
    check_frames(len(levels), false_alarm_rate)
    n = len(levels)
    rank = _rank(n, false_alarm_rate)
    quantile = np.float32(np.sort(np.asarray(levels, np.float64))[rank - 1])
    threshold = np.nextafter(quantile, np.float32(np.inf))
    return Calibration(float(threshold), false_alarm_rate, n, min_area)


def check_frames(n: int, false_alarm_rate: float) -> None:
    """Raise UserError for a rate outside (0, 1), or one that needs more than ``n`` frames."""
    if not 0 < false_alarm_rate < 1:
        raise UserError(f"the false alarm rate must lie between 0 and 1, got {false_alarm_rate:g}")
    needed = frames_needed(false_alarm_rate)
    if n < needed:
        raise UserError(
            f"a false alarm rate of {false_alarm_rate:g} needs {needed} normal frames or more, "
            f"there are {n}"
        )


def frames_needed(false_alarm_rate: float) -> int:
    """The smallest n with ceil((n + 1)(1 - a)) <= n."""
    n = max(math.ceil(1 / false_alarm_rate) - 2, 1)
    while _rank(n, false_alarm_rate) > n:
        n += 1
    return n


def calibration_file(checkpoint: str | os.PathLike) -> Path:
    """Path of a checkpoint's calibration: ``<checkpoint>.calibration.json``.

    It is separate from the operating point's file, which every evaluation overwrites.
    """
    return Path(f"{os.fspath(checkpoint)}.calibration.json")


def save_calibration(
    checkpoint: str | os.PathLike, calibration: Calibration, path: Path | None = None
) -> Path:
    """Write the calibration, by default beside ``checkpoint``; returns the path.

    The file has the SHA-256 of the checkpoint.

    Raises:
        OSError: as from ``open``.
    """
    path = path or calibration_file(checkpoint)
    write_threshold(path, checkpoint, calibration, {"promise": calibration.promise()})
    return path


def load_calibration(checkpoint: str | os.PathLike, path: Path | None = None) -> Calibration | None:
    """The calibration in ``path``, by default beside ``checkpoint``; None if there is no file.

    Raises:
        UserError: the file is damaged, or was made for another checkpoint.
    """
    path = path or calibration_file(checkpoint)
    if not path.is_file():
        return None
    return read_threshold(path, checkpoint, Calibration, "calibrate again")


def _rank(n: int, rate: float) -> int:
    # Rounded, since 100 * (1 - 0.01) is a little more than 99 in floating point.
    return math.ceil(round((n + 1) * (1 - rate), 9))


def _has_object(above: np.ndarray, min_area: int) -> bool:
    stats = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)[2]
    return bool((stats[1:, cv2.CC_STAT_AREA] >= min_area).any())
