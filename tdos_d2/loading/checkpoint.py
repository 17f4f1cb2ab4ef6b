"""Checkpoints with atomic writes, loading without code execution, and information on the model."""

from __future__ import annotations

import copy
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..errors import UserError, printable
from ..files import atomic_write, once_per_file
from ..modeling.weight_files import find_state, read_file, unreadable
from .config_values import fits, texts_in
from .network import NETWORK_SETTINGS
from .packing import read_packed_info, unpack

logger = logging.getLogger(__name__)

# Entries of a checkpoint's information that are read, each with an example of its value.
_INFO = {
    "class_names": [""], "ood_name": "", "clip_name": "", "encoder": "", "outlier_warning": "",
    "seed": 0, "batch_size": 0, "memory_frames": [""],
    "network": NETWORK_SETTINGS,
    "memory": {"vectors": 0, "encoder": "", "levels": [""], "padding": ""},
}  # fmt: skip
# Largest number of tensors that the log lists if they are not loaded.
_MAX_SHOWN = 20
# Beginnings of the names of tensors that tools/fit_memory.py adds.
OF_MEMORY = "memory.", "scores.normal"


def read_checkpoint_info(path: str | Path) -> dict[str, Any]:
    """Information in a checkpoint: ``class_names``, ``ood_name``, ``clip_name``, ``seed`` ...

    Plain Python types; empty for a file that was not written by ``TDOSCheckpointer``.

    Raises:
        UserError: the file is missing or cannot be read; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix == ".pkl":
        return {}
    return copy.deepcopy(_read_info(path))


@once_per_file(8)
def _read_info(path: str) -> dict[str, Any]:
    """``read_checkpoint_info`` of a file, reading as little of the weights as possible."""
    if path.endswith(".safetensors"):
        try:
            return _checked(read_packed_info(path), path)
        except Exception as error:  # safetensors raises no more specific type
            raise unreadable(path, error) from error
    checkpoint = read_file(path, mmap=zipfile.is_zipfile(path))
    return _checked(checkpoint.get("tdos", {}), path) if isinstance(checkpoint, Mapping) else {}


def _checked(info: Any, path: str | Path, known: Mapping[str, Any] = _INFO) -> dict[str, Any]:
    """The information in a checkpoint, checked for types and printable text."""
    if not isinstance(info, Mapping):
        raise UserError(f"{path} says of itself {printable(info)[:80]}, which is no dict")
    for key, example in known.items():
        if key not in info:
            continue
        if isinstance(example, Mapping):
            _checked(info[key], path, example)
        elif not fits(info[key], example) or not all(map(str.isprintable, texts_in(info[key]))):
            raise UserError(f"{path} says that its {key} is {printable(info[key])[:80]}")
    return dict(info)


class TDOSCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, ``weights_only`` reads and one more entry.

    ``checkpoint["tdos"]`` holds the model's ``checkpoint_info()`` (a dict of plain types; models
    without that method add nothing) and ``run_info``.

    Args:
        model: the model, possibly wrapped in DistributedDataParallel.
        save_dir: folder of the checkpoints.
        run_info: plain values to store beside the model's own, for example the seed.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        run_info: Mapping[str, Any] | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.run_info = dict(run_info or {})
        self.not_loaded: list[str] = []

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``, then point ``last_checkpoint`` at it if ``tag``."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs, "tdos": self._info()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path) as file:
            torch.save(data, file)
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, whole: str = "", **kwargs: Any) -> dict[str, Any]:
        """Load the model, and the requested checkpointables, from ``path``.

        All tensors that match are loaded, even if the file was trained with another number of
        classes or negatives. The log lists the loaded parts of the model; ``not_loaded`` has the
        names of other tensors.

        Args:
            path: file or URL; "" loads nothing.
            whole: if not empty, a file that lacks part of the model is an error, and this is the
                beginning of its message.

        Raises:
            UserError: ``path`` is missing, damaged or cannot be reached, no tensor matches, or,
                with ``whole``, a tensor is missing. The message names ``path``.
        """
        self._source, self._whole = path, whole
        check_address(path)
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, FileNotFoundError) as error:
            if os.path.isfile(path):
                raise unreadable(path, error) from error
            raise UserError(f"checkpoint {path} does not exist") from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    def _load_model(self, checkpoint: Any) -> Any:
        unpack(checkpoint, self.model, self._source)
        incompatible = super()._load_model(checkpoint)
        self._report(incompatible, self._source, checkpoint.get("tdos", {}))
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log nothing: ``_report`` does, part by part."""

    def _report(self, incompatible: Any, path: str, info: Mapping[str, Any]) -> None:
        """Log which parts of the model were loaded from ``path``."""
        keys = list(self.model.state_dict())
        shapes = {key: (there, here) for key, there, here in incompatible.incorrect_shapes}
        lacking = {*incompatible.missing_keys, *shapes}
        self.not_loaded = [key for key in keys if key in lacking]
        if len(self.not_loaded) == len(keys):
            raise UserError(f"checkpoint {path} has nothing that fits this model")
        if self._whole and self.not_loaded:
            more = len(self.not_loaded) - 1
            raise UserError(f"{self._whole} no fitting {self.not_loaded[0]} and {more} more")
        own = self._info()
        names, clip = info.get("class_names"), info.get("clip_name")
        if names is not None and list(names) != list(own.get("class_names", [])):
            logger.warning(f"{path} was trained with the classes {', '.join(names)}")
        if clip and clip != own.get("clip_name", clip):
            logger.warning(f"{path} was trained with CLIP {clip}, this is {own['clip_name']}")
        unused = [k for k in incompatible.unexpected_keys if k.startswith(OF_MEMORY)]
        others = [k for k in incompatible.unexpected_keys if k not in unused]
        if unused:
            logger.info(f"{path} also has a memory, which the scores of this config do not use")
        if others:
            parts = Counter(map(_part, others))
            counts = ", ".join(f"{part} ({count})" for part, count in parts.items())
            logger.warning(f"{path} has tensors that this model does not: {counts}")
        if not self.not_loaded:
            logger.info(f"loaded all {len(keys)} tensors of the model from {path}")
            return
        logger.warning(f"loaded {_by_part(keys, self.not_loaded)} from {path}")
        for key in self.not_loaded[:_MAX_SHOWN]:
            there, here = shapes.get(key, (None, None))
            why = f"is {there} there and {here} here" if there else "is not there"
            logger.warning(f"not loaded from {path}: {key} {why}; it keeps its start value")
        if len(self.not_loaded) > _MAX_SHOWN:
            logger.warning(f"not loaded from {path}: {len(self.not_loaded) - _MAX_SHOWN} more")

    def _info(self) -> dict[str, Any]:
        return {**getattr(self.model, "checkpoint_info", dict)(), **self.run_info}

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):  # Detectron2 would unpickle any object
            return _of_arrays(read_file(filename), filename)
        if filename.endswith(".pyth"):
            read_file(filename)
        try:
            return super()._load_file(filename)
        except (RuntimeError, ValueError, KeyError) as error:
            raise unreadable(filename, error) from error

    def _torch_load(self, f: str) -> Any:
        content = read_file(f)
        others = content if isinstance(content, Mapping) and "model" in content else {}
        if f.endswith(".safetensors"):
            others = {"tdos": read_checkpoint_info(f)}
        if "tdos" in others:
            others = {**others, "tdos": _checked(others["tdos"], f)}
        return {**others, "model": find_state(content, f, self.model.state_dict())}


