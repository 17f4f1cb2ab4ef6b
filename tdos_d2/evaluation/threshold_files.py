"""JSON files of thresholds, saved beside a checkpoint and tied to it by its SHA-256."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from ..errors import UserError
from ..files import atomic_write, fingerprint
from ..untrusted import read_json
from .tables import to_json

_T = TypeVar("_T")
# Types by the annotations of dataclasses.
_KINDS = {
    "float": (int, float), "int": (int,), "str": (str,), "bool": (bool,),
    "str | None": (str, NoneType), "Mapping[str, Any]": (dict,),
}  # fmt: skip


def write_threshold(
    path: Path, checkpoint: str | os.PathLike, values: Any, comments: Mapping[str, str]
) -> None:
    """Write a threshold with the SHA-256 of its checkpoint.

    Args:
        path: the file.
        checkpoint: the checkpoint of the threshold.
        values: a dataclass with ``threshold``: ``float32(score) >= threshold`` is predicted OOD.
        comments: further entries, which are not read back.

    Raises:
        OSError: as from ``open``.
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
    """Read the values that :func:`write_threshold` wrote.

    Args:
        path: the file.
        checkpoint: the checkpoint that the file must belong to.
        kind: dataclass of the values.
        remedy: how to create the file again, for messages.

    Raises:
        UserError: the file is damaged, or was made for another checkpoint.
    """
    try:
        values = read_json(path)
        # Files of earlier versions lack fields that have a default.
        optional = {f.name for f in dataclasses.fields(kind) if f.default_factory is dict}
        fields = [f for f in dataclasses.fields(kind) if f.name in values or f.name not in optional]
        made = kind(**{f.name: _checked(f.name, values[f.name], f.type) for f in fields})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): {remedy}, or remove it") from error
    if values.get("checkpoint_sha256") != fingerprint(checkpoint):
        raise UserError(
            f"{path} is the threshold of another checkpoint than what {checkpoint} is now: "
            f"{remedy}, or remove it"
        )
    return made


def changed_settings(then: Any, now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a threshold, which need not have all, and others."""
    then = then if isinstance(then, Mapping) else {}
    return [f"{key} is {value}, then {then[key]}"
            for key, value in now.items() if then.get(key, value) != value]  # fmt: skip


def with_changes(source: str, changed: Sequence[str]) -> str:
    """``source`` of a threshold with the ``changed_settings`` since it was made, if any."""
    return f"{source}, with other settings: {'; '.join(changed)}" if changed else source


def check_threshold_of(
    path: Path, checkpoint: Path | None, score: str, settings: Mapping[str, Any]
) -> list[str]:
    """Check what a threshold file says of its score and its checkpoint; it may say nothing.

    Returns:
        ``changed_settings`` since it was made.

    Raises:
        UserError: it is for another score, or for another checkpoint than this file.
    """
    content = read_json(path)
    of = content.get("score", score)
    if of != score:
        raise UserError(f"{path} is a threshold of {of}, the score is {score}")
    sha256 = content.get("checkpoint_sha256")
    if sha256 and checkpoint is not None and sha256 != fingerprint(checkpoint):
        raise UserError(f"{path} is the threshold of another checkpoint than {checkpoint}")
    return changed_settings(content.get("settings"), settings)


def _checked(name: str, value: Any, annotation: str) -> Any:
    fits = type(value) in _KINDS[annotation]
    if isinstance(value, float):
        fits = fits and math.isfinite(value)
    if not fits or (isinstance(value, str) and not value.isprintable()):
        raise ValueError(f"{name} is {value!r}"[:80])
    return float(value) if annotation == "float" else value
