"""Registration of the built-in datasets, which are described in ``builtin.yaml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..reading import IGNORE
from .cityscapes import CITYSCAPES_CLASSES
from .folder import BuiltinFolder, ImageFolder, register_folder
from .ood import ood_metadata

BUILTIN: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("builtin.yaml").read_text(encoding="utf-8")
)["sets"]


def register_builtin() -> None:
    """Register the datasets that Detectron2 does not register."""
    for name, entry in BUILTIN.items():
        if "folders" not in entry:
            continue
        layouts = [ImageFolder(**_with_tuples(layout)) for layout in entry["layouts"]]
        folder = BuiltinFolder(tuple(entry["folders"]), tuple(layouts), entry.get("made_by", ""))
        metadata = _with_tuples(entry.get("metadata", {}))
        classes = entry.get("classes")
        if classes is None:
            metadata = ood_metadata(name, **metadata)
        else:
            colours = CITYSCAPES_CLASSES if classes == "cityscapes" else _with_tuples(classes)
            metadata |= {
                "evaluator_type": "sem_seg",
                "ignore_label": IGNORE,
                "stuff_classes": list(colours),
                "stuff_colors": list(colours.values()),
            }
        register_folder(name, folder, **metadata)


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """A copy in which lists, and ranges such as "2-5", are tuples."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        ends = re.fullmatch(r"(\d+)-(\d+)", str(value))
        return tuple(range(int(ends[1]), int(ends[2]) + 1)) if ends else value

    return {key: convert(value) for key, value in entry.items()}
