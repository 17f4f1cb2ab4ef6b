"""Files: outputs that are there complete or not at all, inputs in folders, images.

Inputs may be anybody's. What would never end, fill the memory or run code is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache, wraps
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError, output_error

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS = 258
# Pillow knows many more, and runs Ghostscript for one of them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
# Of an image, a label or a score map: a file of some kilobytes can claim any size.
MAX_PIXELS = 2**27
# Visited in one search. Links between folders make any number of paths.
_MAX_FOLDERS = 100_000
_T = TypeVar("_T")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under ``path`` complete or not at all.

    The bytes go to a file of this process in the same folder, reach the disk, and only then take
    the name: several processes may write the same file. After an error the old file is still there
    and the temporary one is gone. What is no file, such as /dev/stdout, is written to as it is.

    Raises:
        OutputUserError: the disk is full.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if full := output_error(error, path):
            raise full from error
        raise


def _sync_folder(folder: Path) -> None:
    """Let a new name reach the disk, where the file system can (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: str | os.PathLike, option: str, *, folder: bool = False) -> None:
    """Find out, before the work, whether its result can be written. Nothing is left behind.

    Args:
        path: a file whose folder must be there, or (``folder``) a folder, which may be made with
            its parents.
        option: option or config key that names it, for messages.
        folder: which of the two it is.

    Raises:
        UserError: it cannot be written, or there is a file for a folder or a folder for a file.
    """
    path = Path(path)
    if folder:
        place = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    elif path.is_dir():
        raise UserError(f"{option}: {path} is a folder, not a file")
    elif path.exists() and not path.is_file():  # such as /dev/stdout
        return
    else:
        place = path.parent
    if not place.is_dir():
        reason = f"{place} is no folder" if os.path.lexists(place) else f"no folder {place}"
        raise UserError(f"{option}: {reason}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write to {place} ({error.strerror})") from error


def find_files(
    folder: str | os.PathLike, pattern: str = "**/*", without: Sequence[Path] = ()
) -> list[str]:
    """Files in a folder and those below it, also where links lead, each folder once on a path.

    Hidden files and folders (".ipynb_checkpoints", "._x.jpg" of macOS) are left out. Links that
    lead nowhere are in the list, so that reading them is an error.

    Args:
        folder: where to look.
        pattern: of paths below it, as in glob: "**" is any number of folders.
        without: folders to leave out, whatever name or link leads there.

    Returns:
        Paths below ``folder``, with "/", sorted as text.

    Raises:
        UserError: a folder cannot be read, or links make too many of them.
    """
    parts = PurePosixPath(pattern).parts
    pruned = {os.path.realpath(path) for path in without}
    found = _walk(os.fspath(folder), "", pruned, count())
    return sorted(path for path in found if _fits(path.split("/"), parts))


def _walk(folder: str, prefix: str, closed: set[str], visits: Iterator[int]) -> Iterator[str]:
    """Paths below ``folder`` behind ``prefix``; none below the real folders ``closed``."""
    real = os.path.realpath(folder)
    if real in closed:
        return
    if next(visits) >= _MAX_FOLDERS:
        raise UserError(f"{folder}: over {_MAX_FOLDERS} folders: do links lead in circles?")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", {*closed, real}, visits)
        else:
            yield prefix + entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: an error when it is read
        return False


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return _fits(path, pattern[1:]) or (bool(path) and _fits(path[1:], pattern))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def open_with(
    read: Callable[[IO[bytes]], _T],
    kind: str,
    path: str | os.PathLike,
    open_file: Callable[[str, str], IO[bytes]] = open,
) -> _T:
    """``read`` of the file ``path``, such as :func:`decode_image`; ``kind`` is for messages.

    Raises:
        UserError: whatever went wrong, in one line that names the file.
    """
    try:
        check_regular(path)
        with open_file(os.fspath(path), "rb") as file:
            return read(file)
    except FileNotFoundError as error:
        raise UserError(f"no {kind} file {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read {kind} {path}: it is no image that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {kind} {path}: {cause}") from error


