"""Training steps: those of Detectron2's trainers, with handling of losses that are NaN."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor

from ..errors import UserError
from ..files import atomic_write

logger = logging.getLogger(__name__)

_MAX_FILES = 8  # number of files that a message names


class _Steps:
    """``run_step`` for both of Detectron2's trainers.

    If a loss or gradient is NaN or infinite, no weight is changed. Each process where this happens
    saves its batch in ``folder``; training stops, or skips up to ``max_skipped`` steps in a row.
    All processes do the same. (With float16, infinite gradients are normal: the loss scale is
    lowered. Where they are still infinite at a scale below 1, it is not for want of range.)
    """

    folder: Path
    precision: torch.dtype | None = None  # of autocast; None = float32 throughout
    max_skipped = 0
    skipped = 0  # number of skipped steps so far
    _in_a_row = 0

    def run_step(self) -> None:
        """Forward, backward, and a step of the optimizer."""
        if not self.model.training:
            raise RuntimeError("the model is not in training mode")
        scaler = getattr(self, "grad_scaler", None)
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        statistics = self._statistics() if self.max_skipped else []
        device = self.optimizer.param_groups[0]["params"][0].device
        with torch.autocast(device.type, self.precision, enabled=self.precision is not None):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        values = dict(zip(losses, values, strict=True))
        well = math.isfinite(sum(values.values()))
        if not self._all_well(well, device):
            self._give_up("" if well else "loss", batch, values, statistics)
            return
        (total if scaler is None else scaler.scale(total)).backward()
        self.after_backward()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.optimizer)
        if not math.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
            if scaler is not None:
                scaler.update()  # also forgets that the gradients are not scaled any more
            self._give_up("gradient", batch, values, statistics)  # the same in all processes
            return
        self._in_a_row = 0
        self._write_metrics(losses, data_time)
        self._write_rates(norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _all_well(self, well: bool, device: torch.device) -> bool:
        """Whether ``well`` is True in all processes."""
        if comm.get_world_size() == 1:
            return well
        flag = torch.tensor(float(well), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """BatchNorm statistics, which the forward pass changes, and copies of their values."""
        norms = [norm for norm in get_bn_modules(self.model) if norm.track_running_stats]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        return [(buffer, buffer.clone()) for buffer in buffers]

    def _give_up(
        self,
        what: str,
        batch: Sequence[Mapping[str, Any]],
        losses: Mapping[str, float],
        statistics: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Save the batch, and stop or skip the step.

        Args:
            what: name of what is not finite; "": only the loss of another process is not finite.
            batch: the batch of this process.
            losses: the losses of this process, by name.
            statistics: see ``_statistics``.

        Raises:
            UserError: training stops.
        """
        self.skipped += 1
        self._in_a_row += 1
        stops = self._in_a_row > self.max_skipped
        text = f"iteration {self.iter}: the {what or 'loss of another process'} is not finite"
        if what:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            text += f" ({terms}); {_names(batch)}; batch kept in {self._keep(batch, losses)}"
        if stops and self.max_skipped:
            text += f"; {self._in_a_row} in a row (SOLVER.MAX_SKIPPED_STEPS)"
        if stops:
            if not what:
                time.sleep(1)  # so that the process with the details reports first
            raise UserError(text)
        logger.warning("step left out: %s", text)
        for buffer, before in statistics:
            buffer.copy_(before)
        self.optimizer.zero_grad()
        get_event_storage().put_scalar("skipped_steps", self.skipped, smoothing_hint=False)

    def _write_rates(self, norm: float) -> None:
        """Log the gradient norm and, if there are several, the learning rate of each group."""
        storage = get_event_storage()
        if math.isfinite(norm):
            storage.put_scalar("grad_norm", norm)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if len(set(rates)) > 1:
            for i, rate in enumerate(rates):
                storage.put_scalar(f"lr_group/{i}", rate, smoothing_hint=False)

    def _keep(self, batch: Sequence[Mapping[str, Any]], losses: Mapping[str, float]) -> Path:
        rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = self.folder / f"not_finite_{self.iter:07d}{rank}.pth"
        plain = (str, int, float, bool, torch.Tensor)
        kept = [{k: v for k, v in item.items() if isinstance(v, plain)} for item in batch]
        with atomic_write(path) as file:
            torch.save({"iteration": self.iter, "losses": dict(losses), "batch": kept}, file)
        return path


class FullPrecisionSteps(_Steps, SimpleTrainer):
    """Steps in float32."""


class MixedPrecisionSteps(_Steps, AMPTrainer):
    """Steps with autocast to float16 and a loss scale, on a GPU."""

    precision = torch.float16


class BFloat16Steps(_Steps, SimpleTrainer):
    """Steps with autocast to bfloat16, whose range needs no loss scale, on a CPU."""

    precision = torch.bfloat16


def build_steps(
    cfg: CfgNode, model: torch.nn.Module, batches: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """The trainer for ``SOLVER.AMP`` and ``SOLVER.MAX_SKIPPED_STEPS``."""
    amp, kind = cfg.SOLVER.AMP, FullPrecisionSteps
    if amp.ENABLED:
        on_gpu = next(model.parameters()).is_cuda
        kind = MixedPrecisionSteps if on_gpu else BFloat16Steps if amp.CPU else kind
        if kind is FullPrecisionSteps:
            logger.info("SOLVER.AMP.ENABLED is for GPUs; SOLVER.AMP.CPU switches bfloat16 on here")
    elif amp.CPU:
        logger.warning("SOLVER.AMP.CPU needs SOLVER.AMP.ENABLED: this run is in float32")
    made = kind(model, batches, optimizer)
    made.folder = Path(cfg.OUTPUT_DIR)
    made.max_skipped = cfg.SOLVER.MAX_SKIPPED_STEPS
    return made


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """L2 norm of all gradients, before they are clipped."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    grads = [grad for grad in grads if grad is not None]
    if not grads:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))


def _names(batch: Sequence[Mapping[str, Any]]) -> str:
    names = [str(item.get("file_name", "an image without a name")) for item in batch]
    more = f" and {len(names) - _MAX_FILES} more" if len(names) > _MAX_FILES else ""
    return f"files {', '.join(names[:_MAX_FILES])}{more}"
