"""What two processes train is one model, whichever of its statistics and parts are on."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from small_set import register

from tdos_d2.engine import Trainer
from tdos_d2.engine.launch import launch_job
from tdos_d2.errors import UserError

ARGS = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")


class Snapshots(DatasetEvaluator):
    """Keeps the statistics that each evaluation has worked with, and counts its frames."""

    def __init__(self) -> None:
        self.model: torch.nn.Module
        self.statistics: list[dict] = []
        self.frames: list[int] = []

    def reset(self) -> None:
        self.statistics.append(statistics(self.model.state_dict()))
        self.frames.append(0)

    def process(self, inputs, outputs) -> None:
        self.frames[-1] += len(inputs)


def statistics(state: dict) -> dict:
    return {k.removeprefix("module."): v.clone() for k, v in state.items() if "running_" in k}


def train_resnet(args: Namespace, cfg, folder: str) -> None:
    """Three iterations with evaluations on five frames and on one; what happened goes to a file."""
    register("two_five", Path(folder))
    register("two_one", Path(folder), frames=1)
    evaluator = Snapshots()
    Trainer.build_evaluator = staticmethod(lambda *_: evaluator)
    trainer = Trainer(cfg)
    evaluator.model = trainer.model
    trainer.resume_or_load(resume=False)
    first = get_bn_modules(trainer.model)[0]
    seen = []  # mean and variance of what the first layer normalised, by iteration
    first.register_forward_pre_hook(
        lambda m, x: seen.append([f(x[0], (0, 2, 3)).detach() for f in (torch.mean, torch.var)])
        if m.training
        else None
    )
    trainer.train()
    found = {"statistics": evaluator.statistics, "frames": evaluator.frames, "seen": seen}
    torch.save(found, Path(folder) / f"{comm.get_rank()}.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_batch_norm_statistics_are_the_mean_of_all_processes(small_cfg, tmp_path, forked_processes):
    """In each evaluation and checkpoint, though one process has three frames and one has none."""
    cfg = small_cfg
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.NAME = "CLIPModifiedResNet", "tiny-rn"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("two_five",), ("two_five", "two_one")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 3, 2, 2
    cfg.TEST.NUM_PICTURES = 0
    os.makedirs(cfg.OUTPUT_DIR)
    launch_job(train_resnet, ARGS, cfg, str(tmp_path))

    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [of_rank["frames"] for of_rank in found] == [[3, 1] * 2, [2, 0] * 2]
    files = [Path(cfg.OUTPUT_DIR, name) for name in ("model_0000001.pth", "model_final.pth")]
    saved = [statistics(torch.load(file, weights_only=True)["model"]) for file in files]
    for of_rank in found:
        for i, got in enumerate(of_rank["statistics"]):
            assert all(torch.equal(got[key], value) for key, value in saved[i // 2].items())

    mean, variance = torch.zeros(1), torch.ones(1)  # BatchNorm's start, momentum 0.1
    for one, other in zip(*(of_rank["seen"] for of_rank in found), strict=True):
        assert not torch.allclose(one[0], other[0])
        mean = 0.9 * mean + 0.1 * (one[0] + other[0]) / 2
        variance = 0.9 * variance + 0.1 * (one[1] + other[1]) / 2
    torch.testing.assert_close(saved[1]["backbone.tower.visual.bn1.running_mean"], mean)
    torch.testing.assert_close(saved[1]["backbone.tower.visual.bn1.running_var"], variance)


def train_with_a_bad_batch(args: Namespace, cfg, folder: str) -> None:
    """The second process has a loss that is NaN in the second iteration."""
    register("two_five", Path(folder))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)

    def spoil(_, __, losses: dict) -> dict:
        if trainer.iter == 1 and comm.get_rank() == 1:
            losses["loss_class"] = losses["loss_class"] * float("nan")
        return losses

    trainer.model.register_forward_hook(spoil)
    trainer.train()
    state = trainer.model.module.state_dict()
    found = {"state": state, "skipped": trainer._trainer.skipped}
    torch.save(found, Path(folder) / f"{comm.get_rank()}.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
@pytest.mark.parametrize("allowed", [0, 1])
def test_a_bad_batch_of_one_process_concerns_all(small_cfg, tmp_path, forked_processes, allowed):
    cfg = small_cfg
    cfg.DATASETS.TRAIN, cfg.SOLVER.MAX_ITER = ("two_five",), 3
    cfg.SOLVER.MAX_SKIPPED_STEPS = allowed
    os.makedirs(cfg.OUTPUT_DIR)
    if allowed:
        launch_job(train_with_a_bad_batch, ARGS, cfg, str(tmp_path))
        found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert [of_rank["skipped"] for of_rank in found] == [1, 1]
        one, other = (of_rank["state"] for of_rank in found)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        assert all(value.isfinite().all() for value in one.values())
    else:
        with pytest.raises(UserError, match=r"iteration 1: the loss is not finite .*class nan"):
            launch_job(train_with_a_bad_batch, ARGS, cfg, str(tmp_path))
    kept = [path.name for path in Path(cfg.OUTPUT_DIR).glob("not_finite*")]
    assert kept == ["not_finite_0000001_rank1.pth"]
