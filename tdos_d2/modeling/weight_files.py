"""Weight files: reading without running code, and finding the weights in their content."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..untrusted import check_zip

# Keys under which trainers store a model's weights, and name prefixes of module wrappers.
_ENTRIES = ("model", "state_dict", "model_state_dict", "model_state", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_OF_ARRAYS = re.compile(
    r"numpy(\._?core\.multiarray\.(_reconstruct|scalar)|\.ndarray|\.dtype)"
    r"|collections\.OrderedDict|_codecs\.encode"
)


_FOLLOW = ContextVar("weights follow", default=False)


@contextmanager
def weights_follow(follow: bool = True) -> Iterator[None]:
    """Context in which encoders are built at random, as a checkpoint will give all weights."""
    token = _FOLLOW.set(follow)
    try:
        yield
    finally:
        _FOLLOW.reset(token)


def needs_weights() -> bool:
    """Whether an encoder that is being built must read its weight file.

    Not on the meta device, where tensors have no values, and not within :func:`weights_follow`.
    """
    return not (torch.empty(0).is_meta or _FOLLOW.get())


def read_file(path: str | Path, *, mmap: bool = False) -> Any:
    """Content of a file of ``torch.save``, of safetensors, or of Detectron2's .pkl of arrays.

    Raises:
        UserError: the file is damaged, or reading it would run code; the message names it.
    """
    path = str(path)
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return _ArrayUnpickler(file, encoding="latin1").load()
        if zipfile.is_zipfile(path):  # compressed data may have any size, and mmap misreads it
            check_zip(path, Path(path).stat().st_size, stored=True)
        # weights_only: unpickling a whole module would run any code that the file names.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # safetensors raises no more specific type
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> UserError:
    """The UserError for an exception from reading ``path``."""
    if isinstance(error, UserError):
        return error
    kind = re.search(r"(?:Unsupported (?:global|class):? (?:GLOBAL )?)([\w.]+)", str(error))
    if kind:
        return UserError(
            f"{path} cannot be read: it holds Python objects ({kind[1]}), which could run code; "
            "save a state dict alone: torch.save(model.state_dict(), FILE)"
        )
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rpartition("WeightsUnpickler error: ")[2]
    if isinstance(error, ValueError):
        text = str(error)
    reason = (text.strip() or type(error).__name__).splitlines()[0][:160]
    return UserError(f"{path} cannot be read, it may be damaged ({reason})")


def find_state(content: Any, path: str | Path, own: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights in a file's content: at the top level, or under a key that trainers use.

    Args:
        content: from ``read_file``.
        path: path of the file, for messages.
        own: names of the model's weights; if the file has none of them, the prefixes that module
            wrappers add to all names are removed.

    Raises:
        UserError: there are no weights; the message describes the content.
    """
    state = content if isinstance(content, Mapping) else {}
    # Entries may be nested: a trainer's checkpoint may contain that of a wrapper.
    while inner := [state[key] for key in _ENTRIES if isinstance(state.get(key), Mapping)]:
        state = inner[0]
    tensors = {k: v for k, v in state.items() if isinstance(v, (Tensor, np.ndarray))}
    found = {str(key): torch.as_tensor(value) for key, value in tensors.items()}
    if not found:
        raise UserError(
            f"{path} holds {_describe(content)}, no weights: a state dict is expected, alone or "
            f"as one of {', '.join(_ENTRIES)}"
        )
    # DataParallel, torch.compile and trainers' wrappers nest, so there may be several prefixes.
    own = set(own)
    while own.isdisjoint(found):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in found)), None)
        if prefix is None:
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(map(str, list(content)[:8]))
        return f"a dict with {keys}" if keys else "an empty dict"
    return f"a {type(content).__name__}"


class _ArrayUnpickler(pickle.Unpickler):
    """Creates only arrays and plain types."""

    def find_class(self, module: str, name: str) -> Any:
        if not _OF_ARRAYS.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return super().find_class(module, name)
