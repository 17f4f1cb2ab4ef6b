"""Files: outputs written completely or not at all, inputs in folders, images.

Inputs may come from untrusted sources: files are refused if reading them would never end, exhaust
the memory or run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
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
# Pillow reads many other formats, and runs Ghostscript for one of them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF")
# Limit for an image, a label or a score map: a file of a few kilobytes can declare any size.
MAX_PIXELS = 2**27
# Limit of folders in one search: links between folders can give any number of paths.
_MAX_FOLDERS = 100_000
_T = TypeVar("_T")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under ``path`` completely or not at all.

    The bytes are written to a temporary file of this process in the same folder, flushed to the
    disk, and only then renamed: several processes may write the same file. After an error the old
    file is unchanged and the temporary one is deleted. Special files such as /dev/stdout are
    written to directly.

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
    """Flush a new name to the disk if the system supports this (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: str | os.PathLike, option: str, *, folder: bool = False) -> None:
    """Check, before the computation, that its result can be written; leaves no files behind.

    Args:
        path: a file whose folder must exist, or (``folder``) a folder, which need not exist.
        option: option or config key that names it, for messages.
        folder: whether ``path`` is a folder.

    Raises:
        UserError: it cannot be written, or is a file instead of a folder or vice versa.
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
    """Files in a folder and its subfolders; links are followed, except in circles.

    Hidden files and folders (".ipynb_checkpoints", "._x.jpg" of macOS) are left out. Broken links
    are included, so that reading them is an error.

    Args:
        folder: the folder to search.
        pattern: pattern of the paths below it, as in glob: "**" is any number of folders.
        without: folders to leave out, compared by their real paths.

    Returns:
        Paths below ``folder``, with "/", sorted as text.

    Raises:
        UserError: a folder cannot be read, or links lead to too many folders.
    """
    parts = PurePosixPath(pattern).parts
    pruned = {os.path.realpath(path) for path in without}
    found = _walk(os.fspath(folder), "", pruned, count())
    return sorted(path for path in found if _fits(path.split("/"), parts))


def _walk(folder: str, prefix: str, closed: set[str], visits: Iterator[int]) -> Iterator[str]:
    """Paths below ``folder``, each with ``prefix``; none below the real paths in ``closed``."""
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
    except OSError:  # a link to itself; reading it raises the error
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
    """Apply ``read``, such as :func:`decode_image`, to a file; ``kind`` is for messages.

    Raises:
        UserError: any error, in one line that names the file.
    """
    try:
        check_regular(path)
        with open_file(os.fspath(path), "rb") as file:
            return read(file)
    except FileNotFoundError as error:
        raise UserError(f"no {kind} file {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read {kind} {path}: it is no image that Pillow knows") from error
    except Exception as error:  # Pillow's decoders may raise almost any type
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {kind} {path}: {cause}") from error


def check_regular(path: str | os.PathLike) -> None:
    """Raise ValueError for a pipe, a socket or a device, as reading it might never end."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("it is a pipe, a socket or a device, not a file")


def stays_inside(name: str) -> bool:
    """Whether a path from a list stays within the folder that it is joined to."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return not any(path.anchor or ".." in path.parts for path in paths)


def check_size(width: int, height: int) -> None:
    """Raise ValueError for more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}x{height} pixels, more than {MAX_PIXELS} in all")


