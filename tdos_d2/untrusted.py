"""Reading untrusted JSON, YAML, arrays and zip archives, within limits and without running code."""

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
MAX_LIST = 2**27  # bytes of a list of files: more than a million paths
MAX_YAML = 2**17  # bytes; PyYAML needs a few seconds for this
MAX_ARRAYS = 2**30  # bytes of all arrays in a file, unpacked
_MAX_NODES = 100_000  # of a YAML file, including repetitions by aliases


def read_text(path: str | os.PathLike, most: int = MAX_TEXT) -> str:
    """Content of a UTF-8 file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, not a regular file, or has more than ``most`` bytes.
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
    """Lines of a UTF-8 file of at most ``MAX_LIST`` bytes, such as a list of paths.

    Raises:
        UserError: "<what>: <cause>", it cannot be read.
    """
    try:
        return read_text(path, MAX_LIST).splitlines()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what}: {cause}") from error


def read_json(path: str | os.PathLike, most: int = MAX_TEXT) -> Any:
    """Content of a JSON file; raises as :func:`read_text`, and ValueError if it is not JSON."""
    try:
        return json.loads(read_text(path, most))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str, name: str) -> Any:
    """Content of YAML in plain types; tags for other objects are refused.

    Args:
        text: content of a file.
        name: name of that file, for messages.

    Raises:
        yaml.YAMLError: the text is not YAML, repeats a key, or its aliases repeat too much.
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
        if repeated := _repeated_key(loader, node, set()):
            raise yaml.YAMLError(repeated)
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
    """Check the directory of a zip archive before any of its files are read.

    Args:
        file: the archive.
        most: largest sum of the unpacked sizes, in bytes.
        stored: whether files must not be compressed, as in archives of torch.

    Raises:
        ValueError: it unpacks to more, names lead out of the archive, or files are encrypted or,
            with ``stored``, compressed.
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
    """Number of nodes below a YAML node, counted again for each alias."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1  # for a node that contains itself
        inner = node.value if isinstance(node.value, list) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in inner)
        known[id(node)] = 1 + sum(_nodes(part, known) for pair in pairs for part in pair)
    return known[id(node)]


def _repeated_key(loader: Any, node: Any, seen: set[int]) -> str:
    """What is said of a key that a mapping has twice, of which PyYAML drops the first; "" = none.

    Keys that a mapping takes over from another one (<<) may be given again.
    """
    if id(node) in seen or not isinstance(node.value, list):
        return ""
    seen.add(id(node))
    lines: dict[Any, int] = {}
    for part in node.value:
        key, value = part if isinstance(part, tuple) else (None, part)
        # PyYAML itself refuses lists as keys; it constructs neither << nor = alone.
        if key and isinstance(key.value, str) and not key.tag.endswith((":merge", ":value")):
            name, line = loader.construct_object(key), key.start_mark.line + 1
            if name in lines:
                return f"the key '{key.value}' of line {lines[name]} is repeated in line {line}"
            lines[name] = line
        if repeated := _repeated_key(loader, value, seen):
            return repeated
    return ""
