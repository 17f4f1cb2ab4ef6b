"""Losses and gradients that are not finite; what a step tells the event storage."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from trainings import SpoiltGradient

from tdos_d2.engine import Trainer
from tdos_d2.engine.steps import gradient_norm
from tdos_d2.errors import UserError
from tdos_d2.modeling.training_events import record_batch


def run(cfg, spoil, **solver) -> Trainer:
    """Train; ``spoil(trainer, losses)`` changes the losses of each step."""
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.model.register_forward_hook(lambda _, __, losses: spoil(trainer, losses))
    trainer.train()
    return trainer


def at(iterations, value):
    """The score map's loss times ``value`` in these iterations."""

    def spoil(trainer, losses):
        if trainer.iter in iterations:
            losses["loss_score_map"] = losses["loss_score_map"] * value
        return losses

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "gradient"])
def test_training_stops_and_keeps_the_batch(small_cfg, value):
    what = "gradient" if value == "gradient" else "loss"

    def spoil(trainer, losses):
        if trainer.iter == 1:
            old = losses["loss_score_map"]
            losses["loss_score_map"] = (
                SpoiltGradient.apply(old, float("inf")) if what == "gradient" else old * value
            )
        return losses

    seen = []

    def watch(trainer, losses):
        seen.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return spoil(trainer, losses)

    message = rf"^iteration 1: the {what} is not finite \(loss_class .*loss_score_map .*\); files "
    with pytest.raises(UserError, match=message) as caught:
        run(small_cfg, watch)
    kept = torch.load(Path(small_cfg.OUTPUT_DIR) / "not_finite_0000001.pth", weights_only=True)
    assert kept["iteration"] == 1 and len(kept["batch"]) == small_cfg.SOLVER.IMS_PER_BATCH
    for item in kept["batch"]:
        assert item["file_name"] in str(caught.value)
        assert item["image"].shape[-2:] == item["sem_seg"].shape == (32, 64)
    assert len(seen) == 2
    if what == "loss":
        assert not torch.tensor(kept["losses"]["loss_score_map"]).isfinite()


def test_steps_are_left_out_and_counted(small_cfg):
    """Left out steps change nothing: neither weights nor statistics of BatchNorm."""
    small_cfg.MODEL.BACKBONE.NAME = "CLIPModifiedResNet"
    small_cfg.MODEL.CLIP.NAME = "tiny-rn"
    states = []

    def spoil(trainer, losses):
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return at((1, 2), float("nan"))(trainer, losses)

    trainer = run(small_cfg, spoil, MAX_SKIPPED_STEPS=2, MAX_ITER=5)
    assert trainer._trainer.skipped == 2
    parameters = dict(trainer.model.named_parameters())
    same = [all(torch.equal(a[k], b[k]) for k in parameters) for a, b in pairwise(states)]
    assert same == [False, True, True, False]
    # The forward pass of a left out step has moved the statistics when the hook looks.
    statistics = [k for k in states[0] if k.endswith("num_batches_tracked")]
    assert statistics and [int(s[statistics[0]]) for s in states] == [1, 2, 2, 2, 3]
    lines = (Path(small_cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1], parse_constant=pytest.fail)["skipped_steps"] == 2


def test_too_many_in_a_row(small_cfg):
    with pytest.raises(UserError, match=r"iteration 3: .*; 2 in a row \(SOLVER.MAX_SKIPPED"):
        run(small_cfg, at((0, 2, 3), float("nan")), MAX_SKIPPED_STEPS=1, MAX_ITER=9)
    kept = sorted(path.name for path in Path(small_cfg.OUTPUT_DIR).glob("not_finite*"))
    assert kept == [f"not_finite_000000{i}.pth" for i in (0, 2, 3)]


def test_what_the_event_storage_gets(small_cfg):
    small_cfg.INPUT.OOD_PASTE.PROB = 1.0
    norms = []

    def watch(trainer, losses):
        if trainer.iter:  # the gradients of the step before, not yet cleared
            grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
            norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return losses

    trainer = run(small_cfg, watch, MULTIPLIERS=[["backbone", 0.1]], MAX_ITER=2)
    history = trainer.storage.histories()
    assert history["grad_norm"].values()[0][0] == pytest.approx(norms[0], rel=1e-4)
    rates = {name: h.latest() for name, h in history.items() if name.startswith("lr_group/")}
    assert len(rates) == len(trainer.optimizer.param_groups)
    assert max(rates.values()) == pytest.approx(10 * min(rates.values()))
    assert 0 < history["ood_share"].latest() < 1
    activity = [history[f"negative_activity/{i:02d}"].latest() for i in range(4)]
    assert 0 <= sum(activity) <= 1
    assert {"loss_class", "loss_mask", "loss_dice", "loss_score_map", "lr"} <= set(history)


def test_ood_share_and_activity_by_hand():
    from detectron2.utils.events import EventStorage

    labels = torch.tensor([[[0, 2, 2, 255], [1, 2, 2, 255]]])  # K = 2: four of six are OOD
    masks = torch.zeros(1, 5, 2, 4)  # two known, the OOD word, two negatives
    masks[0, 0] = 9  # known ones do not count
    masks[0, 3, :, :2] = 1  # of the four, the first negative has two, the second one, the word one
    masks[0, 4, 0, 2] = 1
    masks[0, 2, 1, 2] = 1
    record_batch(labels, masks, 2)  # no storage: nothing happens
    with EventStorage() as storage:
        record_batch(labels, masks, 2)
        found = {name: history.latest() for name, history in storage.histories().items()}
    assert found == pytest.approx(
        {"ood_share": 4 / 6, "negative_activity/00": 0.5, "negative_activity/01": 0.25}
    )


def test_gradient_norm_by_hand():
    a, b, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b, frozen]}], lr=1.0)
    assert gradient_norm(optimizer) == 5.0
