"""What is evaluated: score maps with labels, checked, and kept on disk for further passes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from ..labels import KNOWN, OOD, VOID

# What is wrong with scores of 8 bits or less, or of half precision.
COARSE = (
    "scores that differ become equal, which changes the metrics (by tens of points of AP with 8 "
    "bits or less, under one with float16); save float32, or logits"
)

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """One checked frame.

    Attributes:
        score: (H, W) float32, finite, larger = more anomalous.
        label: (H, W) uint8 of ``KNOWN``, ``OOD`` and ``VOID``.
    """

    score: np.ndarray
    label: np.ndarray


def check_frame(score: ArrayLike, label: ArrayLike, name: str) -> Frame:
    """Bring a score map and its label into the form that the metrics need.

    Args:
        score: (H, W) real numbers; taken as float32, whatever they come as.
        label: (H, W) integers 0 (known), 1 (OOD) or 255 (void).
        name: what the frame is called in messages.

    Raises:
        UserError: shapes differ, or there are scores that are not finite (in float32) or other
            labels.
    """
    score, label = np.asarray(score), np.asarray(label)
    if score.ndim != 2 or score.shape != label.shape:
        raise UserError(
            f"{name}: scores of shape {score.shape} do not fit labels of shape {label.shape}: both "
            "must be (H, W)"
        )
    if score.dtype.kind not in "fiub":
        raise UserError(f"{name}: scores must be real numbers, got {score.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, and is found below
        score = np.ascontiguousarray(score, np.float32)
    check_finite(score, name)
    if not ((label == KNOWN) | (label == OOD) | (label == VOID)).all():
        shown = ", ".join(map(str, np.setdiff1d(label, (KNOWN, OOD, VOID))[:8]))
        raise UserError(f"{name}: labels must be 0, 1 or 255, got {shown}")
    return Frame(score, np.ascontiguousarray(label, np.uint8))


def check_finite(values: np.ndarray, what: str, hint: str = "") -> None:
    """Raise UserError, which begins with ``what`` and ends with ``hint``, unless all are finite."""
    finite = np.isfinite(values)
    if not finite.all():
        bad = finite.size - np.count_nonzero(finite)
        raise UserError(f"{what}: {bad} of {finite.size} scores are NaN or infinite{hint}")


def coarse(score: ArrayLike) -> bool:
    """Whether scores come in a type, or as integers in a range, that ties what differs."""
    score = np.asarray(score)
    if score.dtype.kind in "iub" and score.size:
        return int(score.max()) - int(score.min()) < 256
    return score.dtype == np.float16


class CheckedFrames:
    """(score, label) pairs that can be gone through again and again, checked each time."""

    def __init__(self, frames: Iterable[tuple[ArrayLike, ArrayLike]]) -> None:
        self._frames = frames
        self._warned = False

    def __iter__(self) -> Iterator[Frame]:
        for i, (score, label) in enumerate(self._frames):
            if not self._warned and coarse(score):
                self._warned = True
                logger.warning(f"scores of {np.asarray(score).dtype.name}: {COARSE}")
            yield check_frame(score, label, f"frame {i} (counted from 0)")


class Spool:
    """Frames kept in a temporary file, to be gone through again and again.

    The file has no name (on POSIX systems): its space is free again when the process ends, whatever
    ends it.

    Args:
        folder: where the file lies, it takes 5 bytes per pixel; the system's folder for temporary
            files (``TMPDIR``) by default.

    Raises:
        UserError: the file cannot be made; from ``append``: the disk is full.
    """

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self._folder = os.fspath(folder or tempfile.gettempdir())
        self._places: list[tuple[int, tuple[int, int]]] = []  # in the file, and (H, W)
        with self._named_errors():
            # Unbuffered, so that closing has nothing left to write and cannot fail.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115

    def append(self, frame: Frame) -> None:
        """Add a frame."""
        with self._named_errors():
            start = self._file.seek(0, os.SEEK_END)
            for array in frame:
                left = _bytes(array)
                while left:
                    left = left[self._file.write(left) :]
        self._places.append((start, frame.score.shape))

    def __getitem__(self, index: int) -> Frame:
        start, shape = self._places[index]
        self._file.seek(start)
        return Frame(self._read(np.float32, shape), self._read(np.uint8, shape))

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _read(self, dtype: type, shape: tuple[int, int]) -> np.ndarray:
        array = np.empty(shape, dtype)
        self._file.readinto(_bytes(array))
        return array

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot keep scores in {self._folder} (5 bytes per pixel): {error.strerror}"
            ) from error


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
