"""Short trainings, and what is compared of them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import torch

from tdos_d2.engine import Trainer


class SpoiltGradient(torch.autograd.Function):
    """The value itself, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def train(cfg, folder, *, resume: bool = False, **solver) -> Trainer:
    cfg = cfg.clone()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    cfg.OUTPUT_DIR = str(folder)
    Path(folder).mkdir(exist_ok=True)
    # what a process happens to have drawn before must not matter
    random.seed(len(str(folder)))
    np.random.seed(len(str(folder)))
    torch.manual_seed(0 if not resume else 12345)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def interrupted_copy(source: Path, target: Path, name: str) -> None:
    """A folder as it is when the run stops right after the checkpoint ``name``."""
    target.mkdir()
    shutil.copy(source / name, target)
    (target / "last_checkpoint").write_text(name)


def assert_same(a, b, path: str = "checkpoint") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path
