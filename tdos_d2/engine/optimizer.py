"""AdamW with learning rate factors per module, and the polynomial schedule with warm-up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from ..errors import UserError

# By name, because Detectron2 and open_clip have norm layers of their own beside torch's.
_NORM_LAYER = re.compile(r"Norm(\dd|Fp32)?$")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the parameters of ``model`` that are trained, clipped as the config says.

    ``SOLVER.MULTIPLIERS`` scales learning rates: a prefix stands for whole components of a module
    path, the longest that fits wins, and factor 0 freezes. Frozen parameters are in no group.

    Raises:
        UserError: an unknown optimizer or clipping type, a prefix that names no module, or a model
            that has nothing to train.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER.upper() != "ADAMW":
        raise UserError(f"SOLVER.OPTIMIZER '{solver.OPTIMIZER}' is not known; there is ADAMW")
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        multipliers=solver.MULTIPLIERS,
    )
    # The fused step undoes GradScaler's scaling itself, so clipping before it would act on scaled
    # gradients.
    on_meta = next(model.parameters()).is_meta  # there is no such step there
    fused = not solver.AMP.ENABLED and not on_meta
    optimizer = torch.optim.AdamW(
        groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused
    )
    # A checkpoint would bring the way of stepping with it that its own run had.
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {
            **state,
            "param_groups": [{**group, "fused": fused} for group in state["param_groups"]],
        }
    )
    if solver.CLIP_GRADIENTS.ENABLED:
        _clip_before_step(optimizer, solver.CLIP_GRADIENTS)
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
    multipliers: Sequence[Sequence] = (),
) -> list[dict]:
    """Sort the trained parameters into groups of one learning rate and weight decay each.

    Norm layers decay by ``weight_decay_norm``. Embeddings do not decay: weights of
    ``nn.Embedding``, parameters with "embed" in their name, scalars and vectors other than a
    ``weight`` or ``bias``, and what a module lists in ``no_weight_decay()`` (names below it).

    Returns:
        Dicts with "params", "lr" and "weight_decay", in the order of the model's parameters.

    Raises:
        UserError: as ``build_optimizer``.
    """
    factors = _check_multipliers(model, multipliers)
    exempt = _listed_without_decay(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}" if prefix else name
            factor = _factor(full_name, factors)
            if parameter in seen:  # shared by two modules: the first name counts
                continue
            seen.add(parameter)
            if factor == 0:
                parameter.requires_grad_(False)
            if not parameter.requires_grad:
                continue
            decay = weight_decay
            if _NORM_LAYER.search(type(module).__name__):
                decay = weight_decay_norm
            elif full_name in exempt or _is_embedding(module, name, parameter):
                decay = 0.0
            elif name.endswith("bias") and weight_decay_bias is not None:
                decay = weight_decay_bias
            lr = base_lr * factor * (bias_lr_factor if name.endswith("bias") else 1.0)
            groups.setdefault((lr, decay), []).append(parameter)
    if not groups:
        raise UserError("nothing to train: every parameter is frozen (see SOLVER.MULTIPLIERS)")
    return [
        {"params": params, "lr": lr, "weight_decay": decay}
        for (lr, decay), params in groups.items()
    ]


class PolynomialDecay(ParamScheduler):
    """(1 - where)^power, but never less than ``ending``: DeepLab's schedule in Detectron2."""

    def __init__(self, power: float, ending: float) -> None:
        self._power, self._ending = power, ending

    def __call__(self, where: float) -> float:
        return max(max(0.0, 1.0 - where) ** self._power, self._ending)


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: "WarmupPolyLR", or one of Detectron2's.

    The schedule is a function of iteration / MAX_ITER that keeps no state, so that a run can be
    resumed with a larger MAX_ITER.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolynomialDecay(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _clip_before_step(optimizer: torch.optim.Optimizer, clip: CfgNode) -> None:
    """Clip in a step hook: with mixed precision the gradients are unscaled by then."""

    def parameters() -> Iterable[nn.Parameter]:
        return (p for group in optimizer.param_groups for p in group["params"])

    def full_model(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters(), clip.CLIP_VALUE, clip.NORM_TYPE)

    def norm(*_: object) -> None:
        for parameter in parameters():
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    def value(*_: object) -> None:
        nn.utils.clip_grad_value_(parameters(), clip.CLIP_VALUE)

    clippers = {"full_model": full_model, "norm": norm, "value": value}
    if clip.CLIP_TYPE not in clippers:
        raise UserError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE '{clip.CLIP_TYPE}' is not known; "
            f"there are {', '.join(clippers)}"
        )
    optimizer.register_step_pre_hook(clippers[clip.CLIP_TYPE])


def _check_multipliers(
    model: nn.Module, multipliers: Sequence[Sequence]
) -> list[tuple[tuple[str, ...], float]]:
    """The multipliers as (path components, factor), longest path first."""
    names = [*(name for name, _ in model.named_modules()), *dict(model.named_parameters())]
    paths = {tuple(name.split(".")) for name in names}
    checked = []
    for prefix, factor in multipliers:
        path = tuple(prefix.split("."))
        if path not in paths:
            top = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"SOLVER.MULTIPLIERS: the model has no module '{prefix}'; it has {top}")
        checked.append((path, float(factor)))
    return sorted(checked, key=lambda item: -len(item[0]))


def _factor(name: str, factors: list[tuple[tuple[str, ...], float]]) -> float:
    path = tuple(name.split("."))
    return next((factor for prefix, factor in factors if path[: len(prefix)] == prefix), 1.0)


def _listed_without_decay(model: nn.Module) -> set[str]:
    names = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            names |= {f"{prefix}.{name}" if prefix else name for name in module.no_weight_decay()}
    return names


def _is_embedding(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    lone_vector = parameter.ndim <= 1 and not name.endswith(("weight", "bias"))
    return isinstance(module, nn.Embedding) or "embed" in name or lone_vector
