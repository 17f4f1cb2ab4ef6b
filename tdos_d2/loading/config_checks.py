"""Checks that the model of a config can be run: its values, its files, and their combination."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode

from ..errors import UserError
from ..value_checks import get_key
from .checkpoint import check_address
from .config_files import (
    local_weights,
    register_datasets,
    resolve_from_checkpoint,
    use_cpu_without_gpu,
    use_pixel_statistics,
)
from .config_values import check_values
from .dry_build import BuildFromModel, check_build

_MODELS = ("TDOS", "NormalityMemory")


def check_model(cfg: CfgNode) -> list[str]:
    """As :func:`check_runnable`, for prediction with a model of this project."""
    if cfg.MODEL.META_ARCHITECTURE not in _MODELS:
        raise UserError(
            f"MODEL.META_ARCHITECTURE: {' or '.join(_MODELS)}, not {cfg.MODEL.META_ARCHITECTURE}"
        )
    return check_runnable(cfg)


def check_runnable(
    cfg: CfgNode,
    *,
    resume: bool = False,
    eval_only: bool = True,
    check_surroundings: Callable[[CfgNode], list[str]] | None = None,
    build_from_model: BuildFromModel | None = None,
) -> list[str]:
    """Check the requirements of a config's model; complete ``cfg`` in place.

    ``MODEL.IMPORTS`` are imported and ``DATASETS.REGISTER`` is registered. Values that depend on
    the machine and the checkpoint are filled in. Each part of the model checks its own values when
    it is built, here on the meta device.

    Args:
        cfg: the complete config, not necessarily from ``load_config``.
        resume, eval_only: see ``resolve_from_checkpoint``.
        check_surroundings: checks other requirements of a run (datasets, processes), after the
            types of all values and before the model; returns lines for the log.
        build_from_model: see ``check_build``.

    Returns:
        Lines for the log: what was filled in.

    Raises:
        UserError: the first problem; the message names the key or file.
    """
    check_values(cfg)
    register_datasets(cfg, needed=check_surroundings is not None)
    _check_channel_order(cfg)
    notes = use_cpu_without_gpu(cfg)
    use_pixel_statistics(cfg)
    notes += warn_of_slow_bfloat16(cfg, eval_only=eval_only)
    if check_surroundings is not None:
        notes += check_surroundings(cfg)
    check_address(cfg.MODEL.WEIGHTS)
    weights = local_weights(cfg)
    if weights is not None and not weights.is_file():
        raise UserError(f"MODEL.WEIGHTS: {weights} does not exist")
    notes += resolve_from_checkpoint(cfg, resume=resume, eval_only=eval_only)
    check_build(cfg, build_from_model)
    return notes


def _check_channel_order(cfg: CfgNode) -> None:
    weights = {
        "TimmBackbone": "MODEL.TIMM.WEIGHTS",
        "CLIPVisionTransformer": "MODEL.CLIP.WEIGHTS",
        "CLIPModifiedResNet": "MODEL.CLIP.WEIGHTS",
    }
    key = weights.get(cfg.MODEL.BACKBONE.NAME)
    if cfg.INPUT.FORMAT == "BGR" and key and get_key(cfg, key):
        raise UserError(f"INPUT.FORMAT: BGR, but the weights of {key} were trained with RGB images")


def warn_of_slow_bfloat16(cfg: CfgNode, *, eval_only: bool) -> list[str]:
    """Lines for the log if bfloat16 is switched on and the processor has no instructions for it."""
    amp = cfg.SOLVER.AMP
    trains = amp.ENABLED and amp.CPU and not eval_only
    used = {"TEST.BFLOAT16": cfg.TEST.BFLOAT16, "SOLVER.AMP.CPU": trains}
    keys = [key for key, on in used.items() if on]
    if cfg.MODEL.DEVICE != "cpu" or not keys or _computes_bfloat16():
        return []
    return [
        f"{' and '.join(keys)}: this processor has no instructions for bfloat16, which takes "
        "several times as long as float32 here"
    ]


def _computes_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
