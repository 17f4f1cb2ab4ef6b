"""Whether the model of a config can be run: its values, its files, how its parts fit together."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..errors import UserError
from .checkpoint import check_address
from .config_files import (
    local_weights,
    resolve_from_checkpoint,
    use_cpu_without_gpu,
    use_pixel_statistics,
)
from .config_values import check_values
from .dry_build import check_build

_MODELS = ("TDOS", "NormalityMemory")


def check_model(cfg: CfgNode) -> list[str]:
    """Check what running a model of this project with ``MODEL.WEIGHTS`` needs, without datasets.

    Fills in ``cfg`` in place, as an evaluation does, what the checkpoint says of its model.

    Returns:
        Lines for the log: what was filled in.

    Raises:
        UserError: the first thing that is wrong, naming the key or file.
    """
    if cfg.MODEL.META_ARCHITECTURE not in _MODELS:
        raise UserError(
            f"MODEL.META_ARCHITECTURE: {' or '.join(_MODELS)}, not {cfg.MODEL.META_ARCHITECTURE}"
        )
    return check_runnable(cfg)


def check_runnable(cfg: CfgNode) -> list[str]:
    """As :func:`check_model`, for any meta-architecture."""
    check_values(cfg)
    notes = [*use_cpu_without_gpu(cfg), *use_pixel_statistics(cfg)]
    check_weights(cfg)
    notes += resolve_from_checkpoint(cfg, resume=False, eval_only=True)
    check_build(cfg)
    return notes


def check_weights(cfg: CfgNode) -> None:
    """Raise UserError if there is no checkpoint where ``MODEL.WEIGHTS`` says."""
    path = local_weights(cfg)
    check_address(cfg.MODEL.WEIGHTS)
    if path is not None and not path.is_file():
        raise UserError(f"MODEL.WEIGHTS: {path} does not exist")
