"""Building and loading CLIP models with open_clip."""

from __future__ import annotations

import copy
import logging
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ..weight_files import find_state, read_file, unreadable

logger = logging.getLogger(__name__)

QUICK_GELU_SUFFIX = "-quickgelu"
ACTIVATIONS = ("auto", "gelu", "quick_gelu")

# CLIPs that train on a CPU in minutes. Their text transformer is CLIP's, only narrower; the
# tokenizer is the real one.
_TINY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 96,
            "layers": 4,
            "width": 96,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": _TINY_TEXT,
    },
    "tiny-rn": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 96, "layers": [1, 2, 2, 1], "width": 24, "head_width": 64},
        "text_cfg": _TINY_TEXT,
    },
}

# What OpenAI's archives hold beside weights; plain open_clip state dicts have none of them.
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


def build_clip(name: str, weights: str, activation: str = "auto") -> tuple[nn.Module, str]:
    """Build an open_clip ``CLIP`` model in float32. The log says which activation it got, and why.

    Args:
        name: an open_clip model name such as ``"ViT-B-16"``, or ``"tiny"`` (ViT) or ``"tiny-rn"``
            (ResNet); the suffix ``-quickgelu`` asks for OpenAI's activation.
        weights: a file (OpenAI TorchScript archive, state dict, safetensors, open_clip checkpoint),
            an open_clip tag such as ``"openai"``, or ``""`` for random weights.
        activation: of ``ACTIVATIONS``; "auto" = QuickGELU if the name or the weights ask for it.

    Returns:
        The model and its name, with ``-quickgelu`` where it has that activation: built from this
        name without weights, a model has the same architecture.

    Raises:
        UserError: unknown name or activation, missing or unreadable file, weights of another
            architecture.
    """
    if activation not in ACTIVATIONS:
        raise UserError(
            f"MODEL.CLIP.ACTIVATION: '{activation}' is not one of {', '.join(ACTIVATIONS)}"
        )
    state, asked = _find_weights(name, weights)
    base = name.removesuffix(QUICK_GELU_SUFFIX)
    quick_gelu = activation == "quick_gelu" or (activation == "auto" and (asked or name != base))
    model = _build_architecture(base, quick_gelu)
    if state is not None:
        _load(model, state, name, weights)
        kind, level = "QuickGELU" if quick_gelu else "GELU", logging.INFO
        why = "MODEL.CLIP.ACTIVATION says so"
        if activation == "auto" and quick_gelu:
            why = f"{weights if asked else name} asks for it"
        elif activation == "auto":
            why = f"nothing in {weights} asks for QuickGELU"
            # OpenAI's own models look like that, but so does any that was trained in fp16.
            if {torch.float16, torch.float32} <= {value.dtype for value in state.values()}:
                level = logging.WARNING
                why += ', but it is in mixed precision: set MODEL.CLIP.ACTIVATION to "quick_gelu" '
                why += f"or MODEL.CLIP.NAME to {base}{QUICK_GELU_SUFFIX} if OpenAI trained it"
        logger.log(level, "CLIP %s has %s: %s", base, kind, why)
    return model.float(), base + QUICK_GELU_SUFFIX if quick_gelu else base


def image_encoder_kind(name: str) -> str:
    """The kind of image encoder that the CLIP model ``name`` has: "ViT" or "ResNet".

    Raises:
        UserError: an unknown name, or an image encoder of another kind.
    """
    vision = _model_config(name.removesuffix(QUICK_GELU_SUFFIX))["vision_cfg"]
    if vision.get("timm_model_name"):
        raise UserError(
            f"MODEL.CLIP.NAME: the image encoder of '{name}' is neither CLIP's ViT nor its ResNet"
        )
    return "ResNet" if isinstance(vision["layers"], (list, tuple)) else "ViT"


def is_weights_file(weights: str) -> bool:
    """Whether ``MODEL.CLIP.WEIGHTS`` names a file rather than an open_clip tag."""
    path = Path(weights)
    return path.is_file() or bool(path.suffix) or "/" in weights or "\\" in weights


def missing_weights_file(weights: str) -> bool:
    """Whether ``MODEL.CLIP.WEIGHTS`` names a file that is not there."""
    return is_weights_file(weights) and not Path(weights).expanduser().is_file()


def check_weights_file(weights: str) -> None:
    """Raise UserError if ``MODEL.CLIP.WEIGHTS`` names a file that is not there."""
    if "://" in weights or weights.startswith("hf-hub:"):
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: {weights} is an address: download it and name the file, or name "
            "an open_clip tag"
        )
    if missing_weights_file(weights):
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: {weights} does not exist; put OpenAI's CLIP checkpoint there, "
            'set the key to "openai" to let open_clip fetch it, or to "" for random weights'
        )


