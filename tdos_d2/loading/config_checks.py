"""Whether the values of a config make sense, and whether the model they describe can be built."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..data.ood_paste import CHOICES as PASTE_SOURCES
from ..errors import UserError
from ..modeling.backbone import NECKS, check_encoder
from ..modeling.build import PROMPT_STARTS
from ..modeling.clip import check_weights_file
from ..modeling.merge import CLASS_MERGE_RULES, MERGE_RULES
from ..modeling.scores import SCORES, check_score
from ..modeling.semantic_augmentation import REGIONS
from .checkpoint import check_address
from .config_files import local_weights, resolve_from_checkpoint, use_cpu_without_gpu

_POSITIVE = (
    "SOLVER.MAX_ITER",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.WINDOW.BATCH",
    "INPUT.RARE_CLASS.TEMPERATURE",
    "MODEL.TDOS.NUM_POINTS",
    "MODEL.REG.TEMPERATURE",
)
_NOT_NEGATIVE = (
    "SOLVER.WARMUP_ITERS",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "DATALOADER.NUM_WORKERS",
    "TEST.EVAL_PERIOD",
    "TEST.NUM_PICTURES",
    "TEST.WINDOW.SIZE",
    "INPUT.RARE_CLASS.MIN_PIXELS",
    "INPUT.RARE_CLASS.MIN_CROP_PIXELS",
    "MODEL.TDOS.CONTEXT_LENGTH",
    "MODEL.TDOS.NUM_NEGATIVE",
    "MODEL.TDOS.SCORE_MAP_WEIGHT",
    "MODEL.REG.LANGUAGE_WEIGHT",
    "MODEL.REG.VISION_MSE_WEIGHT",
    "MODEL.REG.VISION_COSINE_WEIGHT",
    "MODEL.SEM_AUG.NOISE",
)
_CHOICES = {
    "TEST.MISSING": ("error", "skip"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.OOD_PASTE.SOURCE": PASTE_SOURCES,
    "MODEL.NECK.NAME": ("", *NECKS),
    "MODEL.TDOS.MERGE": MERGE_RULES,
    "MODEL.TDOS.CLASS_MERGE": CLASS_MERGE_RULES,
    "MODEL.TDOS.SCORE": SCORES,
    "MODEL.SEM_AUG.REGION": REGIONS,
    "MODEL.PROMPTS.INIT": PROMPT_STARTS,
}


def check_model(cfg: CfgNode) -> list[str]:
    """Check what running the TDOS of ``MODEL.WEIGHTS`` needs, without data sets.

    Fills in ``cfg`` in place, as an evaluation does, what the checkpoint says of its model.

    Returns:
        Lines for the log: what was filled in.

    Raises:
        UserError: the first thing that is wrong, naming the key or file.
    """
    if cfg.MODEL.META_ARCHITECTURE != "TDOS":
        raise UserError(f"MODEL.META_ARCHITECTURE: TDOS, not {cfg.MODEL.META_ARCHITECTURE}")
    check_values(cfg)
    notes = use_cpu_without_gpu(cfg)
    check_names(cfg)
    check_weights(cfg)
    notes += resolve_from_checkpoint(cfg, resume=False, eval_only=True)
    check_pretrained(cfg)
    return notes


def check_values(cfg: CfgNode) -> None:
    """Raise UserError if a value cannot be, whatever files and machine there are."""
    _check_numbers(cfg, _POSITIVE, lambda value: value > 0, "greater than 0")
    _check_numbers(cfg, _NOT_NEGATIVE, lambda value: value >= 0, "0 or greater")
    for key, choices in _CHOICES.items():
        check_choice(cfg, key, choices)
    for name in cfg.MODEL.TDOS.EXTRA_SCORES:
        check_score(name, "MODEL.TDOS.EXTRA_SCORES")
    if cfg.SEED >= 2**32:
        raise UserError(f"SEED must be below 2**32, not {cfg.SEED}")
    window = cfg.TEST.WINDOW
    if window.SIZE and not 0 < window.STRIDE <= window.SIZE:
        raise UserError(
            f"TEST.WINDOW.STRIDE must be 1 to TEST.WINDOW.SIZE ({window.SIZE}), not {window.STRIDE}"
        )
    if cfg.INPUT.CROP.ENABLED and min(cfg.INPUT.CROP.SIZE) <= 0:
        raise UserError(f"INPUT.CROP.SIZE must be greater than 0, not {cfg.INPUT.CROP.SIZE}")
    for row in cfg.SOLVER.MULTIPLIERS:
        if len(row) != 2 or not isinstance(row[0], str) or not _is_number(row[1]) or row[1] < 0:
            raise UserError(f"SOLVER.MULTIPLIERS: {row} is not [module, factor of 0 or more]")
    sizes = (cfg.TEST.AUG.MAX_SIZE, *cfg.TEST.AUG.MIN_SIZES)
    if cfg.TEST.AUG.ENABLED and not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError("TEST.AUG.MIN_SIZES and MAX_SIZE must be pixels, 1 or more")
    for row in cfg.TEST.EXPECTED_RESULTS:
        if len(row) != 4 or not _is_number(row[2]) or not _is_number(row[3]):
            raise UserError(f"TEST.EXPECTED_RESULTS: {row} is not [task, metric, value, tolerance]")


def check_choice(cfg: CfgNode, key: str, choices: Sequence[str]) -> None:
    """Raise UserError if a value is none of those there are."""
    if get_key(cfg, key) not in choices:
        known = ", ".join(choices)
        raise UserError(f"{key}: '{get_key(cfg, key)}' is not known; there are {known}")


def _check_numbers(
    cfg: CfgNode, keys: tuple[str, ...], valid: Callable[[float], bool], what: str
) -> None:
    for key in keys:
        if not valid(get_key(cfg, key)):
            raise UserError(f"{key} must be {what}, not {get_key(cfg, key)}")


def check_names(cfg: CfgNode) -> None:
    """Raise UserError if a part of the model is not registered."""
    for key, registry in (
        ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ):
        if get_key(cfg, key) not in registry:
            raise UserError(f"{key}: '{get_key(cfg, key)}' is not registered")


def check_weights(cfg: CfgNode) -> None:
    """Raise UserError if there is no checkpoint where ``MODEL.WEIGHTS`` says."""
    path = local_weights(cfg)
    check_address(cfg.MODEL.WEIGHTS)
    if path is not None and not path.is_file():
        raise UserError(f"MODEL.WEIGHTS: {path} does not exist")


def check_pretrained(cfg: CfgNode) -> None:
    """Raise UserError if files that the model starts from are missing or do not fit it."""
    weights, embeddings = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.TEXT.EMBEDDINGS
    if embeddings and not os.path.isfile(embeddings):
        raise UserError(f"MODEL.TEXT.EMBEDDINGS: {embeddings} does not exist")
    if cfg.MODEL.META_ARCHITECTURE == "TDOS":
        check_encoder(cfg)
        check_weights_file(weights)


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as "MODEL.TDOS.SCORE"."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
