"""Reading and writing of files for prediction: inputs of all kinds, outputs that are complete."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import UserError
from ..files import atomic_write, find_files

TABLE = "predictions.jsonl"
HAND_OVER = "hand_over"  # folder for people who label; of later runs hand_over_2, ...
IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
# of the results for one input
_ENDS = ("_score.png", "_segmentation.png", "_raw.png", "_raw.npy",
         "_score.mp4", "_segmentation.mp4", "_frames")  # fmt: skip
_USUAL_RATE = 25.0


def list_inputs(
    given: Sequence[str], lines: IO[str], output: Path, results: set[str]
) -> Iterator[tuple[Path, str]]:
    """The files to be read, each with a name for what is made of it.

    Args:
        given: files, folders (searched with their subfolders) and "-" for ``lines``.
        lines: a file or folder per line, read as they come.
        output: folder of the results; what lies there is not an input, unless it is (in) an input
            folder itself: then ``results`` are none.
        results: real paths of files that are results, of this run or earlier ones.

    Yields:
        The file, and a path without suffix relative to ``output``: that below the folder, or the
        file's name; made unique by a number, also among what lies in ``output``.

    Raises:
        UserError: a folder without images and videos.
    """
    taken: set[str] = set()
    words = (line.strip() for word in given for line in (lines if word == "-" else (word,)))
    for word in filter(None, words):
        top = Path(word).expanduser()
        files = _files_in(top, output, results) if top.is_dir() else {top.name: top}
        inputs = {n: path for n, path in files.items() if os.path.realpath(path) not in results}
        if len(inputs) < len(files):
            left_out = len(files) - len(inputs)
            print(f"{word}: {left_out} files are results, which are no inputs", file=sys.stderr)
        for name, path in inputs.items():
            stem = unique = PurePosixPath(name).with_suffix("").as_posix()
            number = 1
            while unique in taken or any((output / (unique + end)).exists() for end in _ENDS):
                number += 1
                unique = f"{stem}_{number}"
            taken.add(unique)
            yield path, unique


def _files_in(folder: Path, output: Path, results: set[str]) -> dict[str, Path]:
    """Images and videos by their path below the folder; finds the results of other runs there."""
    known = IMAGES | VIDEOS
    inside = [output] if output.resolve() != folder.resolve() else []
    files = {name: folder / name for name in find_files(folder, without=inside)}
    for path in files.values():
        if path.name == TABLE:
            results |= read_results(path)
    found = {name: path for name, path in files.items() if path.suffix.lower() in known}
    if not found:
        raise UserError(f"{folder} has no images or videos ({', '.join(sorted(known))})")
    return found


def read_results(table: Path) -> set[str]:
    """Real paths of the files that lines of a ``predictions.jsonl`` name, and of those handed over.

    None where it is absent. Lines of other kinds, such as the rest of one when a disk was full,
    name none.
    """
    found = {os.path.realpath(path) for path in table.parent.glob(f"{HAND_OVER}*/data/**/*")}
    for line in table.read_text("utf-8", "replace").splitlines() if table.is_file() else ():
        with suppress(ValueError, TypeError, AttributeError):
            found |= result_files(json.loads(line), table.parent)
    return found


def result_files(record: Mapping[str, Any], folder: Path) -> set[str]:
    """Real paths of the files that a record of ``predictions.jsonl`` in ``folder`` names."""
    parts = (record, *record.get("frames", ()))
    files = [file for part in parts for file in part.get("files", {}).values()]
    return {os.path.realpath(folder / file) for file in files}


class Video:
    """Frames of a video file.

    Args:
        path: the file.

    Raises:
        UserError: OpenCV cannot read it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"no video file {path}")
        self.path = path
        capture = cv2.VideoCapture(str(path))
        self.rate = capture.get(cv2.CAP_PROP_FPS) or _USUAL_RATE
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        opened = capture.isOpened()
        capture.release()
        if not opened:
            raise UserError(f"cannot read video {path}")

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR.

        Raises:
            UserError: at the end, if there were fewer frames than the file says it has (some
                formats are a little out).
        """
        capture = cv2.VideoCapture(str(self.path))
        count = 0
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    break
                count += 1
                yield frame
        finally:
            capture.release()
        if not count or count < self.length - max(2, self.length // 100):
            raise UserError(f"video {self.path} breaks off: {count} of {self.length} frames")


class VideoFile:
    """A video that appears under its name when it is complete; frames may be of any one size.

    Args:
        path: the .mp4 file to write.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
        self._writer: cv2.VideoWriter | None = None

    def add(self, picture: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB picture.

        Raises:
            UserError: this OpenCV cannot write videos there.
        """
        # The codec takes even sizes only.
        edges = [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)]
        picture = np.pad(picture, edges, mode="edge")
        if self._writer is None:
            size = picture.shape[1], picture.shape[0]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.rate, size)
            if not self._writer.isOpened():
                raise UserError(f"OpenCV cannot write the video {self.path}")
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self, keep: bool) -> None:
        """Give the file its name, or leave nothing."""
        if self._writer is not None:
            self._writer.release()
            if keep:
                self._temporary.replace(self.path)
        self._temporary.unlink(missing_ok=True)


@contextmanager
def video_files(paths: Sequence[Path], rate: float) -> Iterator[list[VideoFile]]:
    """Videos that are all kept if nothing is raised, else none."""
    files = [VideoFile(path, rate) for path in paths]
    keep = False
    try:
        yield files
        keep = True
    finally:
        for file in files:
            file.close(keep)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with atomic_write(path) as file:
        file.write(data.tobytes())


def write_score(path: Path, score: np.ndarray) -> dict[str, float]:
    """Write an (H, W) score as it is (.npy) or with 16 bits (.png).

    A PNG has ``value = round((score - offset) / step)``; offset and step are also in its text
    entries of these names, so that ``score = offset + step * value`` up to half a step.

    Returns:
        ``offset`` and ``step`` of a PNG; nothing for .npy.
    """
    if path.suffix == ".npy":
        with atomic_write(path) as file:
            np.save(file, score)
        return {}
    low, high = float(score.min()), float(score.max())
    step = (high - low) / 65535 or 1.0
    values = np.round((score.astype(np.float64) - low) / step).astype(np.uint16)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("offset", repr(low))
    texts.add_text("step", repr(step))
    with atomic_write(path) as file:
        Image.fromarray(values).save(file, "PNG", pnginfo=texts)
    return {"offset": low, "step": step}
