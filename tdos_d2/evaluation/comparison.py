"""Comparisons of runs on the same frames: paired differences, with intervals over frames."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..files import atomic_write
from ..untrusted import load_arrays
from .bootstrap import METRICS, FrameTable, draw_frames, replicates

_ROUNDING = 0.1  # of a metric, in percentage points
FOLDER = "frame_counts"  # below OUTPUT_DIR: <dataset>.<task>.npz of each score


class Difference(NamedTuple):
    """How a metric differs between paired runs, in percentage points.

    Attributes:
        mean: over the pairs.
        deviation: over the pairs (n - 1); NaN of a single one.
        low, high: ends of the 95 % interval of the mean over drawn sets of frames, the same for all
            runs. The runs stay as they are: what another seed would give is not in it.
    """

    mean: float
    deviation: float
    low: float
    high: float


def save_frame_table(path: str | os.PathLike, table: FrameTable) -> None:
    """Write a table as .npz."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, **{**table._asdict(), "frames": np.array(table.frames)})


def load_frame_table(path: str | os.PathLike) -> FrameTable:
    """Read what :func:`save_frame_table` wrote.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        with load_arrays(path) as arrays:
            table = FrameTable(*(arrays[name] for name in FrameTable._fields))
        number, bins = len(table.frames), len(table.hidden)
        if table.counts.shape != (number, 2, bins) or len(table.components) != number:
            raise ValueError("its arrays do not belong together")
    except Exception as error:  # NumPy and zipfile raise nearly every kind there is
        raise UserError(f"{path} is no file of frame counts: {error}") from error
    return table._replace(frames=[str(frame) for frame in table.frames])


def load_pairs(
    first: Sequence[str | os.PathLike], second: Sequence[str | os.PathLike]
) -> list[tuple[FrameTable, FrameTable]]:
    """The tables in pairs of files.

    Raises:
        UserError: as :func:`load_frame_table`; or a run's results.json is of another evaluation.
    """
    return [(_of_run(Path(a)), _of_run(Path(b))) for a, b in zip(first, second, strict=True)]


def _of_run(path: Path) -> FrameTable:
    """The table of a run, compared with the metrics that its results.json has, if there is one."""
    table = load_frame_table(path)
    dataset, _, task = path.stem.rpartition(".")
    file = path.parent.parent / "results.json"
    stated = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        stated = dict(json.loads(file.read_text())[dataset][task])
    values, bounds = replicates(table, np.ones((1, len(table.frames))))
    for name, value, bound in zip_longest(METRICS, values[:, 0], bounds[:, 0], fillvalue=0):
        wanted = stated.get(name, value)
        wanted = np.nan if wanted is None else wanted  # as results.json has what is undefined
        alike = abs(value - wanted) <= bound + _ROUNDING or np.isnan([value, wanted]).all()
        if not alike:
            raise UserError(
                f"{path} is of another evaluation than {file}: {name} {value:.1f}, not "
                f"{wanted:.1f}; evaluate with TEST.FRAME_COUNTS True"
            )
    return table


def paired_differences(
    pairs: Sequence[tuple[FrameTable, FrameTable]], *, number: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Second minus first of each pair, such as two configs with the same seed.

    Args:
        pairs: at least one; all of the same frames, in any order.
        number: of drawn sets.
        seed: of the random draws.

    Returns:
        By metric of ``bootstrap.METRICS``.

    Raises:
        UserError: the frames differ, or their labels.
    """
    frames = sorted(pairs[0][0].frames)
    pairs = [[_in_order(table, frames) for table in pair] for pair in pairs]
    _check_labels(chain.from_iterable(pairs))
    draws = np.concatenate([np.ones((1, len(frames))), draw_frames(len(frames), number, seed)])
    first, second = (
        np.stack([replicates(table, draws)[0] for table in side])
        for side in zip(*pairs, strict=True)
    )
    found = second - first  # (pairs, metrics, 1 + number), of which the first is the dataset
    differences = {}
    for metric, values in zip(METRICS, found.swapaxes(0, 1), strict=True):
        own, drawn = values[:, 0], values[:, 1:].mean(axis=0)
        drawn = drawn[~np.isnan(drawn)]
        ends = np.percentile(drawn, (2.5, 97.5)).tolist() if len(drawn) else (np.nan, np.nan)
        deviation = float(own.std(ddof=1)) if len(own) > 1 else np.nan
        differences[metric] = Difference(float(own.mean()), deviation, *ends)
    return differences


def _in_order(table: FrameTable, frames: Sequence[str]) -> FrameTable:
    order = np.argsort(table.frames)
    if [table.frames[i] for i in order] != list(frames):
        raise UserError("the runs were not evaluated on the same frames: nothing can be paired")
    return table._replace(
        frames=list(frames), counts=table.counts[order], components=table.components[order]
    )


def _check_labels(tables: Iterable[FrameTable]) -> None:
    """Compare what tables of the same frames, in one order, say of the labels."""
    first, *others = (
        np.column_stack([table.counts.sum(axis=2), table.components[:, 0]]) for table in tables
    )  # known and OOD pixels and true components of each frame
    if any((truth != first).any() for truth in others):
        raise UserError(
            "the runs were evaluated on other labels, or with other sizes of components: evaluate "
            "them again"
        )
