"""The mined word list: OOD words sorted by their distance to the known classes, in groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_write, once_per_file
from ..untrusted import read_json, read_text

_FOLDER = Path(__file__).resolve().parent
_KEYS = ("known", "words", "distances", "groups", "source", "parameters", "licence")


@dataclass(frozen=True)
class WordGroups:
    """OOD words from the nearest to the farthest, cut into M groups.

    Attributes:
        known: names of the known classes to which distances are measured.
        words: n words, nearest first.
        distances: n distances in ascending order; ``parameters["distance"]`` names their kind.
        bounds: M pairs (start, stop) into ``words``: consecutive, none empty, all words covered.
        source: source of the words.
        parameters: parameters of their selection.
        licence: terms of the source.
    """

    known: tuple[str, ...]
    words: tuple[str, ...]
    distances: tuple[float, ...]
    bounds: tuple[tuple[int, int], ...]
    source: str
    parameters: Mapping[str, Any]
    licence: str

    @property
    def groups(self) -> list[list[str]]:
        """The words of each group, nearest group first."""
        return [list(self.words[start:stop]) for start, stop in self.bounds]

    def cut(self, num_groups: int) -> WordGroups:
        """The same words in ``num_groups`` groups (the same object if this is its number)."""
        if num_groups == len(self.bounds):
            return self
        return replace(self, bounds=cut_evenly(len(self.words), num_groups))

    def save(self, path: str | Path) -> None:
        """Write the JSON that :func:`load_groups` reads, with eight items of a list per line."""
        as_json = partial(json.dumps, ensure_ascii=False, allow_nan=False)
        head = {key: getattr(self, key) for key in ("source", "licence", "parameters", "known")}
        lines = [f' "{key}": {as_json(value)}' for key, value in head.items()]
        lists = {"groups": self.bounds, "words": self.words, "distances": self.distances}
        for key, values in lists.items():
            rows = [as_json(values[i : i + 8])[1:-1] for i in range(0, len(values), 8)]
            lines.append(f' "{key}": [\n  ' + ",\n  ".join(rows) + "\n ]")
        with atomic_write(path) as file:
            file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def cut_evenly(num_words: int, num_groups: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of consecutive groups whose sizes differ by at most one word.

    Raises:
        UserError: fewer words than groups.
    """
    if not 1 <= num_groups <= num_words:
        raise UserError(f"{num_words} OOD words cannot make {num_groups} groups")
    edges = [num_words * i // num_groups for i in range(num_groups + 1)]
    return tuple(pairwise(edges))


def load_groups(name_or_path: str | Path, num_groups: int | None = None) -> WordGroups:
    """Read a word list; needs neither WordNet nor an encoder.

    Args:
        name_or_path: a list that ships with the package ("cityscapes"), a JSON file that
            ``tools/mine_ood_words.py`` wrote, or a ``.txt`` file with a word per line, in which
            neighbouring lines share a group.
        num_groups: M; the list is divided again if the file has another number. None = as in the
            file.

    Raises:
        UserError: there is no such list, it is malformed, or has fewer words than groups.
    """
    shipped = _FOLDER / f"{name_or_path}.json"
    path = shipped if shipped.parent == _FOLDER and shipped.is_file() else Path(name_or_path)
    path = path.expanduser()
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.json")))
        raise UserError(f"OOD words: no file '{name_or_path}', and no list of that name ({names})")
    groups = _read(path)
    return groups if num_groups is None else groups.cut(num_groups)


@once_per_file(8)
def _read(path: str) -> WordGroups:
    try:
        plain = path.lower().endswith(".txt")
        return _from_lines(read_text(path), path) if plain else _from_json(read_json(path))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"OOD words: '{path}' is no word list: {error}") from error


def _from_lines(text: str, source: str) -> WordGroups:
    """One group, without distances."""
    words = tuple(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    if not words:
        raise ValueError("it has no words")
    return WordGroups((), words, (0.0,) * len(words), ((0, len(words)),), source, {}, "")


def _from_json(data: Any) -> WordGroups:
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    lacking = [key for key in _KEYS if key not in data]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    words, distances = tuple(data["words"]), tuple(float(d) for d in data["distances"])
    bounds = tuple((int(start), int(stop)) for start, stop in data["groups"])
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError("'words' must be texts, at least one")
    if len(words) != len(distances):
        raise ValueError(f"{len(words)} words, but {len(distances)} distances")
    if any(b < a for a, b in pairwise(distances)):
        raise ValueError("the distances are not sorted")
    starts, stops = [[bound[side] for bound in bounds] for side in (0, 1)]
    if [*starts, len(words)] != [0, *stops] or any(start >= stop for start, stop in bounds):
        raise ValueError("the groups must follow each other, none empty, and cover all words")
    return WordGroups(
        tuple(data["known"]), words, distances, bounds, str(data["source"]),
        dict(data["parameters"]), str(data["licence"]),
    )
