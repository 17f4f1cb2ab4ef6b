"""Checkpoints that are never half written, never run code, and say what they are of."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import UserError

# What torch.load and unpickling raise on files that are damaged, cut off or something else.
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under ``path`` complete or not at all.

    The bytes go to ``<path>.tmp`` in the same folder, reach the disk, and only then take the name;
    after an error the old file is still there and the temporary one is gone.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint_info(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: ``class_names``, ``ood_name``, ``clip_name``, ``seed`` ...

    Returns:
        Plain Python types; empty for a file that was not written by ``TDOSCheckpointer``.

    Raises:
        UserError: the file is missing or cannot be read; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix == ".pkl":
        return {}
    checkpoint = _load(path, mmap=_is_zip(path))
    info = checkpoint.get("tdos", {}) if isinstance(checkpoint, Mapping) else {}
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

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``, then point ``last_checkpoint`` at it."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs, "tdos": self._info()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the model, and the checkpointables asked for, from ``path``.

        Raises:
            UserError: the file is missing or damaged; the message names it.
        """
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, FileNotFoundError) as error:
            if os.path.isfile(path):
                raise
            raise UserError(f"checkpoint {path} does not exist") from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    def _info(self) -> dict[str, Any]:
        describe = getattr(self.model, "checkpoint_info", dict)
        return {**describe(), **self.run_info}

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            return super()._load_file(filename)
        except _UNREADABLE as error:
            raise _unreadable(filename, error) from error

    def _torch_load(self, f: str) -> Any:
        return _load(f)


def _load(path: str | Path, *, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return UserError(f"checkpoint {path} cannot be read, it may be damaged ({reason})")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
