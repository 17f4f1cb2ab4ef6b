"""The built-in datasets, as ``builtin.yaml`` describes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .cityscapes import CITYSCAPES_CLASSES
from .folder import BuiltinFolder, ImageFolder, register_classes, register_folder
from .ood import ood_metadata

BUILTIN: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("builtin.yaml").read_text(encoding="utf-8")
)["sets"]


def register_builtin() -> None:
    """Register the sets that are not Detectron2's."""
    for name, entry in BUILTIN.items():
        if "folders" not in entry:
            continue
        layouts = [ImageFolder(**_with_tuples(layout)) for layout in entry["layouts"]]
        folder = BuiltinFolder(tuple(entry["folders"]), tuple(layouts), entry.get("made_by", ""))
        metadata = _with_tuples(entry.get("metadata", {}))
        classes = entry.get("classes")
        if classes is None:
            register_folder(name, folder, **ood_metadata(name, **metadata))
        else:
            named = CITYSCAPES_CLASSES if classes == "cityscapes" else _with_tuples(classes)
            register_classes(name, folder, named, **metadata)


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples for lists and for ranges such as "2-5"."""
    found = dict(entry)
    for key, value in entry.items():
        ends = re.fullmatch(r"(\d+)-(\d+)", value) if isinstance(value, str) else None
        if ends:
            found[key] = tuple(range(int(ends[1]), int(ends[2]) + 1))
        elif isinstance(value, list):
            found[key] = tuple(value)
    return found
