"""Parameter groups, clipping and the learning rate schedule."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from timm.layers import BatchNormAct2d, GroupNormAct, LayerNormAct2d
from torch import nn

from tdos_d2.engine.optimizer import build_lr_scheduler, build_optimizer, parameter_groups
from tdos_d2.errors import UserError


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": Part(), "stem2": Part()})
        self.head = Part()
        self.head.context = nn.Parameter(torch.zeros(3, 2))
        self.head.no_weight_decay = lambda: {"context"}
        self.table = nn.Embedding(2, 2)
        self.level_embed = nn.Parameter(torch.zeros(3, 2))
        self.gamma = nn.Parameter(torch.zeros(2))
        self.norm2 = get_norm("LN", 2)  # Detectron2's own LayerNorm


def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    rows = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(rows) == len(dict(rows))  # no parameter twice
    return dict(rows)


def groups_of(model: nn.Module, **kwargs) -> dict[str, tuple[float, float]]:
    return settings(model, parameter_groups(model, base_lr=1.0, weight_decay=0.1, **kwargs))


def test_every_trained_parameter_once():
    model = Model()
    assert set(groups_of(model)) == set(dict(model.named_parameters()))


def test_weight_decay():
    decay = {name: wd for name, (_, wd) in groups_of(Model(), weight_decay_norm=0.01).items()}
    assert decay["head.linear.weight"] == decay["head.linear.bias"] == 0.1
    assert decay["head.norm.weight"] == decay["head.norm.bias"] == decay["norm2.weight"] == 0.01
    for name in ("table.weight", "level_embed", "gamma", "head.context"):
        assert decay[name] == 0.0
    timms = nn.Sequential(BatchNormAct2d(2), LayerNormAct2d(2), GroupNormAct(2, num_groups=1))
    assert {wd for _, wd in groups_of(timms, weight_decay_norm=0.01).values()} == {0.01}
    biased = groups_of(Model(), weight_decay_bias=0.5)
    assert biased["head.linear.bias"][1] == 0.5 and biased["head.norm.bias"][1] == 0.0


def test_longest_prefix_of_whole_components_wins():
    lr = {
        name: lr
        for name, (lr, _) in groups_of(
            Model(), multipliers=[["backbone", 0.1], ["backbone.stem", 0.5], ["gamma", 3.0]]
        ).items()
    }
    assert lr["backbone.stem.linear.weight"] == 0.5
    assert lr["backbone.stem2.linear.weight"] == pytest.approx(0.1)  # not "backbone.stem"
    assert lr["gamma"] == 3.0
    assert lr["head.linear.weight"] == 1.0


def test_frozen_parts_are_in_no_group():
    model = Model()
    model.backbone["stem"].requires_grad_(False)
    names = groups_of(model, multipliers=[["head", 0]])
    assert not any(name.startswith(("head", "backbone.stem.")) for name in names)
    assert not any(p.requires_grad for p in model.head.parameters())


def test_shared_parameters_are_in_one_group():
    model = Model()
    model.head.linear.weight = model.table.weight
    assert groups_of(model)["head.linear.weight"][1] == 0.1  # by its first name


def test_prefix_without_module():
    with pytest.raises(UserError, match="'backbon'.*backbone"):
        groups_of(Model(), multipliers=[["backbon", 0.1]])


def test_nothing_to_train():
    with pytest.raises(UserError, match="nothing to train"):
        groups_of(Model().requires_grad_(False))


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    tiny_cfg.SOLVER.MULTIPLIERS = []
    tiny_cfg.SOLVER.BASE_LR = 1e-4
    tiny_cfg.SOLVER.MAX_ITER = 20000
    tiny_cfg.SOLVER.WARMUP_ITERS = 1500
    tiny_cfg.SOLVER.WARMUP_FACTOR = 1e-6
    return tiny_cfg


@pytest.mark.parametrize("clip_type", ["full_model", "norm", "value"])
def test_clipping(cfg, clip_type):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    model = nn.Module()
    model.a = nn.Linear(1, 1, bias=False)
    model.b = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.a.weight.grad = torch.tensor([[3.0]])
    model.b.weight.grad = torch.tensor([[4.0]])
    optimizer.step()
    got = [model.a.weight.grad.item(), model.b.weight.grad.item()]
    # the norm of (3, 4) is 5
    expected = {"full_model": [0.6, 0.8], "norm": [1.0, 1.0], "value": [1.0, 1.0]}[clip_type]
    assert got == pytest.approx(expected, rel=1e-5)


def test_clipping_sees_unscaled_gradients_with_mixed_precision(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 10.0
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(3 * model.weight.sum()).backward()
    scaler.step(optimizer)
    # 3 is below the limit of 10: scaled gradients, 3,072, would have been cut to 10
    assert model.weight.grad.item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("key", "value"), [("OPTIMIZER", "SGD"), ("CLIP_GRADIENTS.CLIP_TYPE", "foo")]
)
def test_unknown_names(cfg, key, value):
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, f"SOLVER.{key}", value])
    with pytest.raises(UserError, match=f"{key} '{value}'"):
        build_optimizer(cfg, nn.Linear(1, 1))


def rates(cfg, iterations: list[int]) -> list[float]:
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    result = []
    for i in range(max(iterations) + 1):
        if i in iterations:
            result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_published_schedule(cfg):
    def poly(i: int) -> float:  # written from the recipe: power 0.9, not below 1e-6
        return max(1e-4 * (1 - i / 20000) ** 0.9, 1e-6)

    got = rates(cfg, [0, 750, 1500, 10000, 19999, 20000])
    assert got[0] == pytest.approx(1e-10)
    assert got[1] == pytest.approx((1e-10 + poly(1500)) / 2, rel=1e-4)
    assert got[2:] == pytest.approx([poly(1500), poly(10000), poly(19999), 1e-6])


def test_schedule_is_that_of_detectron2s_deeplab(cfg):
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 50, 0.3
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=cfg.SOLVER.BASE_LR)
    deeplab = WarmupPolyLR(optimizer, 50, warmup_iters=0, power=0.9, constant_ending=0.3)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        deeplab.step()
    assert list(rates(cfg, range(50))) == pytest.approx(expected, rel=1e-6)
    assert expected.count(pytest.approx(0.3 * cfg.SOLVER.BASE_LR)) > 10


def test_schedule_survives_warm_up_longer_than_training(cfg):
    cfg.SOLVER.MAX_ITER = 10
    assert rates(cfg, [10])[0] <= 1e-4


def test_detectron2_schedules_serve_too(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 10, 0
    assert rates(cfg, [0, 10]) == pytest.approx([1e-4, 0.0], abs=1e-9)


def test_tiny_model(cfg):
    from detectron2.modeling import build_model

    model = build_model(cfg)
    decay = {
        name: wd
        for name, (_, wd) in settings(
            model, parameter_groups(model, base_lr=1.0, weight_decay=0.1)
        ).items()
    }
    assert set(decay) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name in ("text.context", "text.negatives", "backbone.tower.visual.positional_embedding"):
        assert decay.get(name, 0.0) == 0.0
    assert not any(wd for name, wd in decay.items() if "norm" in name or ".ln_" in name)
