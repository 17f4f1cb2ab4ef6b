"""Reading of inputs for prediction, and writing of its outputs, each completely or not at all."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image, PngImagePlugin

from ..data.verify.quick import check_registered, get_dicts
from ..errors import UserError, printable
from ..files import atomic_write, find_files
from ..untrusted import read_lines
from .sources import IMAGES, VIDEOS, Input, live_source, natural_order, stream_name

TABLE = "predictions.jsonl"
LIST = ".txt"  # of inputs
# Pictures that cameras, phones and web pages write, and that are not read.
_UNREAD = (".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".dng", ".cr2", ".nef", ".arw")
HAND_OVER = "hand_over"  # folder for annotators; later runs write hand_over_2, ...
# endings of the results for one input
_ENDS = ("_score.png", "_segmentation.png", "_raw.png", "_raw.npy",
         "_score.mp4", "_segmentation.mp4", "_frames", "_events")  # fmt: skip


def read_names(stream: Iterable[str]) -> Iterator[str]:
    """The lines of standard input, each the name of a file or folder.

    Raises:
        UserError: one is not UTF-8.
    """
    try:
        for line in stream:
            line.encode()  # in the C locale, decoding does not detect invalid bytes
            yield line
    except UnicodeError as error:
        raise UserError("a name on standard input is not UTF-8") from error


def list_inputs(
    given: Sequence[str], lines: IO[str], output: Path, results: set[str]
) -> Iterator[tuple[Path, str]]:
    """The files to read, each with a name for its results.

    Args:
        given: files, folders (searched with their subfolders), patterns such as "a/**/*.png"
            (unless a file has that name), lists (.txt, a file or folder per line) and "-" for
            ``lines``.
        lines: a file or folder per line, read as they arrive.
        output: folder of the results. Files in it are not inputs; but if an input folder is
            ``output`` or in it, only ``results`` are left out.
        results: real paths of files that are results of this run or earlier ones.

    Yields:
        The file, and a path without suffix relative to ``output``: the path below the input folder,
        or the file's name. A number makes it unique, also among the files in ``output``.

    Raises:
        UserError: a folder has no images or videos, a pattern matches nothing, or a list cannot be
            read or is empty.
    """
    taken: set[str] = set()
    words = (line.strip() for word in given for line in (lines if word == "-" else _words(word)))
    for word in filter(None, words):
        top = Path(word).expanduser()
        files = _files_in(top, output, results) if os.path.isdir(top) else {top.name: top}
        inputs = {n: path for n, path in files.items() if not _is_result(path, results)}
        if len(inputs) < len(files):
            left_out = len(files) - len(inputs)
            said = f"{word}: {left_out} files are results, which are no inputs"
            print(printable(said), file=sys.stderr)
        for name, path in inputs.items():
            stem = PurePosixPath(name).with_suffix("").as_posix()
            is_video = path.suffix.lower() in VIDEOS
            yield path, unique_name(stem, output, taken, is_video=is_video)


def _words(word: str, option: str = "--input") -> Iterable[str]:
    """The files and folders that an argument of ``option`` stands for."""
    path = os.path.expanduser(word)
    if path.lower().endswith(LIST):
        return _read_list(Path(path), option)
    if not glob.has_magic(path) or os.path.lexists(path):
        return (word,)
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise UserError(f"{option}: nothing fits the pattern {word}")
    return found


def _read_list(path: Path, option: str) -> list[str]:
    words = [line.strip() for line in read_lines(path, f"{option}: cannot read the list {path}")]
    if not any(words):
        raise UserError(f"{option}: the list {path} names nothing")
    return [word for word in words if word]


def unique_name(stem: str, output: Path, taken: set[str], *, is_video: bool = False) -> str:
    """``stem``, numbered if it is in ``taken`` or has results in ``output``; added to ``taken``.

    Frames of a video "a" are named "a_frames/000000" and so on: no image gets such a name.
    """
    unique, number = stem, 1
    while (
        unique in taken
        or (f"{unique}_frames/" if is_video else _of_frame(unique)) in taken
        or any(os.path.exists(output / (unique + end)) for end in _ENDS)
    ):
        number += 1
        unique = f"{stem}_{number}"
    folder = PurePosixPath(unique).parent.as_posix()
    taken |= {unique, f"{unique}_frames/*" if is_video else f"{folder}/"}
    return unique


def _of_frame(name: str) -> str:
    """What :func:`unique_name` notes for videos of which a frame could have this name."""
    path = PurePosixPath(name)
    return f"{path.parent.as_posix()}/*" if path.name.isdigit() else "/"


def group_sequences(inputs: Iterable[tuple[Path, str]], output: Path) -> Iterator[Input]:
    """One input per folder of images, ordered by the numbers in their names.

    Args:
        inputs: from :func:`list_inputs`.
        output: folder of the results.

    Yields:
        The videos, then the folders of images.
    """
    folders: dict[Path, tuple[str, list[Path]]] = {}
    seen: set[str] = set()
    repeated = 0
    for path, name in inputs:
        if path.suffix.lower() in VIDEOS:
            yield Input(path, name)
        elif (real := os.path.realpath(path)) in seen:
            repeated += 1
        else:
            seen.add(real)
            stem = PurePosixPath(name).parent.as_posix()
            stem = (path.parent.resolve().name or "sequence") if stem == "." else stem
            folders.setdefault(path.parent, (stem, []))[1].append(path)
    if repeated:
        print(f"{repeated} images are named twice, and are frames once", file=sys.stderr)
    taken: set[str] = set()
    for folder, (stem, paths) in folders.items():
        ordered = sorted(paths, key=lambda path: natural_order(path.name))
        yield Input(folder, unique_name(stem, output, taken), ordered)


def live_inputs(given: Iterable[str], output: Path) -> Iterator[Input]:
    """Those arguments of ``--input`` that name cameras and streams."""
    taken: set[str] = set()
    for source in filter(lambda s: s is not None, map(live_source, given)):
        stem = re.sub(r"[^0-9a-zA-Z.-]+", "_", stream_name(source)).strip("_.")
        yield Input(source, unique_name(stem, output, taken))


def _files_in(folder: Path, output: Path, results: set[str]) -> dict[str, Path]:
    """Images and videos by their path below the folder; adds other runs' results to ``results``."""
    known = IMAGES | VIDEOS
    inside = [output] if output.resolve() != folder.resolve() else []
    found = _known_files(folder, known, results, inside)
    if not found:
        raise UserError(f"{folder} has no images or videos ({', '.join(sorted(known))})")
    return found


