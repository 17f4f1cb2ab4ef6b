"""A trial build of a config's model, without memory, weights or data, to find invalid values."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..config import set_key
from ..data import TDOSDatasetMapper
from ..errors import UserError
from .config_values import default_config, leaves

BuildFromModel = Callable[[CfgNode, nn.Module], None]
# torch's errors if code reads the values of a meta tensor, or mixes it with other devices.
_NEEDS_VALUES = re.compile(
    r"\b[Mm]eta (tensors?|device|kernel)\b|\bdevice meta\b|register_meta|'Meta' backend"
)
_UNREGISTERED = re.compile(r"No object named '(.*)' found in '.*' registry")


def check_build(cfg: CfgNode, build_from_model: BuildFromModel | None = None) -> None:
    """Build the model, and what ``build_from_model`` builds from it, on the meta device.

    Tensors there have shapes but no values: a large model takes less than a second. Neither CLIP's
    weights nor word lists are read. Parts need not know their keys: if one raises another error
    than a UserError, the message names the keys whose default values would prevent the error.

    Args:
        cfg: with class names; it is not changed.
        build_from_model: builds what else the config describes, from it and the model.

    Raises:
        UserError: something cannot be built; the message names the key.
    """
    error = _build(cfg, build_from_model)
    if error is None:
        return
    if isinstance(error, UserError):
        raise error
    unregistered = _UNREGISTERED.search(str(error))
    if unregistered:
        name = unregistered[1]
        keys = [key for key, value in leaves(cfg) if value == name]
        raise UserError(f"{' or '.join(keys)}: '{name}' is not registered") from error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    keys = _guilty(cfg, build_from_model, reason)
    if not keys:
        raise UserError(f"the model of this config cannot be built: {reason}") from error
    raise UserError(f"{' or '.join(keys)}: this cannot be built ({reason})") from error


def _build(cfg: CfgNode, build_from_model: BuildFromModel | None) -> Exception | None:
    """The exception that the build raises; None if it succeeds."""
    cfg = cfg.clone()
    set_key(cfg, "MODEL.DEVICE", "meta")
    set_key(cfg, "MODEL.PROMPTS.GROUPS", "")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the run logs the same again
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build_model(cfg)
            if build_from_model is not None:
                build_from_model(cfg, model)
        TDOSDatasetMapper(cfg, is_train=False)
    except Exception as error:
        # A custom part that reads tensor values while it is built can only be checked by the run.
        known_wrong = isinstance(error, UserError) or not _NEEDS_VALUES.search(str(error))
        return error if known_wrong else None
    finally:
        logging.disable(disabled)
    return None


def _guilty(
    cfg: CfgNode, build_from_model: BuildFromModel | None, reason: str
) -> list[str]:
    """Keys such that resetting any single one to its default lets the build succeed."""
    defaults = dict(leaves(default_config()))
    changed = {k: v for k, v in leaves(cfg) if k in defaults and v != defaults[k]}
    words = re.findall(r"[^\s'\"()\[\],:]+", reason)

    def is_guilty(key: str) -> bool:
        other = cfg.clone()
        set_key(other, key, defaults[key])
        return _build(other, build_from_model) is None

    # Keys whose value is in the error message come first; mostly no others need to be tried.
    told = [key for key, value in changed.items() if str(value) in words]
    others = [key for key in changed if key not in told]
    return list(filter(is_guilty, told)) or list(filter(is_guilty, others))
