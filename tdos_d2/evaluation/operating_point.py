"""The threshold that turns scores into OOD regions, kept beside the checkpoint it was found for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from .threshold_files import read_threshold, write_threshold


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """Where pixel F1 is best: ``float32(score) >= threshold`` is predicted OOD.

    Attributes:
        score: name of the score.
        threshold: in the score's own units.
        dataset: the dataset whose labels chose it; on that set it flatters.
        f1: pixel F1 there, in percent.
    """

    score: str
    threshold: float
    dataset: str
    f1: float


def threshold_file(checkpoint: str | os.PathLike) -> Path:
    """Where the operating point of a checkpoint lies: ``<checkpoint>.threshold.json``."""
    return Path(f"{os.fspath(checkpoint)}.threshold.json")


def save_operating_point(checkpoint: str | os.PathLike, point: OperatingPoint) -> Path:
    """Write the operating point beside ``checkpoint``; gives the path. OSError as ``open``.

    The file names the checkpoint's content by its SHA-256.
    """
    path = threshold_file(checkpoint)
    chosen_by = f"best pixel F1 on {point.dataset}"
    write_threshold(path, checkpoint, point, {"chosen_by": chosen_by})
    return path


def load_operating_point(checkpoint: str | os.PathLike) -> OperatingPoint | None:
    """The operating point saved beside ``checkpoint``; None where there is none.

    Raises:
        UserError: the file is damaged, or was made for another checkpoint.
    """
    path = threshold_file(checkpoint)
    if not path.is_file():
        return None
    return read_threshold(path, checkpoint, OperatingPoint, "evaluate again")
