"""On SIGTERM and SIGINT, training finishes the current step, saves a checkpoint and ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

import torch
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals count as one: SLURM, a terminal and our launcher may all send one.
_ONE_EVENT = 1.0
# Seconds that other processes and workers wait at most for the main one to write a checkpoint.
_PATIENCE = 300


class _Pending:
    """The signal that asked this process to end, and its time."""

    number = 0
    came = 0.0


def _on_signal(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if not _Pending.number:
        _Pending.number, _Pending.came = number, now
    elif now - _Pending.came > _ONE_EVENT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def signals_wait(*, hand_on: bool = False) -> Iterator[None]:
    """Context in which the first SIGTERM or SIGINT is only recorded; one a second later kills.

    Args:
        hand_on: forward the signals to processes started within the context.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Pending.number = 0
    others = [process.pid for process in multiprocessing.active_children()]
    handler = partial(_hand_on, others) if hand_on else _on_signal
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_on(others: Sequence[int], number: int, frame: FrameType | None) -> None:
    for process in multiprocessing.active_children():
        if process.pid not in others:
            os.kill(process.pid, number)
    _on_signal(number, frame)


def exit_if_asked() -> None:
    """Raise Preempted if this process was told to end."""
    if _Pending.number:
        raise Preempted


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let the workers of ``loader`` survive the first signal; returns ``loader``.

    SLURM and terminals signal all processes of a job. torch's workers would end at once, which
    would end the training with an error within a step.
    """
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
    return loader


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    if init is not None:
        init(worker_id)
    _Pending.number = 0
    for number in _SIGNALS:
        signal.signal(number, _on_signal_in_worker)


def _on_signal_in_worker(number: int, frame: FrameType | None) -> None:
    # torch ends hanging workers with a single SIGTERM, and would then wait for them forever.
    signal.alarm(_PATIENCE)
    _on_signal(number, frame)


class Preempted(SystemExit):
    """The process was asked to end: status 128 + signal, 143 for SIGTERM and 130 for SIGINT."""

    def __init__(self) -> None:
        super().__init__(128 + _Pending.number)


def end_preempted() -> None:
    """End this process; the main one, which writes the checkpoint, ends first."""
    name = signal.Signals(_Pending.number).name
    if not comm.is_main_process():
        # The launcher treats the first process to end as the failed one, and ends the others.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE if comm.get_rank() == comm.get_local_rank() else 5)
    else:
        logger.warning(f"ended by {name} after this checkpoint: --resume goes on from it")
    raise Preempted


class StopWhenAsked(hooks.HookBase):
    """After a step in which any process was asked to end, all save a checkpoint and end."""

    def after_step(self) -> None:
        if _asked():
            self.trainer.save_now()
            end_preempted()


def _asked() -> bool:
    """Whether any process has been asked to end; the same result in all processes."""
    if comm.get_world_size() == 1:
        return bool(_Pending.number)
    # All processes must save in the same iteration, so they communicate in every iteration.
    number = torch.tensor(_Pending.number)
    torch.distributed.all_reduce(
        number, torch.distributed.ReduceOp.MAX, group=comm._get_global_gloo_group()
    )
    _Pending.number = int(number)
    return bool(_Pending.number)


class StopBetweenFrames(DatasetEvaluator):
    """Ends an evaluation, which may take hours, after the frame in which the signal arrived."""

    def process(self, inputs: object, outputs: object) -> None:
        """Raise Preempted if this process was told to end."""
        exit_if_asked()
