"""Thresholds beside the checkpoint that they were found for: JSON that names it by its SHA-256."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..files import atomic_write, fingerprint
from .tables import to_json

_T = TypeVar("_T")


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
        values = json.loads(path.read_text())
        fields = {field.name: values[field.name] for field in dataclasses.fields(kind)}
        if not math.isfinite(fields["threshold"]):
            raise ValueError(f"the threshold is {fields['threshold']}")
        made = kind(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): {remedy}, or remove it") from error
    if values.get("checkpoint_sha256") != fingerprint(checkpoint):
        raise UserError(
            f"{path} is the threshold of another checkpoint than what {checkpoint} is now: "
            f"{remedy}, or remove it"
        )
    return made
