"""Random state as a function of (seed, iteration, rank)."""

from __future__ import annotations

import itertools
import os
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from test_trainer import assert_same, train

from tdos_d2.engine.seeding import SeededBatches
from tdos_d2.engine.train_command import setup


@pytest.fixture
def draws(monkeypatch):
    """(seed, rank, start) -> what the three generators give at three batches."""

    def of(seed: int, rank: int, start: int = 0) -> list[tuple[float, float, float]]:
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        batches = SeededBatches(itertools.count, seed)
        batches.start_iteration = start
        numbers = []
        for _, batch in zip(range(3), batches, strict=False):
            assert batch == start + len(numbers)
            numbers.append((random.random(), np.random.rand(), torch.rand(1).item()))
        return numbers

    return of


def test_seed_iteration_and_rank_decide(draws):
    first = draws(1, 0)
    assert draws(1, 0) == first
    assert draws(1, 0, start=1)[:2] == first[1:]
    # iterations, ranks and seeds all differ, in each generator
    numbers = [*first, *draws(1, 1), *draws(2, 0)]
    assert all(len(set(column)) == 9 for column in zip(*numbers, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_algorithms(small_cfg, monkeypatch, deterministic):
    """Detectron2's set-up leaves them as they are; an operation without one only warns."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    small_cfg.SOLVER.DETERMINISTIC = deterministic
    try:
        setup(Namespace(config_file="", opts=[], eval_only=True), small_cfg, [])
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() == deterministic
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_same_seed_is_the_same_run(small_cfg, tmp_path):
    """Weights and results, whatever the number of loader processes."""
    small_cfg.DATASETS.TEST, small_cfg.TEST.NUM_PICTURES = small_cfg.DATASETS.TRAIN, 0
    found = []
    for workers in (0, 1):
        small_cfg.DATALOADER.NUM_WORKERS = workers
        train(small_cfg, tmp_path / str(workers), MAX_ITER=2)
        checkpoint = torch.load(tmp_path / str(workers) / "model_final.pth", weights_only=True)
        found.append([checkpoint, (tmp_path / str(workers) / "results.json").read_text()])
    assert_same(*found)