def open_image(
    file: IO[bytes] | str | os.PathLike, formats: Sequence[str] = _FORMATS
) -> Image.Image:
    """``Image.open``, restricted to these formats and to ``MAX_PIXELS``.

    Raises:
        ValueError: the image is larger.
        Exception: of almost any type, from Pillow's decoders.
    """
    image = Image.open(file, formats=formats)
    try:
        check_size(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def decode_image(file: IO[bytes]) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image of any format, rotated according to its EXIF data.

    Of images with 16 bits, grey or in colour, the high byte is used; transparency is ignored.
    (Given a name instead of an open file, Pillow memory-maps some TIFF files and swaps the sides of
    rotated ones.)

    Raises:
        ValueError: a grey image has 32 bits or real numbers, whose range is unknown.
        Exception: of almost any type, from Pillow's decoders.
    """
    with open_image(file) as opened:
        bits = opened.tag_v2.get(_TIFF_BITS, (16,))[0] if opened.format == "TIFF" else 16
        ImageOps.exif_transpose(opened, in_place=True)  # copies nothing where nothing is turned
        image: Image.Image = opened
        # Depending on its version, Pillow also opens PNG and PGM files of 16 bits in mode "I".
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
            image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        elif image.mode in ("I", "F"):
            kind = "integers of 32 bits" if image.mode == "I" else "real numbers"
            raise ValueError(f"its pixels are {kind}; images must have 8 or 16 bits")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_values(file: IO[bytes], *, shallow: bool = False) -> np.ndarray:
    """(H, W), or in colour (H, W, C), integers or bool in a label file or mask.

    They are rotated according to the EXIF data; images with a palette give its indices.

    Args:
        file: the open file.
        shallow: whether grey of fewer than 8 bits is read. Pillow scales it to 0..255, or to bool,
            so that only 0 and equality mean anything.

    Raises:
        ValueError: a value is not an integer, or the image is grey with fewer than 8 bits.
        Exception: of almost any type, from Pillow's decoders.
    """
    with open_image(file) as opened:
        most = _largest_grey(opened)
        if most < 255 and not shallow:
            raise ValueError(
                f"its grey has a bit depth of {most.bit_length()} (0..{most}), which programs "
                "scale to 0..255; labels need 8 bits per pixel: save it again with 8 bits"
            )
        ImageOps.exif_transpose(opened, in_place=True)
        values = np.array(opened)
    if values.dtype.kind != "f":
        return values
    whole = np.nan_to_num(values).clip(-(2**30), 2**30).astype(np.int32)
    if (whole != values).any():
        shown = values[whole != values][0]
        raise ValueError(f"it has the value {shown:.6g}; values must be whole numbers")
    return whole


def _largest_grey(image: Image.Image) -> int:
    """Largest value that an unread file can have for grey; 255 if Pillow does not scale it."""
    if image.mode == "1":
        return 1
    if image.mode != "L" or not image.tile:
        return 255
    codec, _, _, args = image.tile[0]
    first, *others = (args,) if isinstance(args, str) else args
    if codec.startswith("ppm"):
        return others[0]
    few = re.match(r"L;([24])", str(first))  # Pillow's names of what it unpacks
    return 2 ** int(few[1]) - 1 if few else 255


def image_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height of :func:`decode_image`'s result, from the header; the same errors."""
    with open_image(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow has already swapped the sides
            return width, height
        # The PNG class's getexif would decode the whole image if it has no EXIF data.
        turned = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)


def once_per_file(number: int) -> Callable[[Callable[[str], _T]], Callable[..., _T]]:
    """Decorator that caches the results of a function of a path until the file changes.

    A file is unchanged if it has the same inode, time and size. Results are not copied: callers
    must not change them. Errors are not cached. ``cache_clear`` works as that of ``lru_cache``.

    Args:
        number: largest number of cached files.
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
            except OSError:  # the function raises its own error
                return read(path)
            return kept(path, state.st_ino, state.st_mtime_ns, state.st_size)

        call.cache_clear = kept.cache_clear
        return call

    return decorate


def fingerprint(path: str | os.PathLike) -> str | None:
    """SHA-256 of a file's content in hexadecimal digits; None if there is no file."""
    return _fingerprint(path) if os.path.isfile(path) else None


def short_fingerprint(path: str | os.PathLike) -> str:
    """The first 16 digits of the fingerprint: enough to tell files apart, in lists of many."""
    return (fingerprint(path) or "")[:16]


@once_per_file(8)
def _fingerprint(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
