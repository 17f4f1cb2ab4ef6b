"""Random state as a function of (seed, iteration, rank), for exact resuming of runs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import set_key


def settle_seed(cfg: CfgNode) -> bool:
    """Replace a negative ``cfg.SEED`` in place by a random one, the same in all processes.

    Every process must call this. Returns whether a seed was drawn.
    """
    drawn = cfg.SEED < 0
    own = int(np.random.SeedSequence().generate_state(1)[0] >> 1)  # 31 bits fit everywhere
    set_key(cfg, "SEED", comm.all_gather(own if drawn else cfg.SEED)[0])
    return drawn


def settle_determinism(cfg: CfgNode) -> None:
    """Use torch's deterministic algorithms in this process if ``SOLVER.DETERMINISTIC`` is set.

    It must be called before anything runs on a GPU, when cuBLAS reads its setting. Operations
    without such an algorithm only log a warning with their name.
    """
    if not cfg.SOLVER.DETERMINISTIC:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed python's, NumPy's and torch's global generators for one training iteration."""
    words = np.random.SeedSequence([seed, iteration, rank]).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


class SeededBatches:
    """Training batches from any iteration on; the generators are seeded for each iteration.

    The loader is built when the first batch is requested. Seeding follows the loading of a batch:
    starting worker processes also draws from torch's generator, which would make a resumed run
    differ from an uninterrupted one.

    Args:
        build: returns the loader whose first batch is that of the given iteration.
        seed: the run's seed.
    """

    def __init__(self, build: Callable[[int], Iterable], seed: int) -> None:
        self._build = build
        self.seed = seed
        self.start_iteration = 0

    def __iter__(self) -> Iterator:
        batches = self._build(self.start_iteration)
        for iteration, batch in enumerate(batches, self.start_iteration):
            seed_iteration(self.seed, iteration, comm.get_rank())
            yield batch
