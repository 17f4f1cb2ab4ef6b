"""Score maps with labels: checks, and storage on disk for several passes."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from ..files import image_size, open_with
from ..labels import KNOWN, OOD, VOID

# Warning about ``coarse`` scores.
COARSE = (
    "scores that differ become equal, which changes the metrics (by tens of points of AP with 8 "
    "bits or less, under one with float16); save float32, or logits"
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T", bound=tuple)

_BYTES_PER_PIXEL = 5  # float32 and uint8, of a Frame
_WORTH_SAYING = 0.1  # GB; larger files are announced in the log


class Frame(NamedTuple):
    """One checked frame.

    Attributes:
        score: (H, W) float32, finite, larger = more anomalous.
        label: (H, W) uint8 of ``KNOWN``, ``OOD`` and ``VOID``.
    """

    score: np.ndarray
    label: np.ndarray

    def predicted(self, threshold: float, strict: bool = False) -> np.ndarray:
        """(H, W) bool: score >= threshold, or > if ``strict``, where the label is not void."""
        limit = np.float32(threshold)
        return ((self.score > limit) if strict else (self.score >= limit)) & (self.label != VOID)


def frame_id(record: Mapping[str, Any]) -> str:
    """The name of a dataset dict's frame in reports, files and messages."""
    return str(record.get("image_id", record["file_name"]))


def check_instance_files(records: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether the dataset dicts of ``name`` have instance masks (``instance_file_name``).

    Raises:
        UserError: some have and others have not, so AP would mix masks with components.
    """
    have = {"instance_file_name" in record for record in records}
    if len(have) > 1:
        raise UserError(f"dataset '{name}': only some of its frames have instance masks")
    return have == {True}


def check_frame(score: ArrayLike, label: ArrayLike, name: str) -> Frame:
    """Check a score map and its label, and convert them to the types of the metrics.

    Args:
        score: (H, W) real numbers of any type; converted to float32.
        label: (H, W) integers 0 (known), 1 (OOD) or 255 (void).
        name: name of the frame in messages.

    Raises:
        UserError: shapes differ, a score is not finite (in float32), or a label has another value.
    """
    score, label = np.asarray(score), np.asarray(label)
    if score.ndim != 2 or score.shape != label.shape:
        raise UserError(
            f"{name}: scores of shape {score.shape} do not fit labels of shape {label.shape}: both "
            "must be (H, W)"
        )
    if score.dtype.kind not in "fiub":
        raise UserError(f"{name}: scores must be real numbers, got {score.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, which is detected below
        score = np.ascontiguousarray(score, np.float32)
    check_finite(score, name)
    if not ((label == KNOWN) | (label == OOD) | (label == VOID)).all():
        shown = ", ".join(map(str, np.setdiff1d(label, (KNOWN, OOD, VOID))[:8]))
        raise UserError(f"{name}: labels must be 0, 1 or 255, got {shown}")
    return Frame(score, np.ascontiguousarray(label, np.uint8))


def check_finite(values: np.ndarray, what: str, hint: str = "") -> None:
    """Raise UserError unless all ``values`` are finite; ``what`` and ``hint`` frame the message."""
    finite = np.isfinite(values)
    if not finite.all():
        bad = finite.size - np.count_nonzero(finite)
        raise UserError(f"{what}: {bad} of {finite.size} scores are NaN or infinite{hint}")


def coarse(score: ArrayLike) -> bool:
    """Whether scores have so few distinct values that rounding may have merged some."""
    score = np.asarray(score)
    if score.dtype.kind in "iub" and score.size:
        return int(score.max()) - int(score.min()) < 256
    return score.dtype == np.float16


class CheckedFrames:
    """Checks (score, label) pairs in every pass over them.

    It warns once about ``coarse`` scores, and raises the errors of ``check_frame``, and UserError
    if a pass has another number of frames than the first, such as none.
    """

    def __init__(self, frames: Iterable[tuple[ArrayLike, ArrayLike]]) -> None:
        self._frames = frames
        self._warned = False
        self._number: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        for number, (score, label) in enumerate(self._frames, start=1):
            if not self._warned and coarse(score):
                self._warned = True
                logger.warning(f"scores of {np.asarray(score).dtype.name}: {COARSE}")
            yield check_frame(score, label, f"frame {number - 1} (counted from 0)")
        if self._number not in (None, number):
            raise UserError(
                f"frames: {self._number} in the first pass over them, {number} in another; pass a "
                "list, or the generator itself rather than what wraps it, such as a progress bar"
            )
        self._number = number


def check_space(
    folder: str | os.PathLike,
    records: Iterable[Mapping[str, Any]],
    per_pixel: int = _BYTES_PER_PIXEL,
) -> None:
    """Check that the disk has space for a :class:`Spool` of all ``records``, and log its size.

    Args:
        folder: folder of the spool; it or a parent of it exists.
        records: dataset dicts; those without "height" and "width" are assumed to have the size of
            the first such image.
        per_pixel: bytes per pixel.

    Raises:
        UserError: there is too little free space.
    """
    unknown, pixels = 0, 0
    first = None
    for record in records:
        if "height" in record and "width" in record:
            pixels += record["height"] * record["width"]
        else:
            first = first or record["file_name"]
            unknown += 1
    if unknown:
        pixels += unknown * math.prod(open_with(image_size, "image", first))
    place = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
    needed, free = per_pixel * pixels / 1e9, shutil.disk_usage(place).free / 1e9
    if needed > free:
        raise UserError(
            f"scores of all frames take {needed:.3g} GB in {folder} until the evaluation ends "
            f"({per_pixel} bytes per pixel), and {free:.3g} GB are free there"
        )
    if needed > _WORTH_SAYING:
        logger.info(f"scores of all frames take {needed:.3g} GB in {folder} until it is done")


class Spool(Sequence[_T]):
    """Frames in a temporary file; those of type ``Frame`` take 5 bytes per pixel.

    On POSIX systems the file has no name, so it is deleted even if the process is killed.

    Args:
        folder: folder of the file (default: ``TMPDIR``).
        kind: named tuple type of arrays of the same (H, W).
        types: data types of the arrays.

    Raises:
        UserError: the file cannot be created; from ``append``: the disk is full.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        kind: Callable[..., _T] = Frame,
        types: Sequence[type] = (np.float32, np.uint8),
    ) -> None:
        self._kind, self._types = kind, types
        self._folder = os.fspath(folder or tempfile.gettempdir())
        self._places: list[tuple[int, tuple[int, int]]] = []  # offset in the file, and (H, W)
        with self._named_errors():
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115

    def append(self, frame: _T) -> None:
        """Add a frame."""
        with self._named_errors():
            start = self._file.seek(0, os.SEEK_END)
            for array in frame:
                self._file.write(array)
            self._file.flush()  # so that a full disk raises its error here, not later
        self._places.append((start, frame[0].shape))

    def __getitem__(self, index: int) -> _T:
        start, shape = self._places[index]
        frame = self._kind(*(np.empty(shape, kind) for kind in self._types))
        self._file.seek(start)
        for array in frame:
            self._file.readinto(array)
        return frame

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Delete the file."""
        with suppress(OSError):  # from data that could not be written
            self._file.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            needed = sum(np.dtype(kind).itemsize for kind in self._types)
            raise UserError(
                f"cannot keep scores in {self._folder} ({needed} bytes per pixel): "
                f"{error.strerror}"
            ) from error
