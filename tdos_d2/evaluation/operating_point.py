"""The operating point (threshold of the best pixel F1), saved beside its checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .threshold_files import read_threshold, write_threshold


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The threshold of the best pixel F1: ``float32(score) >= threshold`` is predicted OOD.

    Attributes:
        score: name of the score.
        threshold: in the score's own units.
        dataset: the dataset whose labels chose it; results on that dataset are optimistic.
        f1: pixel F1 at the threshold, in percent.
        settings: by config key, what the scores depend on beside the checkpoint.
    """

    score: str
    threshold: float
    dataset: str
    f1: float
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def threshold_file(checkpoint: str | os.PathLike) -> Path:
    """Path of a checkpoint's operating point: ``<checkpoint>.threshold.json``."""
    return Path(f"{os.fspath(checkpoint)}.threshold.json")


def save_operating_point(checkpoint: str | os.PathLike, point: OperatingPoint) -> Path:
    """Write the operating point beside ``checkpoint``; returns the path.

    The file has the SHA-256 of the checkpoint.

    Raises:
        OSError: as from ``open``.
    """
    path = threshold_file(checkpoint)
    chosen_by = f"best pixel F1 on {point.dataset}"
    write_threshold(path, checkpoint, point, {"chosen_by": chosen_by})
    return path


def load_operating_point(checkpoint: str | os.PathLike) -> OperatingPoint | None:
    """The operating point saved beside ``checkpoint``; None if there is no file.

    Raises:
        UserError: the file is damaged, or was made for another checkpoint.
    """
    path = threshold_file(checkpoint)
    if not path.is_file():
        return None
    return read_threshold(path, checkpoint, OperatingPoint, "evaluate again")
