"""Custom datasets from a YAML file, the value of ``DATASETS.REGISTER``."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog

from ...errors import UserError
from ...files import once_per_file
from ...untrusted import MAX_YAML, parse_yaml, read_text
from .ood import register_ood_dataset
from .segmentation import register_segmentation_dataset

_PATHS = ("image_root", "label_root", "region_mask", "image_list", "instance_root")
_NEEDED = ("name", "image_root", "label_root")
_LISTS = ("id_values", "ood_values", "ignore_values", "test_size")
_TYPES = dict.fromkeys(_LISTS, "a list of integers")
_TYPES |= dict.fromkeys(("min_pred", "min_gt"), "an integer")
_COLOURS = ("id_colours", "ood_colours", "ignore_colours")
_TYPES |= dict.fromkeys(_COLOURS, "a list of colours")
_TYPES |= {"classes": "a list or a mapping", "colours": "a mapping", "class_values": "a mapping"}
# Datasets registered from files; one process may read a file twice.
_registered: dict[str, dict[str, Any]] = {}


def register_from_file(path: str | os.PathLike) -> list[str]:
    """Register the datasets that a YAML file lists, unless they are registered already.

    The file is a list of mappings. Those with ``classes`` or ``colours`` have the arguments of
    :func:`~tdos_d2.data.datasets.segmentation.register_segmentation_dataset`, others those of
    :func:`~tdos_d2.data.datasets.ood.register_ood_dataset`. Folders and files are relative to the
    YAML file's folder.

    Args:
        path: the file.

    Returns:
        the names.

    Raises:
        UserError: the file cannot be read, has an invalid key or value, or a name is taken.
    """
    path = Path(path).expanduser()
    sets = [_checked(path, i, entry) for i, entry in enumerate(_load(path), 1)]
    for arguments in sets:
        name = arguments["name"]
        if name in DatasetCatalog and _registered.get(name) == arguments:
            continue
        try:
            _register(arguments)(**arguments)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        _registered[name] = arguments
    return [arguments["name"] for arguments in sets]


@once_per_file(8)
def _load(path: str) -> list[Any]:
    try:
        content = parse_yaml(read_text(path, MAX_YAML), path)
    except OSError as error:
        raise UserError(f"DATASETS.REGISTER: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: a list of datasets is expected")
    return content


def _checked(path: Path, number: int, entry: Any) -> dict[str, Any]:
    """Arguments of the function that registers the entry."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: dataset {number} is not a mapping of keys")
    where = f"{path}: dataset {entry.get('name', number)!r}"
    keys = tuple(inspect.signature(_register(entry)).parameters)
    for key in entry:
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(keys)}"
            raise UserError(f"{where}: unknown key '{key}', {hint}")
    for key in _NEEDED:
        if entry.get(key) is None:
            raise UserError(f"{where}: '{key}' is missing")
    arguments = {key: value for key, value in entry.items() if value is not None}
    for key, value in arguments.items():
        wanted = _TYPES.get(key, "a text")
        if not _has_type(value, wanted):
            raise UserError(f"{where}: {key} must be {wanted}, got {value!r}")
    if not re.fullmatch(r"[\w .()+-]+", arguments["name"]):  # it is used in file names and tables
        raise UserError(f"{where}: the name may have letters, digits, spaces and _-+.()")
    for key in _PATHS:
        if key in arguments:
            arguments[key] = str(path.parent / Path(arguments[key]).expanduser())
    return arguments


def _register(entry: Mapping[str, Any]) -> Callable[..., None]:
    """The function that registers an entry; entries with class names are training datasets."""
    names_classes = "classes" in entry or "colours" in entry
    return register_segmentation_dataset if names_classes else register_ood_dataset


def _has_type(value: Any, wanted: str) -> bool:
    if wanted in ("a list or a mapping", "a mapping", "a list of colours"):
        kinds = {"a mapping": dict, "a list of colours": list}.get(wanted, (list, dict))
        return isinstance(value, kinds)
    if wanted == "a list of integers":
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value) is int if wanted == "an integer" else isinstance(value, str)