def normal_frames(
    images: Path | None, dataset: str | None = None, option: str = "--images"
) -> list[str]:
    """Normal frames, each once: image files of a dataset, or what ``option`` names.

    Args:
        images: a folder (searched with its subfolders, without results of predict.py), a pattern
            such as "a/**/*.png", or a list (.txt, a file or folder per line).
        dataset: name of a registered dataset; None: ``images``.

    Raises:
        UserError: a folder, pattern or list names no image, or the dataset does not exist; the
            dataset is an OOD set, whose anomalies would count as normal.
    """
    if dataset is not None:
        check_registered(dataset)
        if MetadataCatalog.get(dataset).get("evaluator_type") == "ood":
            raise UserError(f"--dataset {dataset} is an OOD set: its frames are not normal")
        return [record["file_name"] for record in get_dicts(dataset)]
    results: set[str] = set()
    found: dict[str, str] = {}  # by real path
    for path in (Path(word).expanduser() for word in _words(str(images), option)):
        if path.is_dir():
            files = _known_files(path, IMAGES, results).values()
        elif path.suffix.lower() in IMAGES:
            files = (path,)
        else:
            video = path.suffix.lower() in VIDEOS
            extract = f": extract frames, such as by ffmpeg -i {path} -vf fps=1 FOLDER/%06d.jpg"
            raise UserError(f"{option}: {path} is no folder or image{extract if video else ''}")
        found |= {os.path.realpath(file): str(file) for file in files}
    frames = [file for real, file in found.items() if real not in results]
    if not frames:
        raise UserError(f"{option}: {images} has no image ({', '.join(sorted(IMAGES))})")
    return frames


def _known_files(
    folder: Path, known: set[str], results: set[str], without: Sequence[Path] = ()
) -> dict[str, Path]:
    """Files of these kinds by their path below the folder; adds results in it to ``results``."""
    files = {name: folder / name for name in find_files(folder, without=without)}
    for path in files.values():
        if path.name == TABLE:
            results |= read_results(path)
    _say_unread(folder, files)
    return {name: path for name, path in files.items() if path.suffix.lower() in known}


