"""Weights from TorchScript archives, such as OpenAI's CLIP, without running their code.

Such an archive is a zip file: ``data.pkl`` describes modules and their tensors, ``data/<number>``
has the values, and ``code/`` the code that ``torch.jit.load`` would compile and might run.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

_TYPES = {
    "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "CharStorage": torch.int8, "DoubleStorage": torch.float64, "FloatStorage": torch.float32,
    "HalfStorage": torch.float16, "IntStorage": torch.int32, "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}  # fmt: skip
_LISTS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")
_MAX_ATTRIBUTES = 100_000  # of all modules, counted once per reference


def is_torchscript(path: str | Path) -> bool:
    """Whether this is a zip archive with code; archives of ``torch.save`` have none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors of the module, by their names in its state dict.

    Raises:
        Exception: of almost any type, if the archive is damaged or has objects other than modules,
            tensors and plain types.
    """
    left = Path(path).stat().st_size

    def read(name: str) -> bytes:
        nonlocal left
        entry = archive.getinfo(name)
        # Only the code is compressed. Two names may refer to the same bytes.
        left -= entry.file_size
        if left < 0 or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its file {name} is compressed, or shares its bytes with another")
        return archive.read(name)

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        described = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(described) != 1:
            raise ValueError(f"{len(described)} files data.pkl in the archive")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers have their bytes in another order")
        module = _Reader(read(described[0]), lambda key: read(f"{folder}data/{key}")).load()
    found: dict[str, Tensor] = {}
    for count, (name, tensor) in enumerate(_tensors(module, "")):
        if count > _MAX_ATTRIBUTES:
            raise ValueError("its modules hold each other too often")
        found[name] = tensor
    if not found:
        raise UserError(f"{path} holds no weights")
    return found


class _Module:
    """Placeholder for objects of all classes that the archive's code defines."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Reader(pickle.Unpickler):
    """Creates only modules without behaviour, tensors and plain types."""

    def __init__(self, content: bytes, read_values: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self._read_values = read_values
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _: value
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, key: Any) -> Tensor:
        """The values ("storage", type, number, device, length), as one vector."""
        _, dtype, number, _, length = key
        if number not in self._storages:
            content = bytearray(self._read_values(number))
            empty = torch.empty(0, dtype=dtype)
            self._storages[number] = torch.frombuffer(content, dtype=dtype) if content else empty
        if len(self._storages[number]) != length:
            raise ValueError(f"data/{number} has not the {length} values that it should have")
        return self._storages[number]


def _tensor(values: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # torch checks that this stays within the values.
    return values.as_strided(tuple(size), tuple(stride), offset)


def _tensors(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield prefix, node
    elif isinstance(node, _Module) and isinstance(node.attributes, Mapping):
        for name, value in node.attributes.items():
            yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))
