"""Shared code of the prepare_*.py scripts. It imports neither torch nor Detectron2, so datasets can
be prepared without them, and ``--help`` is fast."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TypeVar

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import options

# Under another name: tdos_d2 itself imports torch and Detectron2, but these modules do not.
_package = ModuleType("_tdos_d2_alone")
_package.__path__ = [str(Path(__file__).resolve().parent.parent / "tdos_d2")]
sys.modules[_package.__name__] = _package
cores, errors, files, untrusted = (
    importlib.import_module(f"_tdos_d2_alone.{name}")
    for name in ("cores", "errors", "files", "untrusted")
)
PrepareError = errors.UserError  # one line that names the file or folder

_T = TypeVar("_T")
_R = TypeVar("_R")
# Train id of each Cityscapes label id; GTA has the same label ids.
_EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CITYSCAPES_TRAIN_IDS = np.full(256, 255, np.uint8)
CITYSCAPES_TRAIN_IDS[_EVALUATED] = np.arange(19)
_MADE_OF = "made_of.txt"  # in a prepared folder
_MAX_ARCHIVE = 2**32  # bytes of an archive's files, unpacked
CITYSCAPES_IDS = (*range(35), 255)


@dataclass(frozen=True)
class Job:
    """A file to create: ``write`` is called with a temporary path, later renamed to ``output``."""

    output: Path
    write: Callable[[Path], object]


def run_main(main: Callable[[], object]) -> None:
    """Call ``main``; a PrepareError becomes ``error: ...`` on stderr and exit status 2."""
    try:
        errors.exit_with_one_line(main)
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def argument_parser(
    doc: str, *, copy: bool = False, cityscapes: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options of all scripts and, on request, --copy and --cityscapes."""
    parser = options.Parser(description=doc)
    parser.add_argument(
        "--root",
        type=options.path,
        default=options.path(os.getenv("DETECTRON2_DATASETS", "datasets")),
        help="folder of all datasets (default: $DETECTRON2_DATASETS, now %(default)s)",
    )
    parser.add_argument("--source", type=options.path, help="the download (default: see above)")
    parser.add_argument("--output", type=options.path, help="output folder (default: see above)")
    parser.add_argument(
        "--jobs",
        type=options.whole(1),
        default=min(8, cores.usable_cores()),
        help="number of threads (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and count, write nothing")
    if copy:
        parser.add_argument("--copy", action="store_true", help="copy images instead of linking")
    if cityscapes:
        parser.add_argument("--cityscapes", type=options.path, help="folder of Cityscapes")
    return parser


def find_source(
    root: Path, names: Sequence[str], given: Path | None, what: str, option: str = "--source"
) -> Path:
    """The file or folder ``given``, or else the first of ``names`` that exists in ``root``."""
    candidates = [given] if given else [root / name for name in names]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    places = " or ".join(map(str, candidates))
    hint = "" if given else f"; set DETECTRON2_DATASETS, --root or {option}"
    raise PrepareError(f"{what} not found: no {places}{hint}")


def find_cityscapes(args: argparse.Namespace) -> Path:
    """The folder of Cityscapes, for scripts with the option ``--cityscapes``."""
    return find_source(args.root, ["cityscapes"], args.cityscapes, "Cityscapes", "--cityscapes")


def check_output(output: Path, *sources: Path, folder: bool = True) -> None:
    """Raise PrepareError if a folder (or file) is inside a download or cannot be written."""
    for source in sources:
        if output.resolve().is_relative_to(source.resolve()):
            raise PrepareError(f"--output {output} lies in {source}, where nothing is written")
    files.check_output(output, "--output", folder=folder)


def open_source(source: Path, *endings: str) -> dict[str, Callable[[], bytes]]:
    """Files of a folder or zip archive: name without folders -> function that reads it.

    Args:
        source: folder or archive.
        endings: of the names of the files that are used.

    Raises:
        PrepareError: it is neither, or has two such files of the same name.
    """
    if source.is_dir():
        paths = {path.as_posix(): path.read_bytes for path in list_files(source, "**/*")}
        return _by_name(source, paths, endings)
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise PrepareError(f"{source} is neither a folder nor a zip archive") from error
    try:
        untrusted.check_zip(source, _MAX_ARCHIVE)
    except ValueError as error:
        raise PrepareError(f"{source}: {error}") from error
    # Without hidden ones, as in folders: macOS adds files "._x" to archives.
    seen = {name: partial(archive.read, name) for name in archive.namelist() if not _hidden(name)}
    return _by_name(source, seen, endings)