def _of_arrays(content: Any, path: str) -> dict[str, Any]:
    """A Detectron2 .pkl unchanged; of a Caffe2 .pkl the arrays, to be matched by similar names."""
    if isinstance(content, Mapping) and "model" in content and "__author__" in content:
        return {"model": find_state(content, path), "__author__": str(content["__author__"])}
    blobs = content.get("blobs", content) if isinstance(content, Mapping) else content
    arrays = find_state(blobs, path)
    arrays = {key: array for key, array in arrays.items() if not key.endswith("_momentum")}
    return {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}


def _part(key: str) -> str:
    return key.partition(".")[0]


def _by_part(keys: list[str], not_loaded: list[str]) -> str:
    """Summary such as "all of backbone; none of neck; 3 of 4 of text", in tensors."""
    total, lacking = Counter(map(_part, keys)), Counter(map(_part, not_loaded))
    parts = {"all": [], "some": [], "none": []}
    for part, count in total.items():
        loaded = count - lacking[part]
        kind = "all" if loaded == count else "some" if loaded else "none"
        parts[kind].append(f"{loaded} of {count} of {part}" if kind == "some" else part)
    texts = [f"{kind} of {', '.join(parts[kind])}" for kind in ("all", "none") if parts[kind]]
    return "; ".join([*texts, *parts["some"]])


def check_address(path: str) -> None:
    """Raise UserError if ``path`` is a URL that is neither cached nor can be reached."""
    if "://" not in path:
        return
    web = path.startswith(("http://", "https://"))
    kept = os.path.join(get_cache_dir(), urlparse(path).path.lstrip("/"))  # PathManager's copy
    if web and os.path.isfile(kept):
        return
    try:
        if web:
            urlopen(path, timeout=30).close()
        else:
            PathManager.get_local_path(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"MODEL.WEIGHTS: {path} cannot be reached ({getattr(error, 'reason', error)}): "
            "download it elsewhere and name the file"
        ) from error
