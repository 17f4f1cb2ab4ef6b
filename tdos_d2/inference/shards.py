"""Prediction in shards: each process's part of the inputs, and joining of their tables."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..evaluation.tables import to_json
from ..files import atomic_write
from .media import TABLE, read_records
from .sources import Input

_COMPLETE = "complete"  # file that marks a completed shard


class Shard:
    """One of ``count`` parts of a prediction; shards share no state while they run.

    Args:
        root: the output folder of all shards.
        number: number of this shard, from 1 to ``count``.
        count: number of shards.

    Attributes:
        folder: folder of its results.
    """

    def __init__(self, root: Path, number: int, count: int) -> None:
        self.root, self.number, self.count = root, number, count
        self.folder = _folder(root, number, count)
        self._inputs = hashlib.sha256()
        (self.folder / _COMPLETE).unlink(missing_ok=True)  # of an earlier run

    def part(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """This shard's part of all inputs, which must be in the same order for every shard.

        Results of shards are never inputs, wherever ``root`` is.
        """
        results = re.compile(re.escape(os.path.realpath(self.root)) + r"/shard-\d+-of-\d+/")
        given = ((x, os.path.realpath(x.source)) for x in inputs)
        others = (self._noted(x, real) for x, real in given if not results.match(real))
        return islice(others, self.number - 1, None, self.count)

    def _noted(self, item: Input, real: str) -> Input:
        self._inputs.update(os.fsencode(real) + b"\0")
        return item

    def finish(self) -> Path | None:
        """Mark the shard as complete; the last one joins the tables.

        Returns:
            The joined table; None while other shards are incomplete, or complete for other inputs,
            such as those of an earlier job, which is said on standard error. Its lines from other
            runs are kept, also of runs with another number of shards; a shard's lines name it
            (``"shard": "1/8"``), and their files include its folder. Of a shard that was run again,
            the lines of an input's last run count.
        """
        inputs = self._inputs.hexdigest()
        with atomic_write(self.folder / _COMPLETE) as file:
            file.write(inputs.encode())
        numbers = range(1, self.count + 1)
        folders = {f"{i}/{self.count}": _folder(self.root, i, self.count) for i in numbers}
        if not all((folder / _COMPLETE).is_file() for folder in folders.values()):
            return None
        if others := [i for i, x in folders.items() if (x / _COMPLETE).read_text() != inputs]:
            said = f"the tables are not joined: shard {', '.join(others)} has other inputs so far"
            print(said, file=sys.stderr)
            return None
        table = self.root / TABLE
        # Two shards that end at once both write the whole table, with the same content.
        records = read_records(table) if table.is_file() else []
        records = [x for x in records if x.get("shard") not in folders]
        for shard, folder in folders.items():
            for record in _of_last_runs(read_records(folder / TABLE)):
                files = record.get("files", {})
                record["files"] = {k: f"{folder.name}/{file}" for k, file in files.items()}
                records.append({**record, "shard": shard})
        with atomic_write(table) as file:
            for record in records:
                file.write(f"{to_json(record, None)}\n".encode())
        return table


def _of_last_runs(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each input the records of its last run: all of a video's frames, and its own."""
    kept: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        of_input = kept.setdefault((record.get("folder"), record.get("input")), [])
        if of_input and not _follows(record, of_input[-1]):
            of_input.clear()
        of_input.append(record)
    return chain.from_iterable(kept.values())


def _follows(record: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a run wrote the two records of one input: a later frame, or that of the video."""
    frame, last = record.get("frame"), before.get("frame")
    return last is not None and (frame is None or frame > last)


def _folder(root: Path, number: int, count: int) -> Path:
    return root / f"shard-{number}-of-{count}"
