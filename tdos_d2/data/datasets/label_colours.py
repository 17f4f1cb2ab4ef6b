"""Parsing of the colours of colour-coded masks in registration files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...errors import UserError

Colour = tuple[int, int, int]
_FORM = '[r, g, b] with numbers in 0..255, or "#rrggbb"'


def parse_colour(value: Any, where: str) -> Colour:
    """An RGB colour from [r, g, b] or "#rrggbb"; ``where`` is for messages.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:], 16)
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3
    if numbers and all(type(x) is int and 0 <= x <= 255 for x in value):
        return value[0], value[1], value[2]
    raise UserError(f"{where}: a colour is {_FORM}, not {value!r}")


def parse_colours(values: Any, where: str) -> list[Colour]:
    """One colour or a list of them.

    Raises:
        UserError: a colour of another form.
    """
    several = isinstance(values, Sequence) and not isinstance(values, str)
    if several and all(isinstance(x, (str, Sequence)) for x in values):
        return [parse_colour(x, where) for x in values]
    return [parse_colour(values, where)]


def colour_table(meanings: Mapping[int, Sequence[Colour]], where: str) -> dict[Colour, int]:
    """Label by colour.

    Args:
        meanings: colours by label.
        where: for messages.

    Raises:
        UserError: a colour with two meanings.
    """
    table: dict[Colour, int] = {}
    for label, colours in meanings.items():
        for colour in colours:
            if colour in table:
                raise UserError(f"{where}: the colour {list(colour)} is declared twice")
            table[colour] = label
    return table


def check_declared_once(where: str, values: Collection[int]) -> None:
    """Raise UserError, beginning with ``where``, if a label value has two meanings."""
    twice = sorted(value for value, times in Counter(values).items() if times > 1)
    if twice:
        raise UserError(f"{where}: the label value {twice[0]} is declared twice")
