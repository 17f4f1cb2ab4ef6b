"""Checks that the values of a config have the type and length of their defaults.

Narrower ranges, names (of rules, norms, schedules) and combinations of values are checked by the
parts that use them; :mod:`tdos_d2.loading.dry_build` builds all of these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config import add_tdos_config, set_key
from ..errors import UserError
from ..value_checks import get_key, numbers_in

# Examples of values for keys whose default is None or an empty list.
_EXAMPLES = {
    "DATASETS.TRAIN": [""],
    "DATASETS.TEST": [""],
    "DATASETS.TRAIN_WEIGHTS": [1.0],
    "INPUT.OOD_PASTE.MIX": [["", 1.0]],
    "INPUT.OOD_PASTE.COCO_CATEGORIES": [""],
    "INPUT.OOD_PASTE.STAND_ON": [""],
    "INPUT.TEST_SIZES": [["", 1, 1]],
    "MODEL.IMPORTS": [""],
    "MODEL.MEMORY.LEVELS": [""],
    "MODEL.TDOS.CLASS_NAMES": [""],
    "MODEL.TDOS.EXTRA_SCORES": [""],
    "MODEL.TIMM.LEVELS": [1],
    "SOLVER.WEIGHT_DECAY_BIAS": 1.0,
    "TEST.EXPECTED_RESULTS": [["", "", 1.0, 1.0]],
}
_PATHS = (
    "OUTPUT_DIR", "DATASETS.REGISTER", "INPUT.OOD_PASTE.COCO_LIST", "MODEL.CLIP.WEIGHTS",
    "MODEL.PROMPTS.GROUPS", "MODEL.TEXT.EMBEDDINGS", "MODEL.TIMM.WEIGHTS", "MODEL.WEIGHTS",
    "SOLVER.RESUME_FROM", "TEST.SHOW_DIR",
)  # fmt: skip
# All numbers, also in lists, must be finite; only these keys may be negative.
_ANY_NUMBER = ("SEED", "MODEL.PIXEL_MEAN", "MODEL.SEM_AUG.BLOCKS", "TEST.EXPECTED_RESULTS")
# Keys that Detectron2 does not check, or for which this project supports fewer values.
_CHOICES = {
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
}
# Detectron2's keys that nothing here reads, with what takes their place.
_WITHOUT_EFFECT = {
    "INPUT.MIN_SIZE_TRAIN": "INPUT.SCALE_RANGE",
    "INPUT.MAX_SIZE_TRAIN": "INPUT.SCALE_RANGE",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "INPUT.SCALE_RANGE",
    "DATALOADER.ASPECT_RATIO_GROUPING": "INPUT.CROP",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "INPUT.RARE_CLASS",
    "DATALOADER.REPEAT_THRESHOLD": "INPUT.RARE_CLASS",
    "INPUT.MASK_FORMAT": "DATASETS.REGISTER",
    "MODEL.KEYPOINT_ON": "MODEL.META_ARCHITECTURE",
    "MODEL.LOAD_PROPOSALS": "MODEL.META_ARCHITECTURE",
    "MODEL.MASK_ON": "MODEL.META_ARCHITECTURE",
    "TEST.DETECTIONS_PER_IMAGE": "MODEL.META_ARCHITECTURE",
    "VIS_PERIOD": "TEST.NUM_PICTURES",
    "SOLVER.MOMENTUM": "SOLVER.OPTIMIZER, which is AdamW",
    "SOLVER.NESTEROV": "SOLVER.OPTIMIZER, which is AdamW",
}
# Detectron2's keys that its other schedules read.
_OF_OTHER_SCHEDULES = (
    "SOLVER.BASE_LR_END", "SOLVER.GAMMA", "SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL",
    "SOLVER.STEPS",
)  # fmt: skip
# The key by which an image encoder of this project is frozen or fine-tuned; the others' keys, and
# Detectron2's, do nothing with it.
_FREEZES = {
    "CLIPVisionTransformer": "MODEL.CLIP.FREEZE_IMAGE",
    "CLIPModifiedResNet": "MODEL.CLIP.FREEZE_IMAGE",
    "TimmBackbone": "MODEL.TIMM.FREEZE",
}
_FREEZING = {"MODEL.BACKBONE.FREEZE_AT", *_FREEZES.values()}


def check_values(cfg: CfgNode) -> None:
    """Compare each value with its default; sections of other Detectron2 models are not checked.

    In place, ``~`` in paths is expanded and integers become floats if the default is a float.

    Raises:
        UserError: a value has another type or length, a number is infinite, NaN or invalidly
            negative, or a value is not the default of a key that has no effect; the message names
            its key.
    """
    for key, default in _defaults().items():
        value = get_key(cfg, key)
        if isinstance(default, CfgNode):
            if not isinstance(value, CfgNode):
                raise UserError(f"{key} is a section: it must hold keys, not {value!r}")
            continue
        if value is None and default is None:
            continue
        example = _EXAMPLES.get(key, default)
        if not fits(value, example):
            raise UserError(f"{key} must be {_describe(example)}, not {value!r}")
        _check_numbers(key, value)
        if not all(map(str.isprintable, texts_in(value))):
            raise UserError(f"{key} has a character that cannot be printed: {value!r}")
        if value not in _CHOICES.get(key, (value,)):
            known = ", ".join(filter(None, _CHOICES[key]))
            raise UserError(f"{key}: '{value}' is not known; there are {known}")
        if plain(value) != plain(default):
            _check_effect(cfg, key)
        if isinstance(example, float) and isinstance(value, int):
            set_key(cfg, key, float(value))
        if key in _PATHS and value.startswith("~"):
            set_key(cfg, key, os.path.expanduser(value))


def _check_effect(cfg: CfgNode, key: str) -> None:
    if key in _WITHOUT_EFFECT:
        raise UserError(f"{key} has no effect here: see {_WITHOUT_EFFECT[key]}")
    schedule = cfg.SOLVER.LR_SCHEDULER_NAME
    if key in _OF_OTHER_SCHEDULES and schedule == "WarmupPolyLR":
        raise UserError(f"{key} has no effect with SOLVER.LR_SCHEDULER_NAME {schedule}")
    backbone = cfg.MODEL.BACKBONE.NAME
    if key in _FREEZING and key != _FREEZES.get(backbone, key):
        raise UserError(
            f"{key} has no effect with MODEL.BACKBONE.NAME {backbone}: see {_FREEZES[backbone]}"
        )


def plain(value: Any) -> Any:
    """A value to compare or store: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def leaves(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(full name, value) of all keys of a config that are not sections."""
    return ((key, value) for key, value in _keys(node) if not isinstance(value, Mapping))


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")


def default_config() -> CfgNode:
    """Detectron2's defaults with those of tdos_d2."""
    cfg = get_cfg()
    add_tdos_config(cfg)
    return cfg


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """Keys that this project reads, each section before its keys."""
    theirs = {name for name, value in get_cfg().MODEL.items() if isinstance(value, CfgNode)}
    skipped = tuple(f"MODEL.{name}." for name in theirs - {"BACKBONE"})
    keys = _keys(default_config())
    return {key: value for key, value in keys if not f"{key}.".startswith(skipped)}


def fits(value: Any, example: Any) -> bool:
    """Whether ``value`` has the type of ``example``; lists are compared element by element."""
    if isinstance(example, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return False
        if _has_fixed_length(example):
            pairs = zip(value, example, strict=False)
            return len(value) == len(example) and all(fits(v, e) for v, e in pairs)
        return not example or all(fits(v, example[0]) for v in value)
    if isinstance(example, bool) or isinstance(value, bool):
        return type(value) is type(example)
    return isinstance(value, (int, float) if isinstance(example, float) else type(example))


def texts_in(value: Any) -> Iterator[str]:
    """The strings in a value: a string itself, or those of a list, recursively."""
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from texts_in(element)
    elif isinstance(value, str):
        yield value


def _has_fixed_length(example: list | tuple) -> bool:
    return 2 <= len(example) <= 4  # longer examples, or those of one element, allow any length


def _describe(example: Any) -> str:
    if isinstance(example, (list, tuple)):
        if not example:
            return "a list"
        if _has_fixed_length(example):
            return f"a list of {len(example)}: {', '.join(map(_describe, example))}"
        return f"a list, each element {_describe(example[0])}"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return names[type(example)]


def _check_numbers(key: str, value: Any) -> None:
    numbers = list(numbers_in(value))
    limitless = key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE"  # infinity is a norm
    if not all(math.isfinite(number) or (limitless and number > 0) for number in numbers):
        raise UserError(f"{key} must be finite, not {value}")
    if key not in _ANY_NUMBER and min(numbers, default=0) < 0:
        raise UserError(f"{key} must be 0 or greater, not {value}")
    if key == "SEED" and value >= 2**32:
        raise UserError(f"SEED must be below 2**32, not {value}")