def _say_unread(folder: Path, names: Iterable[str]) -> None:
    """Say on standard error how many of the files are pictures of kinds that are not read."""
    kinds = Counter(PurePosixPath(name).suffix.lower() for name in names)
    if left_out := {kind: kinds[kind] for kind in _UNREAD if kinds[kind]}:
        counts = ", ".join(f"{number} {kind}" for kind, number in left_out.items())
        said = f"{folder}: left out, as files of this kind are not read: {counts}; convert them"
        print(printable(said), file=sys.stderr)


def read_results(table: Path) -> set[str]:
    """Real paths of the files that a ``predictions.jsonl`` names, and of those in ``hand_over``.

    Empty if there is no such table. Lines that are not records, such as one that a full disk cut
    off, are skipped.
    """
    found = {os.path.realpath(path) for path in table.parent.glob(f"{HAND_OVER}*/data/**/*")}
    for record in read_records(table) if table.is_file() else ():
        with suppress(ValueError, TypeError, AttributeError):
            found |= result_files(record, table.parent)
    return found


def read_records(table: Path) -> Iterator[dict[str, Any]]:
    """Records of a ``predictions.jsonl``; other lines are skipped."""
    with open(table, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = None
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
            if isinstance(record, dict):
                yield record


def result_files(record: Mapping[str, Any], folder: Path) -> set[str]:
    """Real paths of the files and folders that a record of ``predictions.jsonl`` in ``folder``
    names."""
    return {os.path.realpath(folder / file) for file in record.get("files", {}).values()}


def _is_result(path: Path, results: set[str]) -> bool:
    """Whether a file is a result, or in a folder that is a result."""
    try:
        real = os.path.realpath(path)
    except ValueError:  # a character that no path can have; reading the file raises the error
        return False
    return real in results or os.path.dirname(real) in results


class VideoFile:
    """A video file that gets its name when it is complete. All frames must have one size.

    Args:
        path: the .mp4 file to write.
        rate: frames per second; the file gets the nearest rate that its codec can have.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, _possible_rate(rate)
        self._temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._frames = 0

    def add(self, picture: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB picture.

        Raises:
            UserError: this OpenCV build cannot write the video; the size differs from the first.
        """
        # The codec takes even sizes only.
        edges = [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)]
        picture = np.pad(picture, edges, mode="edge")
        size = picture.shape[1], picture.shape[0]
        if self._writer is None:
            self._size = size
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.rate, size)
            if not self._writer.isOpened():
                raise UserError(f"OpenCV cannot write the video {self.path}")
        if size != self._size:  # OpenCV would silently drop the frame
            raise UserError(f"{self.path}: the frames are not of one size")
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def close(self, keep: bool) -> None:
        """Give the file its name if it is to be kept and has frames, else delete it.

        Raises:
            UserError: the file lacks frames; OpenCV does not report a full disk.
        """
        try:
            if self._writer is not None:
                self._writer.release()
                if keep and self._frames:
                    self._check()
                    self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check(self) -> None:
        video = cv2.VideoCapture(str(self._temporary))
        there = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        video.release()
        if there != self._frames:
            raise UserError(
                f"cannot write {self.path}: {there} of {self._frames} frames are in it: is the "
                "disk full?"
            )


def _possible_rate(rate: float) -> float:
    """The nearest frame rate for MPEG-4: OpenCV makes it a fraction of up to three decimals, whose
    numerator has 16 bits."""
    rate = min(max(rate, 0.002), 65535)
    digits = next(n for n in (3, 2, 1, 0) if rate * 10**n < 65535.5)
    return round(rate, digits)


@contextmanager
def video_files(paths: Sequence[Path], rate: float) -> Iterator[list[VideoFile]]:
    """Videos that are all kept, or all deleted if an exception is raised."""
    files = [VideoFile(path, rate) for path in paths]
    keep = False
    try:
        yield files
        keep = True
    finally:
        with ExitStack() as stack:
            for file in files:
                stack.callback(file.close, keep)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with atomic_write(path) as file:
        file.write(data.tobytes())


def write_score(path: Path, score: np.ndarray) -> dict[str, dict[str, float]]:
    """Write an (H, W) score unchanged (.npy) or with 16 bits (.png).

    A PNG has ``value = round((score - offset) / step)``, and text entries "offset" and "step", so
    that ``score = offset + step * value`` up to half a step.

    Returns:
        Entries for its record: ``raw_scale`` (offset and step) for a PNG, none for .npy.
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
    return {"raw_scale": {"offset": low, "step": step}}
