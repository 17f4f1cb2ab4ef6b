"""Data order and randomness as functions of (seed, position), independent of the number of workers
and processes and of restarts."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset, Sampler, get_worker_info

Seed = int | Sequence[int]

# Keys that separate the random streams of one seed.
_ORDER, _SAMPLE, RARE_CLASS, _MIX = range(4)
# Weights of datasets hold in each block of this many positions, so no share may be below 1 / this.
_BLOCK = 1000
MIN_SHARE = 2 / _BLOCK


class PositionalDataset(Dataset):
    """An infinite sequence of dataset dicts: shuffled epochs, one after another.

    Item ``p`` (any p >= 0) is a copy of one of the n dicts with the key "position" = p. Each epoch
    of n positions has its own order, which depends on (seed, epoch).

    Args:
        dicts: dataset dicts in Detectron2's format.
        seed: any integer >= 0, or several.
        shuffle: False keeps the order of ``dicts`` in each epoch.
    """

    def __init__(self, dicts: list[dict[str, Any]], seed: Seed, shuffle: bool = True) -> None:
        self._dicts = DatasetFromList(dicts)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order = np.arange(len(dicts))

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = divmod(position, len(self))
        if self._shuffle and epoch != self._epoch:
            stream = np.random.SeedSequence(self._seed, spawn_key=(_ORDER, epoch))
            self._order = np.random.default_rng(stream).permutation(len(self))
            self._epoch = epoch
        return {**self._dicts[int(self._order[index])], "position": position}


class MixedDataset(Dataset):
    """A weighted mixture of infinite sequences of dataset dicts.

    In each block of 1,000 positions every sequence has its share, rounded to an integer, at random
    positions. Each sequence continues where it stopped, so its own epochs stay complete.

    Args:
        datasets: the sequences: item q of each, for any q >= 0, is a new dict.
        weights: one number > 0 per sequence.
        seed: any integer >= 0.

    Raises:
        ValueError: a weight is less than ``MIN_SHARE`` of their sum.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], seed: int) -> None:
        if min(weights) < MIN_SHARE * sum(weights):
            raise ValueError(f"each weight must be at least {MIN_SHARE} of their sum: {weights}")
        ends = np.round(_BLOCK * np.cumsum(weights) / np.sum(weights)).astype(int)
        self._counts = np.diff(ends, prepend=0)
        self._datasets = datasets
        self._seed = seed
        self._block = -1
        self._order = np.repeat(np.arange(len(datasets)), self._counts)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self._datasets)

    def __getitem__(self, position: int) -> dict[str, Any]:
        block, place = divmod(position, _BLOCK)
        if block != self._block:
            stream = np.random.SeedSequence(self._seed, spawn_key=(_MIX, block))
            self._order = np.random.default_rng(stream).permutation(np.sort(self._order))
            self._block = block
        chosen = self._order[place]
        earlier = block * self._counts[chosen] + np.count_nonzero(self._order[:place] == chosen)
        return {**self._datasets[chosen][int(earlier)], "position": position}


class PositionSampler(Sampler[int]):
    """The infinite sequence of positions of one process.

    Batch i of all processes together is [start + i * B, start + (i + 1) * B) with
    B = batch_size * world_size; rank r has its elements r, r + world_size, ... Inside a worker of a
    ``DataLoader`` it gives every num_workers-th batch, so that the loader, which queries its
    workers in turn, yields the same batches as without workers. (Detectron2 0.6 would distribute
    single positions, hence use ``ToIterableDataset(..., shard_sampler=False)``.)

    Args:
        start: first position.
        rank: number of this process.
        world_size: number of processes.
        batch_size: samples per batch in one process.
    """

    def __init__(
        self, start: int = 0, rank: int = 0, world_size: int = 1, batch_size: int = 1
    ) -> None:
        self._first = start + rank
        self._world_size = world_size
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        stride = self._batch_size * self._world_size
        for batch in itertools.count(first, step):
            begin = self._first + batch * stride
            yield from range(begin, begin + stride, self._world_size)


@contextlib.contextmanager
def sample_randomness(seed: int, position: int) -> Iterator[np.random.Generator]:
    """Seed Python's, NumPy's and torch's (CPU) global generators from (seed, position).

    Augmentations draw from the global generators; their states are restored afterwards.

    Yields:
        a separate generator for code that takes one.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(_SAMPLE, position))
    words = [int(word) for word in stream.generate_state(3)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(words[0])
    np.random.seed(words[1])
    # Not torch.manual_seed, which would also seed the accelerators.
    torch.default_generator.manual_seed(words[2])
    try:
        yield np.random.default_rng(stream)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
