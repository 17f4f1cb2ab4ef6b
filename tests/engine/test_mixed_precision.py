"""Mixed precision: with a loss scale as on a GPU, and bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import SimpleTrainer
from trainings import SpoiltGradient, assert_same, interrupted_copy, train

import tdos_d2.engine.steps as steps_module
import tdos_d2.engine.trainer as trainer_module
from tdos_d2.engine import Trainer
from tdos_d2.engine.steps import FullPrecisionSteps, MixedPrecisionSteps
from tdos_d2.errors import UserError
from tdos_d2.loading import config_checks


class HalfOnCPU(MixedPrecisionSteps):
    """Detectron2's scaler needs a GPU; bfloat16 on a CPU stands in for half precision there."""

    def __init__(self, model, batches, optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        SimpleTrainer.__init__(self, model, batches, optimizer)
        self.grad_scaler, self.precision = scaler, torch.bfloat16


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, False), (True, True)])
def test_resume_with_mixed_precision_switched(small_cfg, tmp_path, monkeypatch, before, now):
    warnings = []
    monkeypatch.setattr(trainer_module.logger, "warning", warnings.append)

    def run(folder, half: bool, **kwargs) -> Trainer:
        kind = HalfOnCPU if half else FullPrecisionSteps
        monkeypatch.setattr(steps_module, "FullPrecisionSteps", kind)
        small_cfg.SOLVER.AMP.ENABLED = half
        return train(small_cfg, tmp_path / folder, MAX_ITER=5, CHECKPOINT_PERIOD=3, **kwargs)

    run("whole", before)
    interrupted_copy(tmp_path / "whole", tmp_path / "parts", "model_0000002.pth")
    trainer = run("parts", now, resume=True)
    assert len(warnings) == (before != now)
    assert {group["fused"] for group in trainer.optimizer.param_groups} == {not now}
    ends = [
        torch.load(tmp_path / f / "model_final.pth", weights_only=True) for f in ("whole", "parts")
    ]
    if before == now:
        assert_same(*ends)
    scales = [end["trainer"]["_trainer"].get("grad_scaler", {}).get("scale") for end in ends]
    assert scales == [16.0 if before else None, (16.0 if before else 8.0) if now else None]


@pytest.mark.parametrize(("allowed", "last"), [(0, 3), (2, 5)])
def test_gradients_that_no_loss_scale_helps_stop_training(
    small_cfg, tmp_path, monkeypatch, allowed, last
):
    """The scale falls from 4 to 0.5 in three steps, which change nothing."""
    monkeypatch.setattr(steps_module, "FullPrecisionSteps", HalfOnCPU)
    small_cfg.SOLVER.MAX_ITER, small_cfg.SOLVER.MAX_SKIPPED_STEPS = 9, allowed
    small_cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer(small_cfg)
    trainer.resume_or_load(resume=False)

    def spoil(model, inputs, losses):
        return {k: SpoiltGradient.apply(v, float("nan")) for k, v in losses.items()}

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(UserError, match=f"iteration {last}: the gradient is not finite"):
        trainer.train()
    assert trainer._trainer.skipped == allowed + 1


def test_bfloat16_on_a_cpu(small_cfg, tmp_path, monkeypatch):
    """Convolutions compute in bfloat16, weights and the losses' sums stay float32."""
    kinds = []
    forward = torch.nn.Conv2d.forward

    def note(module, x):
        kinds.append(forward(module, x).dtype)
        return forward(module, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", note)
    losses = {}
    for name, on in (("half", True), ("full", False)):
        kinds.clear()
        small_cfg.SOLVER.AMP.ENABLED = small_cfg.SOLVER.AMP.CPU = on
        trainer = train(small_cfg, tmp_path / name, MAX_ITER=2)
        assert (torch.bfloat16 in kinds) == on
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        losses[name] = trainer.storage.history("total_loss").latest()
    assert losses["half"] != losses["full"]
    assert losses["half"] == pytest.approx(losses["full"], rel=0.05)


def test_without_a_gpu_it_needs_a_key_of_its_own(small_cfg, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(steps_module.logger, "info", notes.append)
    small_cfg.SOLVER.AMP.ENABLED = True
    trainer = train(small_cfg, tmp_path / "a", MAX_ITER=1)
    assert type(trainer._trainer) is FullPrecisionSteps
    assert len(notes) == 1 and "SOLVER.AMP.CPU" in notes[0]


@pytest.mark.parametrize("on", [False, True])
def test_evaluation_in_bfloat16(small_cfg, tmp_path, monkeypatch, on):
    trainer = train(small_cfg, tmp_path / "a", MAX_ITER=1)
    seen = []
    monkeypatch.setattr(
        trainer_module.DefaultTrainer, "test",
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))),
    )  # fmt: skip
    small_cfg.TEST.BFLOAT16 = on
    Trainer.test(small_cfg, trainer.model)
    assert seen == [(on, torch.bfloat16)]


@pytest.mark.parametrize("supported", [False, True])
def test_a_processor_without_bfloat16_is_named(tiny_cfg, monkeypatch, supported):
    monkeypatch.setattr(config_checks, "_computes_bfloat16", lambda: supported)
    tiny_cfg.SOLVER.AMP.ENABLED = tiny_cfg.SOLVER.AMP.CPU = tiny_cfg.TEST.BFLOAT16 = True
    for eval_only in (True, False):
        notes = config_checks.warn_of_slow_bfloat16(tiny_cfg, eval_only=eval_only)
        assert len(notes) == (not supported)
        assert all("TEST.BFLOAT16" in note for note in notes)
        assert all(("SOLVER.AMP.CPU" in note) != eval_only for note in notes)
    tiny_cfg.SOLVER.AMP.ENABLED = tiny_cfg.TEST.BFLOAT16 = False
    assert config_checks.warn_of_slow_bfloat16(tiny_cfg, eval_only=False) == []
