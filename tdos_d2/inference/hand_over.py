"""A folder for annotators: pictures, pre-annotations, and the frames to label first."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import __version__
from ..errors import UserError
from ..files import atomic_write
from .frame_predictor import FrameResult
from .frame_selection import EncoderFeatures, FrameChooser, score_mass, small_picture
from .labelling_formats import (
    COCO,
    LABEL_STUDIO,
    LabelledFrame,
    pack_mask,
    write_coco,
    write_label_studio,
)
from .media import HAND_OVER
from .predictor import OODPredictor

_QUALITY = 95  # of JPEG


class HandOver:
    """Collects the results of frames, and finally writes them for labelling tools.

    ``hand_over/data`` has the pictures: images unchanged (as hard links if the disk allows it),
    frames of videos as JPEG files. Beside it are the files of the formats and, with ``select``,
    ``selected.txt``, a path per line. A second run writes ``hand_over_2``. Until they are written,
    the results are in a temporary file.

    Args:
        predictor: the model.
        output: the folder in which ``hand_over`` is created.
        formats: "coco", "label-studio", both or none.
        select: number of frames to choose (see :class:`~.frame_selection.FrameChooser`); None: all
            images, and those frames of videos that have an object.
        words: words that objects may have; they are categories beside "ood".
        valid: (H, W) bool, the pixels whose scores count; None = all.

    Attributes:
        lost: after ``finish``, a line for each input that could not be read a second time.
    """

    def __init__(
        self,
        predictor: OODPredictor,
        output: Path,
        formats: Sequence[str],
        *,
        select: int | None = None,
        words: Sequence[str] = (),
        valid: np.ndarray | None = None,
    ) -> None:
        self.output, self.formats, self.select = output, formats, select
        self.categories = ["ood", *dict.fromkeys(word for word in words if word != "ood")]
        self.lost: list[str] = []
        self._valid = valid
        self._features = EncoderFeatures(predictor.model) if select else None
        self._chooser = FrameChooser()
        self._places: list[int] = []  # offsets of the frames in the file
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __len__(self) -> int:
        return len(self._places)

    def add(
        self, source: Path, name: str, number: int | None, image: np.ndarray, found: FrameResult
    ) -> None:
        """Add a frame.

        Args:
            source: the image or video.
            name: name of its results, without suffix.
            number: index of the frame in a video, from 0; None for an image.
            image: (H, W, 3) uint8 BGR.
            found: the results for it.
        """
        record = found.record
        objects = [
            {
                "category": self._category(entry.get("word")),
                "score": entry["mean_score"],
                "area": entry["area"],
                "box": entry["box"],
                "rle": pack_mask(found.regions == entry["id"]),
            }
            for entry in (record["objects"] or ())
        ]
        picture = f"{name}{source.suffix}" if number is None else f"{name}_frames/{number:06d}.jpg"
        frame = LabelledFrame(picture, record["width"], record["height"], objects)
        entry = {"source": str(source), "number": number, **vars(frame)}
        line = json.dumps(entry, allow_nan=False)
        if self._features is not None:
            descriptor = self._features.take()
            descriptor = small_picture(image) if descriptor is None else descriptor
            self._chooser.add(score_mass(found.score, self._valid), descriptor)
        self._places.append(self._file.seek(0, os.SEEK_END))
        self._file.write(f"{line}\n".encode())

    def truncate(self, length: int) -> None:
        """Discard all but the first ``length`` frames."""
        del self._places[length:]
        self._chooser.truncate(length)

    def finish(self) -> str:
        """Write everything; returns a line that says what is where.

        Pictures that can no longer be read are left out, and ``lost`` says of which inputs.

        Raises:
            UserError: the folder cannot be written to.
        """
        try:
            return self._write(self._kept(), self._free_folder())
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else error
            raise UserError(f"cannot hand over {what}") from error

    def _write(self, kept: Sequence[int], folder: Path) -> str:
        (folder / "data").mkdir(parents=True)
        kept = self._write_pictures(kept, folder / "data")
        frames = _Frames(self, kept)
        if COCO in self.formats:
            write_coco(folder / "labels.json", frames, self.categories)
        if LABEL_STUDIO in self.formats:
            path = folder / "label_studio.json"
            write_label_studio(path, frames, self.categories, f"tdos_d2 {__version__}")
        if self.select:
            with atomic_write(folder / "selected.txt") as file:
                for place in kept:
                    entry = self.entry(place)
                    there = folder / "data" / entry["file"]
                    path = entry["source"] if entry["number"] is None else there
                    file.write(f"{path}\n".encode())
        self._file.close()
        return f"{len(kept)} of {len(self)} frames for labelling in {folder}"

    def entry(self, place: int) -> dict[str, Any]:
        """The entry of frame number ``place``, in the order of ``add``."""
        self._file.seek(self._places[place])
        return json.loads(self._file.readline())

    def _category(self, word: str | None) -> int:
        return self.categories.index(word) if word in self.categories else 0

    def _kept(self) -> list[int]:
        if self.select:
            return self._chooser.choose(self.select)
        entries = ((i, self.entry(i)) for i in range(len(self)))
        return [i for i, entry in entries if entry["number"] is None or entry["objects"]]

    def _free_folder(self) -> Path:
        folder, number = self.output / HAND_OVER, 1
        while folder.exists():
            number += 1
            folder = self.output / f"{HAND_OVER}_{number}"
        return folder

    def _write_pictures(self, kept: Sequence[int], data: Path) -> list[int]:
        """Write the pictures; returns those of ``kept`` whose picture is there."""
        videos: dict[str, dict[int, list[Path]]] = {}  # a video may be an input twice
        targets = {}
        for place in kept:
            entry = self.entry(place)
            source, target = entry["source"], data / entry["file"]
            targets[place] = target
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry["number"] is not None:
                videos.setdefault(source, {}).setdefault(entry["number"], []).append(target)
            elif not _copy(source, target):
                self.lost.append(f"cannot read {source} a second time")
        for source, of_video in videos.items():
            unread = _write_frames(source, of_video)
            if unread is not None:
                self.lost.append(f"cannot read frame {unread} of {source} a second time")
        return [place for place, target in targets.items() if target.is_file()]


class _Frames:
    """Some of the frames of a :class:`HandOver`; can be iterated over more than once."""

    def __init__(self, hand_over: HandOver, places: Sequence[int]) -> None:
        self._hand_over, self._places = hand_over, places

    def __iter__(self) -> Iterator[LabelledFrame]:
        for place in self._places:
            entry = self._hand_over.entry(place)
            del entry["source"], entry["number"]
            yield LabelledFrame(**entry)


def _copy(source: str, target: Path) -> bool:
    """Link or copy an image; returns whether it could be read."""
    with suppress(OSError):
        os.link(os.path.realpath(source), target)
        return True
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.filename != source:
            raise
        return False
    return True


def _write_frames(source: str, targets: dict[int, list[Path]]) -> int | None:
    """Write frames of a video as JPEG files, each to the paths under its number.

    Returns:
        The number of the first frame that cannot be read; None if all can.
    """
    capture = cv2.VideoCapture(source)
    try:
        for number in range(max(targets) + 1):
            if not capture.grab():
                return number
            if number not in targets:
                continue
            there, frame = capture.retrieve()
            if not there:
                return number
            _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            for target in targets[number]:
                with atomic_write(target) as file:
                    file.write(data.tobytes())
    finally:
        capture.release()
    return None
