"""AdamW with learning rate factors per module, and the polynomial schedule with warm-up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from torch import nn

from ..errors import UserError
from ..value_checks import check_positive, check_share

# By name, because Detectron2, open_clip and timm have their own norm layers.
_NORM_LAYER = re.compile(r"Norm(Act)?(\dd|Fp32)?$")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trained parameters of ``model``, with the gradient clipping of the config.

    ``SOLVER.MULTIPLIERS`` scales learning rates: a prefix matches whole components of a module
    path, the longest matching prefix applies, and factor 0 freezes. Frozen parameters are in no
    group.

    Raises:
        UserError: unknown optimizer or clipping type, a prefix that matches no module, or a model
            without trained parameters.
    """
    check_positive(cfg, "SOLVER", "BASE_LR")
    check_positive(cfg, "SOLVER.CLIP_GRADIENTS", "CLIP_VALUE", "NORM_TYPE")
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
    # gradients. The meta device has no fused step.
    fused = not solver.AMP.ENABLED and not next(model.parameters()).is_meta
    optimizer = torch.optim.AdamW(
        groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused
    )
    # Otherwise a checkpoint would override ``fused`` with the setting of its own run.
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
    # A parameter shared by two modules is listed once, under its first name.
    for full_name, parameter in model.named_parameters():
        path, _, name = full_name.rpartition(".")
        module = model.get_submodule(path)
        factor = _factor(full_name, factors)
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


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler ``SOLVER.LR_SCHEDULER_NAME``: "WarmupPolyLR", or one of Detectron2's.

    It is a stateless function of iteration / MAX_ITER: a run can be resumed with a larger MAX_ITER.
    """
    check_positive(cfg, "SOLVER", "MAX_ITER", "NUM_DECAYS")
    check_share(cfg, "SOLVER", "POLY_LR_CONSTANT_ENDING")
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)

    def decay(where: float) -> float:
        """DeepLab's schedule in Detectron2."""
        return max(max(0.0, 1.0 - where) ** solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING)

    warmup_length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    schedule = WarmupParamScheduler(
        decay, solver.WARMUP_FACTOR, warmup_length, solver.WARMUP_METHOD
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _clip_before_step(optimizer: torch.optim.Optimizer, clip: CfgNode) -> None:
    """Clip in a step hook: with mixed precision the gradients are unscaled by then."""

    def parameters() -> Iterable[nn.Parameter]:
        return (p for group in optimizer.param_groups for p in group["params"])

    def clip_norm(clipped: nn.Parameter | Iterable[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(clipped, clip.CLIP_VALUE, clip.NORM_TYPE)

    clippers = {
        "full_model": lambda: clip_norm(parameters()),
        "norm": lambda: [clip_norm(parameter) for parameter in parameters()],
        "value": lambda: nn.utils.clip_grad_value_(parameters(), clip.CLIP_VALUE),
    }
    if clip.CLIP_TYPE not in clippers:
        raise UserError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE '{clip.CLIP_TYPE}' is not known; "
            f"there are {', '.join(clippers)}"
        )

    def clip_gradients(*_: object) -> None:
        clippers[clip.CLIP_TYPE]()

    optimizer.register_step_pre_hook(clip_gradients)


def _check_multipliers(model: nn.Module, multipliers: Sequence[Sequence]) -> dict[str, float]:
    """The multipliers as {prefix: factor}."""
    known = {*dict(model.named_modules()), *dict(model.named_parameters())}
    for prefix, _ in multipliers:
        if prefix not in known:
            top = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"SOLVER.MULTIPLIERS: the model has no module '{prefix}'; it has {top}")
    return {prefix: float(factor) for prefix, factor in multipliers}


def _factor(name: str, factors: dict[str, float]) -> float:
    fitting = [prefix for prefix in factors if f"{name}.".startswith(f"{prefix}.")]
    return factors[max(fitting, key=len)] if fitting else 1.0


def _listed_without_decay(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def _is_embedding(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    lone_vector = parameter.ndim <= 1 and not name.endswith(("weight", "bias"))
    return isinstance(module, nn.Embedding) or "embed" in name or lone_vector