def release_weights() -> None:
    """Forget the weights kept between building the image and the text tower of one model."""
    _read_file.cache_clear()


def _model_config(base: str) -> dict[str, Any]:
    if base in TINY_CONFIGS:
        return copy.deepcopy(TINY_CONFIGS[base])
    import open_clip

    config = open_clip.get_model_config(base)
    if config is None:
        raise UserError(
            f"MODEL.CLIP.NAME: open_clip has no model '{base}' (see open_clip.list_models())"
        )
    return config


def _build_architecture(base: str, quick_gelu: bool) -> nn.Module:
    import open_clip

    config = _model_config(base)
    if "custom_text" in config or "hf_model_name" in config.get("text_cfg", {}):
        raise UserError(f"MODEL.CLIP.NAME: '{base}' has another text encoder than CLIP's")
    config["quick_gelu"] = quick_gelu
    return open_clip.CLIP(**config)


def _find_weights(name: str, weights: str) -> tuple[dict[str, Tensor] | None, bool]:
    """The state dict (None for random weights) and whether it asks for QuickGELU."""
    if not weights:
        return None, False
    # On the meta device tensors have no values: there is nothing to read.
    on_meta = torch.empty(0).is_meta
    if not is_weights_file(weights):
        _check_tag(name, weights)
        return (None, False) if on_meta else _read_tag(name, weights)
    check_weights_file(weights)
    if on_meta:
        return None, False
    path = Path(weights).expanduser()
    return _read_file(str(path), path.stat().st_mtime_ns)


def _check_tag(name: str, tag: str) -> None:
    import open_clip

    base = name.removesuffix(QUICK_GELU_SUFFIX)
    tags = open_clip.list_pretrained_tags_by_model(base)
    if tag not in tags:
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: '{tag}' is neither a file nor an open_clip tag of {base}"
            f" (tags: {', '.join(tags) or 'none'})"
        )


def _read_tag(name: str, tag: str) -> tuple[dict[str, Tensor], bool]:
    import open_clip

    base = name.removesuffix(QUICK_GELU_SUFFIX)
    pretrained = open_clip.get_pretrained_cfg(base, tag) or {}
    logger.info("CLIP %s: fetching '%s' unless it is kept here", base, tag)
    try:
        logging.disable(logging.WARNING)  # the hub client tells of every try
        path = open_clip.download_pretrained(pretrained)
    except Exception as error:  # whatever the hub client raises, the cure is the same
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: cannot download '{tag}' for {base} ({type(error).__name__}); "
            "download it elsewhere and give the file"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    state, quick_gelu = _read_file(str(path), Path(path).stat().st_mtime_ns)
    # open_clip's table says it of a tag, where the file is a plain state dict that does not.
    return state, quick_gelu or bool(pretrained.get("quick_gelu"))


@lru_cache(maxsize=1)
def _read_file(path: str, mtime_ns: int) -> tuple[dict[str, Tensor], bool]:
    """Read a weight file by its content; ``mtime_ns`` only tells versions apart in the cache."""
    try:
        state = _read_any_format(path)
    except (UserError, RuntimeError) as error:  # torch.jit's is the latter
        raise UserError(f"MODEL.CLIP.WEIGHTS: {unreadable(path, error)}") from error
    quick_gelu = any(key in state for key in _OPENAI_KEYS)
    return {k: v for k, v in state.items() if k not in _OPENAI_KEYS}, quick_gelu


def _read_any_format(path: str) -> dict[str, Tensor]:
    if _is_torchscript(path):
        return torch.jit.load(path, map_location="cpu").state_dict()
    return find_state(read_file(path), path)


def _is_torchscript(path: str) -> bool:
    """A TorchScript archive is a zip that holds code; ``torch.save`` writes a zip without."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load(model: nn.Module, state: dict[str, Tensor], name: str, weights: str) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    other_shape = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or other_shape:
        key = (missing + other_shape)[0]
        what = "lacks" if missing else "has another shape for"
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: '{weights}' does not fit MODEL.CLIP.NAME '{name}': it {what} "
            f"'{key}' and {len(missing) + len(other_shape) - 1} more"
        )
    # OpenAI stores fp16; copy_ into float32 parameters converts.
    model.load_state_dict({key: state[key] for key in own})
    logger.info("CLIP %s: %d tensors from %s", name, len(own), weights)
