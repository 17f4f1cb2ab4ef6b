"""Thresholds beside the checkpoint that they were found for: JSON that names it by its SHA-256."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from ..errors import UserError
from ..files import atomic_write, fingerprint
from ..untrusted import read_json
from .tables import to_json

_T = TypeVar("_T")
# By the annotations of dataclasses.
_KINDS = {
    "float": (int, float), "int": (int,), "str": (str,), "bool": (bool,),
    "str | None": (str, NoneType), "Mapping[str, Any]": (dict,),
}  # fmt: skip


def write_threshold(
    path: Path, checkpoint: str | os.PathLike, values: Any, comments: Mapping[str, str]
) -> None:
    """Write a threshold with what it is of. OSError as ``open``.

    Args:
        path: the file.
        checkpoint: whose content is named.
        values: a dataclass with ``threshold``: ``float32(score) >= threshold`` is predicted OOD.
        comments: further entries, for people.
    """
    content = {
        **dataclasses.asdict(values),
        **comments,
        "rule": "score >= threshold",
        "checkpoint_sha256": fingerprint(checkpoint),
    }
    with atomic_write(path) as file:
        file.write(f"{to_json(content)}\n".encode())


def read_threshold(path: Path, checkpoint: str | os.PathLike, kind: type[_T], remedy: str) -> _T:
    """What :func:`write_threshold` wrote.

    Args:
        path: the file.
        checkpoint: that it must be of.
        kind: dataclass of the values.
        remedy: what the user may do to have it anew, for messages.

    Raises:
        UserError: the file is damaged, or was made for another checkpoint.
    """
    try:
        values = read_json(path)
        fields = dataclasses.fields(kind)
        made = kind(**{f.name: _checked(f.name, values[f.name], f.type) for f in fields})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): {remedy}, or remove it") from error
    if values.get("checkpoint_sha256") != fingerprint(checkpoint):
        raise UserError(
            f"{path} is the threshold of another checkpoint than what {checkpoint} is now: "
            f"{remedy}, or remove it"
        )
    return made


def _checked(name: str, value: Any, annotation: str) -> Any:
    fits = type(value) in _KINDS[annotation]
    if isinstance(value, float):
        fits = fits and math.isfinite(value)
    if not fits or (isinstance(value, str) and not value.isprintable()):
        raise ValueError(f"{name} is {value!r}"[:80])
    return float(value) if annotation == "float" else value
