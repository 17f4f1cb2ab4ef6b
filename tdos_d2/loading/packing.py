"""Packed checkpoints for inference, without weights that are available elsewhere.

A packed checkpoint is a safetensors file in half precision. It has no frozen image encoder: the
config gives the source of those weights, and the checkpoint their SHA-256. It has no text encoder
either, but the text embeddings of the trained prompts. It cannot be trained further.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_write

_ENCODER, _TEXT = "backbone.", "text."
_EMBEDDINGS = "text.embeddings"
# Of a packed checkpoint that is to be trained.
PACKED = "is packed for prediction, without text encoder: train from the .pth that it was made of"


def pack(model: nn.Module, file: Path, run_info: Mapping[str, Any]) -> None:
    """Write the model's packed checkpoint.

    Args:
        model: TDOS or NormalityMemory, with its weights, on the CPU.
        file: its name ends in .safetensors.
        run_info: plain values to store beside the model's own ``checkpoint_info``.

    Raises:
        UserError: a weight is too large for half precision.
    """
    state = dict(model.state_dict())
    info = {**getattr(model, "checkpoint_info", dict)(), **run_info}
    if getattr(model.backbone, "frozen", False):
        info["encoder"] = encoder_identity(model.backbone)
        state = {key: value for key, value in state.items() if not key.startswith(_ENCODER)}
    if hasattr(model, "text"):
        state = {key: value for key, value in state.items() if not key.startswith(_TEXT)}
        with torch.no_grad():
            state[_EMBEDDINGS] = model.text().clone()
    state = {key: _half(key, value) for key, value in state.items()}
    with atomic_write(file) as stream:
        stream.write(save(state, {"tdos": json.dumps(info, allow_nan=False)}))


def read_packed_info(file: str | Path) -> dict[str, Any]:
    """The information that ``pack`` stored with the weights; empty for other safetensors files."""
    with safe_open(file, "pt") as content:
        text = (content.metadata() or {}).get("tdos", "{}")
    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: what it says of itself is no JSON") from error
    return info if isinstance(info, dict) else {}


def is_packed(file: str | Path) -> bool:
    """Whether a file is a packed checkpoint with text embeddings in place of a text encoder."""
    if Path(file).suffix != ".safetensors" or not Path(file).is_file():
        return False
    with safe_open(file, "pt") as content:
        return _EMBEDDINGS in content.keys()  # noqa: SIM118 (safe_open is no mapping)


def unpack(checkpoint: Mapping[str, Any], model: nn.Module, path: str) -> None:
    """Prepare ``model`` for a packed checkpoint, and add the weights that packing left out.

    Args:
        checkpoint: with the entries "model", tensors by name, and "tdos".
        model: the model that will load it.
        path: path of the checkpoint, for messages.

    Raises:
        UserError: the encoder is not the one that the checkpoint was trained on.
    """
    state = checkpoint["model"]
    expected = checkpoint.get("tdos", {}).get("encoder")
    if expected:
        if encoder_identity(model.backbone) != expected:
            raise UserError(
                f"{path} holds no image encoder, and that of the config is not the one that it was "
                "trained on: MODEL.BACKBONE, MODEL.TIMM and MODEL.CLIP must be as they were then"
            )
        own = model.backbone.state_dict(prefix=_ENCODER)
        state |= {key: torch.as_tensor(value) for key, value in own.items()}
    if hasattr(model, "match_checkpoint"):
        model.match_checkpoint(state)


def encoder_identity(encoder: nn.Module) -> str:
    """SHA-256 of names and values of all weights and statistics."""
    digest = hashlib.sha256()
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _half(key: str, value: Tensor) -> Tensor:
    # Biases, norms and statistics are small, and their rounding errors affect all outputs.
    if not value.is_floating_point() or value.ndim < 2 or key == "scores.normal":
        return value.contiguous()
    half = value.half()
    if not half.isfinite().all():
        raise UserError(f"{key} holds values that half precision cannot")
    return half.contiguous()
