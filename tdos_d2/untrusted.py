"""JSON, YAML, arrays and zip archives of strangers: read within limits, running nothing in them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

import numpy as np

from .errors import UserError
from .files import check_regular, stays_inside

MAX_TEXT = 2**24  # bytes of a text or JSON file
MAX_YAML = 2**17  # bytes; PyYAML reads this in some seconds
MAX_ARRAYS = 2**30  # bytes of all arrays in a file, unpacked
_MAX_NODES = 100_000  # of a YAML file, with what its aliases repeat


def read_text(path: str | os.PathLike, most: int = MAX_TEXT) -> str:
    """Content of a UTF-8 file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, no regular file, or has more than ``most`` bytes.
    """
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def read_lines(path: str | os.PathLike, what: str) -> list[str]:
    """Lines of a UTF-8 file, such as a list of paths.

    Raises:
        UserError: "<what>: <cause>", it cannot be read.
    """
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: {cause}") from error


def read_json(path: str | os.PathLike, most: int = MAX_TEXT) -> Any:
    """What a JSON file holds; raises as :func:`read_text`, also where it is no JSON."""
    try:
        return json.loads(read_text(path, most))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str, name: str) -> Any:
    """What YAML says, in plain types: tags that would make other objects are refused.

    Args:
        text: of a file.
        name: of that file, for messages.

    Raises:
        yaml.YAMLError: it is no YAML, or its aliases repeat too much.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > _MAX_NODES:
            raise yaml.YAMLError("its aliases repeat too much, or without end")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except (ValueError, TypeError) as error:  # such as the 99th of a month, or a list as a key
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def load_arrays(file: str | os.PathLike | io.BytesIO) -> Any:
    """``np.load`` without pickles, of at most ``MAX_ARRAYS`` bytes.

    Raises:
        OSError, ValueError: the file cannot be read, or is larger.
    """
    if isinstance(file, io.BytesIO):
        size = len(file.getbuffer())
    else:
        check_regular(file)
        size = os.path.getsize(file)
    if size > MAX_ARRAYS:
        raise ValueError(f"it has more than {MAX_ARRAYS} bytes")
    if zipfile.is_zipfile(file):
        check_zip(file, MAX_ARRAYS)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return np.load(file, allow_pickle=False)


def check_zip(file: str | os.PathLike | io.BytesIO, most: int, *, stored: bool = False) -> None:
    """Look at the list of a zip archive before anything in it is read.

    Args:
        file: the archive.
        most: bytes that all its files may have, unpacked.
        stored: nothing in it may be compressed, as in what torch writes.

    Raises:
        ValueError: it unpacks to more, names lead out of it, or files are compressed or encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"damaged zip archive ({error})") from error
    if sum(entry.file_size for entry in entries) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    for entry in entries:
        if not stays_inside(entry.filename):
            raise ValueError(f"its file {entry.filename} leads out of the archive")
        if entry.flag_bits & 1:
            raise ValueError(f"its file {entry.filename} is encrypted")
        if stored and entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its file {entry.filename} is compressed")


def _nodes(node: Any, known: dict[int, int]) -> int:
    """Number of nodes below a node of YAML, each as often as aliases name it."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # if it is met again inside of itself
        inner = node.value if isinstance(node.value, list) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in inner)
        known[id(node)] = 1 + sum(_nodes(part, known) for pair in pairs for part in pair)
    return known[id(node)]
