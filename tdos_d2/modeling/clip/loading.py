"""Building and loading CLIP models with open_clip."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...files import once_per_file
from ...value_checks import check_choice
from ..torchscript import is_torchscript, read_torchscript
from ..weight_files import find_state, needs_weights, read_file, unreadable

logger = logging.getLogger(__name__)

QUICK_GELU_SUFFIX = "-quickgelu"
ACTIVATIONS = ("auto", "gelu", "quick_gelu")

_VOCABULARY = 49408  # tokens of CLIP's tokenizer
# Entries of OpenAI's archives beside weights; plain open_clip state dicts have none of them.
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


def build_clip(name: str, weights: str, activation: str = "auto") -> tuple[nn.Module, str]:
    """Build an open_clip ``CLIP`` model in float32; logs the activation and the reason for it.

    Args:
        name: an open_clip model name such as ``"ViT-B-16"``, or ``"tiny"`` (ViT) or ``"tiny-rn"``
            (ResNet); the suffix ``-quickgelu`` selects OpenAI's activation.
        weights: a file (OpenAI TorchScript archive, state dict, safetensors, open_clip checkpoint),
            an open_clip tag such as ``"openai"``, or ``""`` for random weights.
        activation: one of ``ACTIVATIONS``; "auto" = QuickGELU if the name or the weights need it.

    Returns:
        The model and its name, with ``-quickgelu`` if it has that activation. A model built from
        this name without weights has the same architecture.

    Raises:
        UserError: unknown name or activation, missing or unreadable file, weights of another
            architecture.
    """
    check_choice("MODEL.CLIP.ACTIVATION", activation, ACTIVATIONS)
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
            # OpenAI's models have both types, but so does any model that was trained in fp16.
            if {torch.float16, torch.float32} <= {value.dtype for value in state.values()}:
                level = logging.WARNING
                why += ', but it is in mixed precision: set MODEL.CLIP.ACTIVATION to "quick_gelu" '
                why += f"or MODEL.CLIP.NAME to {base}{QUICK_GELU_SUFFIX} if OpenAI trained it"
        logger.log(level, "CLIP %s has %s: %s", base, kind, why)
    return model.float(), base + QUICK_GELU_SUFFIX if quick_gelu else base


def image_encoder_kind(name: str) -> str:
    """The kind of image encoder of the CLIP model ``name``: "ViT" or "ResNet".

    Raises:
        UserError: the name is unknown, or the image encoder is of another kind.
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
    """Whether ``MODEL.CLIP.WEIGHTS`` names a missing file."""
    return is_weights_file(weights) and not Path(weights).expanduser().is_file()


def check_weights_file(weights: str) -> None:
    """Raise UserError if ``MODEL.CLIP.WEIGHTS`` names a missing file."""
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
    """Release the weights that are cached between building a model's image and text encoder."""
    _read_file.cache_clear()


@lru_cache(maxsize=1)
def _open_clip() -> ModuleType:
    """Import open_clip, which takes seconds, and add the small models of ``model_configs/``."""
    import open_clip

    open_clip.add_model_config(Path(__file__).with_name("model_configs"))
    return open_clip


def _model_config(base: str) -> dict[str, Any]:
    config = _open_clip().get_model_config(base)
    if config is None:
        raise UserError(
            f"MODEL.CLIP.NAME: open_clip has no model '{base}' (see open_clip.list_models())"
        )
    return config


def _build_architecture(base: str, quick_gelu: bool) -> nn.Module:
    config = _model_config(base)
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    # The towers read the embedding at the end token of CLIP's own vocabulary, under a causal mask,
    # and the image embedding at the class token.
    others = ("hf_model_name", "hf_tokenizer_name", "no_causal_mask", "embed_cls")
    own = text.get("vocab_size", _VOCABULARY) == _VOCABULARY
    own = own and text.get("pool_type", "argmax") == "argmax"
    if "custom_text" in config or any(map(text.get, others)) or not own:
        raise UserError(f"MODEL.CLIP.NAME: '{base}' has another text encoder than CLIP's")
    others = ("final_ln_after_pool", "attentional_pool", "no_ln_pre")
    if any(map(vision.get, others)) or vision.get("pool_type", "tok") != "tok":
        raise UserError(f"MODEL.CLIP.NAME: '{base}' has another image encoder than CLIP's")
    config["quick_gelu"] = quick_gelu
    return _open_clip().CLIP(**config)


def _find_weights(name: str, weights: str) -> tuple[dict[str, Tensor] | None, bool]:
    """The state dict (None for random weights) and whether it needs QuickGELU."""
    if not weights:
        return None, False
    base, of_tag = name.removesuffix(QUICK_GELU_SUFFIX), {}
    if is_weights_file(weights):
        check_weights_file(weights)
    else:
        of_tag = _tag_config(base, weights)
    if not needs_weights():
        return None, False
    path = Path(_download(base, weights, of_tag) if of_tag else weights).expanduser()
    state, quick_gelu = _read_file(path)
    # open_clip's table has the activation of a tag whose file is a plain state dict.
    return state, quick_gelu or bool(of_tag.get("quick_gelu"))


def _tag_config(base: str, tag: str) -> dict[str, Any]:
    tags = _open_clip().list_pretrained_tags_by_model(base)
    if tag not in tags:
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: '{tag}' is neither a file nor an open_clip tag of {base}"
            f" (tags: {', '.join(tags) or 'none'})"
        )
    return _open_clip().get_pretrained_cfg(base, tag)


def _download(base: str, tag: str, config: dict[str, Any]) -> str:
    logger.info("CLIP %s: fetching '%s' unless it is kept here", base, tag)
    try:
        logging.disable(logging.WARNING)  # the hub client logs every attempt
        return _open_clip().download_pretrained(config)
    except Exception as error:  # the hub client raises many types, with the same remedy
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: cannot download '{tag}' for {base} ({type(error).__name__}); "
            "download it elsewhere and give the file"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


@once_per_file(1)
def _read_file(path: str) -> tuple[dict[str, Tensor], bool]:
    """Read a weight file; its content determines the format."""
    try:
        if is_torchscript(path):
            state = read_torchscript(path)
        else:
            state = find_state(read_file(path), path)
    except Exception as error:  # a damaged archive may raise almost any type
        raise UserError(f"MODEL.CLIP.WEIGHTS: {unreadable(path, error)}") from error
    quick_gelu = any(key in state for key in _OPENAI_KEYS)
    return {k: v for k, v in state.items() if k not in _OPENAI_KEYS}, quick_gelu


def _load(model: nn.Module, state: dict[str, Tensor], name: str, weights: str) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    wrong = missing + [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        what = "lacks" if missing else "has another shape for"
        raise UserError(
            f"MODEL.CLIP.WEIGHTS: '{weights}' does not fit MODEL.CLIP.NAME '{name}': it {what} "
            f"'{wrong[0]}' and {len(wrong) - 1} more"
        )
    # OpenAI stores fp16; copy_ into float32 parameters converts.
    model.load_state_dict({key: state[key] for key in own})
    logger.info("CLIP %s: %d tensors from %s", name, len(own), weights)
