"""Checks of the ranges and choices of config values, used by the model's parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from detectron2.config import CfgNode

from .errors import UserError


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as "MODEL.TDOS.SCORE"; UserError if it is missing."""
    value: Any = cfg
    for name in key.split("."):
        if name not in value:
            raise UserError(f"{key} is missing from the config")
        value = value[name]
    return value


def check_positive(cfg: CfgNode, section: str, *names: str) -> None:
    """Raise UserError unless these numbers, also those in lists, are greater than 0.

    Args:
        cfg: the complete config.
        section: name of a section such as "MODEL.NECK".
        names: names of keys in it.
    """
    _check(cfg, section, names, "greater than 0", lambda x: min(numbers_in(x), default=1) > 0)


def check_not_negative(cfg: CfgNode, section: str, *names: str) -> None:
    """As :func:`check_positive`, but 0 is allowed."""
    _check(cfg, section, names, "0 or greater", lambda x: min(numbers_in(x), default=0) >= 0)


def check_share(cfg: CfgNode, section: str, *names: str) -> None:
    """As :func:`check_positive`, but for numbers from 0 to 1."""
    _check(cfg, section, names, "0 to 1", lambda x: 0 <= x <= 1)


def check_interval(cfg: CfgNode, section: str, *names: str) -> None:
    """As :func:`check_positive`, but for two ascending numbers, not negative and not both 0."""
    _check(cfg, section, names, "(smallest, largest)", lambda x: 0 <= x[0] <= x[1] > 0)


def check_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Raise UserError, naming the config key, if ``value`` is none of ``choices``."""
    if value not in choices:
        raise UserError(f"{key}: '{value}' is none of {', '.join(choices)}")


def _check(
    cfg: CfgNode, section: str, names: tuple[str, ...], wanted: str, fits: Callable[[Any], bool]
) -> None:
    for name in names:
        value = get_key(cfg, f"{section}.{name}")
        if not fits(value):
            raise UserError(f"{section}.{name} must be {wanted}, not {value}")


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in a value: a number itself, or those of a list, recursively."""
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from numbers_in(element)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