def check_archive(source: Path, digests: Mapping[str, str], expected: str) -> None:
    """Compare an archive with its published SHA-256; for a folder, print that it is not compared.

    Args:
        source: archive or folder.
        digests: published SHA-256 in hexadecimal digits by name of the archive.
        expected: the name in ``digests`` that ``source`` should have.

    Raises:
        PrepareError: the archive has another SHA-256.
    """
    if source.is_dir():
        print(f"{source}: a folder, so the published checksum of the archive is not compared")
        return
    digest = hashlib.sha256(source.read_bytes()).hexdigest()  # the largest archive has 8 MB
    if digest == digests[expected]:
        print(f"{source}: SHA-256 is the published one of {expected}")
        return
    found = next((f"it is {name}" for name in digests if digests[name] == digest), "")
    reason = found or f"its SHA-256 begins {digest[:8]}, published is {digests[expected][:8]}"
    raise PrepareError(f"{source} is not {expected}: {reason}")


def fishyscapes_ids(files: Mapping[str, object]) -> dict[str, str]:
    """``{"<n>_<id>": "<id>"}`` of the label files <n>_<id>_labels.png, sorted by name."""
    matches = [re.fullmatch(r"(\d+_(.+))_labels\.png", name) for name in sorted(files)]
    return {match[1]: match[2] for match in matches if match}


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder that match a glob pattern, sorted, without hidden ones."""
    return [folder / p for p in files.find_files(folder, pattern)] if folder.is_dir() else []


def find_images(root: Path, splits: Sequence[str], ids: Sequence[str]) -> list[Path]:
    """Images ``leftImg8bit/<split>/<folder>/<id>_leftImg8bit.*`` below ``root``, one for each id.

    Raises:
        PrepareError: the tree has none of the splits, or lacks an image.
    """
    images = root / "leftImg8bit"
    present = [images / split for split in splits if (images / split).is_dir()]
    if not present:
        folders = " nor ".join(str(images / split) for split in splits)
        raise PrepareError(f"{root} is not the folder of the release: no {folders}")
    found: dict[str, Path] = {}
    for folder in present:
        for path in list_files(folder, "*/*_leftImg8bit.*"):
            found.setdefault(path.name.rpartition("_leftImg8bit.")[0], path)
    missing = [f"{id}_leftImg8bit.png" for id in ids if id not in found]
    if missing:
        check_complete(missing, len(ids), f"images of {images}")
    return [found[id] for id in ids]


def check_complete(missing: Sequence[str], total: int, what: str) -> None:
    """Raise PrepareError if something is missing (it names the first), or if ``total`` is 0."""
    if missing:
        raise PrepareError(f"{len(missing)} of {total} {what} are missing, first {missing[0]}")
    if not total:
        raise PrepareError(f"nothing to do: no {what}")


def make_train_set(
    images: Path,
    labels: Path,
    output: Path,
    train_ids: Callable[[Path], np.ndarray],
    args: argparse.Namespace,
) -> None:
    """Write ``output/labels`` and links in ``output/images`` for two folders of ``*.png``.

    Frames whose image and label differ in size are skipped and listed.

    Args:
        images: folder of the images.
        labels: folder with a label of the same name for each image.
        output: folder to write to.
        train_ids: returns (H, W) uint8 train ids of a label file.
        args: of :func:`argument_parser` with ``copy``.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise PrepareError(f"no folder {folder}: is this the unpacked release?")
    frames = list_files(images, "*.png")
    missing = [str(labels / p.name) for p in frames if not (labels / p.name).exists()]
    check_complete(missing, len(frames), f"labels of the images in {images}")

    def fits(image: Path) -> bool:
        done = (output / "labels" / image.name).exists()
        return done or read_size(image) == read_size(labels / image.name)

    jobs = []
    fitting = in_parallel(fits, frames, args.jobs, "Comparing sizes")
    for image, fit in zip(frames, fitting, strict=True):
        if not fit:
            print(f"left out: {image} and its label differ in size")
            continue
        write = partial(_write_label, train_ids, labels / image.name)
        jobs.append(Job(output / "labels" / image.name, write))
        jobs.append(Job(output / "images" / image.name, link_or_copy(image, args.copy)))
    write_missing(jobs, output, args)


def write_missing(jobs: Sequence[Job], output: Path, args: argparse.Namespace) -> None:
    """Write the files that do not exist yet, each complete or not at all; print how many."""
    todo = [job for job in jobs if not job.output.exists()]
    there = f"{len(jobs) - len(todo)} were there"
    if args.dry_run:
        print(f"{output}: {len(todo)} files would be written, {there} (dry run)")
        return
    in_parallel(write_file, todo, args.jobs, f"Writing {output.name}")
    print(f"{output}: {len(todo)} files written, {there}")