def check_regular(path: str | os.PathLike) -> None:
    """Raise ValueError for a pipe, a socket or a device: reading it might never end."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("it is a pipe, a socket or a device, not a file")


def stays_inside(name: str) -> bool:
    """Whether a path from a list leads to a file of the folder that it is joined to."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return not any(path.anchor or ".." in path.parts for path in paths)


def check_size(width: int, height: int) -> None:
    """Raise ValueError for more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}x{height} pixels, more than {MAX_PIXELS} in all")


def open_image(
    file: IO[bytes] | str | os.PathLike, formats: Sequence[str] = _FORMATS
) -> Image.Image:
    """``Image.open``, of these formats and of at most ``MAX_PIXELS``.

    Raises:
        ValueError: the image is larger.
        Exception: nearly every kind there is, from Pillow's decoders.
    """
    image = Image.open(file, formats=formats)
    try:
        check_size(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def decode_image(file: IO[bytes]) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image, turned as its EXIF data say, whatever its format.

    Of 16 bits the high byte counts, in grey images as in those with colour; transparency does not.
    (Given a name instead of an open file, Pillow maps some TIFF files into memory and confuses
    their sides where they are turned.)

    Raises:
        ValueError: a grey image has 32 bits or real numbers, whose range nobody knows.
        Exception: nearly every kind there is, from Pillow's decoders.
    """
    with open_image(file) as opened:
        bits = opened.tag_v2.get(_TIFF_BITS, (16,))[0] if opened.format == "TIFF" else 16
        ImageOps.exif_transpose(opened, in_place=True)  # copies nothing where nothing is turned
        image: Image.Image = opened
        # Pillow has PNG and PGM files of 16 bits as "I", too, depending on its version.
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
            image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        elif image.mode in ("I", "F"):
            kind = "integers of 32 bits" if image.mode == "I" else "real numbers"
            raise ValueError(f"its pixels are {kind}; images must have 8 or 16 bits")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_values(file: IO[bytes]) -> np.ndarray:
    """(H, W), or in colour (H, W, C), integers or bool in a label file or mask.

    They are turned as its EXIF data say; of a palette the indices count.

    Raises:
        ValueError: a value is not a whole number.
        Exception: nearly every kind there is, from Pillow's decoders.
    """
    with open_image(file) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        values = np.array(opened)
    if values.dtype.kind != "f":
        return values
    whole = np.nan_to_num(values).clip(-(2**30), 2**30).astype(np.int32)
    if (whole != values).any():
        shown = values[whole != values][0]
        raise ValueError(f"it has the value {shown:.6g}; values must be whole numbers")
    return whole


def image_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height that :func:`decode_image` gives, from the header; raises as it does."""
    with open_image(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow has turned the size itself
            return width, height
        # The PNG class's own getexif would decode the whole image where it has no EXIF data.
        turned = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)


def once_per_file(number: int) -> Callable[[Callable[[str], _T]], Callable[..., _T]]:
    """Decorator: what a function of a path gave is kept while the file is the same.

    The same is what has the same inode, time and size. What is kept is handed out as it is: callers
    do not change it. Errors are not kept. ``cache_clear`` forgets all, as that of ``lru_cache``.

    Args:
        number: how many files are kept.
    """

    def decorate(read: Callable[[str], _T]) -> Callable[..., _T]:
        @lru_cache(maxsize=number)
        def kept(path: str, *_: int) -> _T:
            return read(path)

        @wraps(read)
        def call(path: str | os.PathLike) -> _T:
            path = os.fspath(path)
            try:
                state = os.stat(path)
            except OSError:  # the function knows what to say
                return read(path)
            return kept(path, state.st_ino, state.st_mtime_ns, state.st_size)

        call.cache_clear = kept.cache_clear
        return call

    return decorate


def fingerprint(path: str | os.PathLike) -> str | None:
    """SHA-256 of a file's content in hexadecimal digits; None where there is no file."""
    return _fingerprint(path) if os.path.isfile(path) else None


@once_per_file(8)
def _fingerprint(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