def check_made_of(output: Path, source: str, *, is_default: bool) -> None:
    """Raise PrepareError if ``output`` has files of another source, which would be kept.

    Folders of earlier versions of the scripts do not say what they were made of: one of the default
    name (``is_default``) is trusted.
    """
    note = output / _MADE_OF
    before = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else None
    if before is None and (is_default or not any(output.glob("*"))):
        return
    if before != source:
        what = f"of {before}" if before else "of an unknown version"
        raise PrepareError(f"--output: {output} has files {what}, not of {source}")


def note_made_of(output: Path, source: str) -> None:
    """Note in ``output`` what it was made of, see :func:`check_made_of`."""
    (output / _MADE_OF).write_text(f"{source}\n", encoding="utf-8")


def write_file(job: Job) -> None:
    """Write a temporary file and rename it, so that an existing output is always complete."""
    partial_file = job.output.with_name(f".{job.output.name}.{os.getpid()}.partial")
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        job.write(partial_file)
        os.replace(partial_file, job.output)
    except OSError as error:
        raise PrepareError(f"cannot make {job.output}: {error}") from error
    finally:
        partial_file.unlink(missing_ok=True)


def in_parallel(
    function: Callable[[_T], _R], items: Sequence[_T], jobs: int, title: str
) -> list[_R]:
    """``function`` of each item, in order, with a progress bar."""
    from tqdm.contrib.concurrent import thread_map  # takes a tenth of a second

    # Threads are enough: Pillow, OpenCV and zlib release Python's lock.
    bar = {"desc": title, "unit": "file", "disable": not items}
    return thread_map(function, items, max_workers=jobs, **bar)


def link_or_copy(source: Path, copy: bool) -> Callable[[Path], object]:
    """A ``Job.write`` that links to a file by a relative path, or copies it."""

    def link(path: Path) -> None:
        try:
            path.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))
        except (OSError, ValueError) as error:  # ValueError: another drive
            raise PrepareError(f"cannot link to {source} ({error}): use --copy") from error

    return partial(shutil.copyfile, source) if copy else link


def write_bytes(read: Callable[[], bytes], path: Path) -> None:
    """Write the bytes from ``read``, such as a value of :func:`open_source`."""
    path.write_bytes(read())


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of an image file, rotated according to its EXIF data."""
    return files.open_with(files.decode_image, "image", path)


def read_ids(path: Path) -> np.ndarray:
    """Values of a label file (or its palette's indices): (H, W), or (H, W, C) if in colour."""
    return files.open_with(files.decode_values, "label", path)


def read_array(source: Path | Callable[[], bytes], key: str, name: Path | str) -> np.ndarray:
    """The array ``key`` of an .npz file or of one of :func:`open_source`; ``name`` for messages."""
    try:
        file = source if isinstance(source, Path) else io.BytesIO(source())
        with untrusted.load_arrays(file) as archive:
            return archive[key]
    except Exception as error:  # zipfile, zlib and NumPy may raise almost any type
        raise PrepareError(f"cannot read the array '{key}' of {name}: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """(W, H) of an image file as rotated by :func:`read_rgb`, from its header."""
    return files.open_with(files.image_size, "image", path)


def translate(
    values: np.ndarray, table: np.ndarray, known: Sequence[int], name: Path
) -> np.ndarray:
    """Look (H, W) integers up in a (256,) table; raise PrepareError if one is not ``known``."""
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise PrepareError(f"{name} is no label map: {values.dtype} of shape {values.shape}")
    wrong = np.setdiff1d(np.unique(values), known)
    if wrong.size:
        raise PrepareError(f"{name} has values that the release has not: {wrong[:8].tolist()}")
    return table[values]


def save_png(array: np.ndarray, path: Path) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG, regardless of the file's suffix."""
    Image.fromarray(array).save(path, format="PNG", compress_level=3)


def _write_label(train_ids: Callable[[Path], np.ndarray], label: Path, path: Path) -> None:
    save_png(train_ids(label), path)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _by_name(
    source: Path, files: Mapping[str, Callable[[], bytes]], endings: tuple[str, ...]
) -> dict[str, Callable[[], bytes]]:
    places: dict[str, str] = {}
    for place in files:
        name = PurePosixPath(place).name
        if name.endswith(endings) and places.setdefault(name, place) != place:
            raise PrepareError(
                f"{source} has two files of the same name: {places[name]} and {place}; --source "
                "must name the folder or archive of one of them"
            )
    return {name: files[place] for name, place in places.items()}
