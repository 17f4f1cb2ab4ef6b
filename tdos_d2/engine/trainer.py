"""Detectron2's trainer with exact resume, CPU processes and results per data set."""

from __future__ import annotations

import inspect
import json
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch.nn.parallel import DistributedDataParallel

from ..data import build_test_loader, build_train_loader
from ..errors import UserError
from ..evaluation import build_evaluator
from .checkpoint import TDOSCheckpointer, atomic_write
from .optimizer import build_lr_scheduler, build_optimizer
from .pictures import PictureEvaluator
from .seeding import SeededBatches, set_key, settle_seed

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config describes.

    A run interrupted and resumed equals the run that was not, bit for bit in one process: samples
    depend on their position in the data order, and random state on (seed, iteration, rank).
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # not DefaultTrainer's: this takes its place
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
            setup_logger(name="tdos_d2")
        cfg = self.auto_scale_workers(cfg.clone(), comm.get_world_size())
        if settle_seed(cfg):
            logger.info(f"SEED is negative: this run uses {cfg.SEED}")
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        seed_all_rng(cfg.SEED)  # the same initial weights and buffers in all processes
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        on_gpu = next(model.parameters()).is_cuda
        model = _distribute(model, on_gpu)
        self._batches = SeededBatches(partial(self.build_train_loader, cfg), cfg.SEED)
        amp = cfg.SOLVER.AMP.ENABLED and on_gpu
        if cfg.SOLVER.AMP.ENABLED and not on_gpu:
            logger.info("SOLVER.AMP.ENABLED is ignored: mixed precision needs a GPU")
        self._trainer = (AMPTrainer if amp else SimpleTrainer)(model, self._batches, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TDOSCheckpointer(
            model, cfg.OUTPUT_DIR, run_info={"seed": cfg.SEED}, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from ``OUTPUT_DIR/last_checkpoint``, or load ``MODEL.WEIGHTS`` alone.

        Resuming takes over the seed of the checkpoint and starts the data order where it stopped.

        Raises:
            UserError: a checkpoint that is damaged, of another model, or past MAX_ITER.
        """
        if not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        path = self.checkpointer.get_checkpoint_file()
        try:
            rest = self.checkpointer.load(path)
        except ValueError as error:  # what optimizers say when their groups differ
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot resume from {path}: {error}") from error
        self.start_iter = self.iter + 1
        if self.start_iter > self.max_iter:
            raise UserError(
                f"cannot resume from {path}: it is at iteration {self.start_iter}, "
                f"SOLVER.MAX_ITER is {self.max_iter}"
            )
        seed = rest.get("tdos", {}).get("seed", self.cfg.SEED)
        set_key(self.cfg, "SEED", seed)
        self.checkpointer.run_info["seed"] = self._batches.seed = seed
        self._batches.start_iteration = self.start_iter
        # With another MAX_ITER the next step already belongs to the new schedule.
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr

    def train(self) -> Mapping[str, Any] | None:
        """Run training. Returns the results of the last evaluation on the main process."""
        TrainerBase.train(self, self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            verify(self.cfg, results or {})
        return results

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks; each evaluation also draws pictures for TensorBoard."""
        evaluate = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        return [evaluate if isinstance(h, hooks.EvalHook) else h for h in super().build_hooks()]

    def _evaluate(self) -> Mapping[str, Any]:
        evaluators = []
        for name in self.cfg.DATASETS.TEST:
            evaluator = self.build_evaluator(self.cfg, name)
            pictures = PictureEvaluator(name, self.cfg.TEST.NUM_PICTURES)
            evaluators.append(DatasetEvaluators([evaluator, pictures]))
        self._last_eval_results = self.test(self.cfg, self.model, evaluators)
        return self._last_eval_results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See ``engine.optimizer.build_optimizer``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """See ``engine.optimizer.build_lr_scheduler``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iteration: int = 0) -> Iterable:
        """Endless training batches, the first being that of ``start_iteration``."""
        return build_train_loader(cfg, start_iteration)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """The frames of one test set, shared out to the processes."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator that the metadata of ``dataset_name`` asks for."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
    ) -> Mapping[str, Any]:
        """Evaluate on every set of ``DATASETS.TEST``, print a table, write results.json.

        Returns:
            On the main process ``{data set: {task: {metric: value}}}``, one level less for a
            single data set, as in Detectron2. ``OUTPUT_DIR/results.json`` always has all levels.
        """
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process() and results:
            by_dataset = _by_dataset(cfg, results)
            logger.info("Results:\n" + results_table(by_dataset))
            with atomic_write(os.path.join(cfg.OUTPUT_DIR, "results.json")) as file:
                file.write(json.dumps(by_dataset, indent=2, default=float).encode())
        return results


def verify(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare results with ``TEST.EXPECTED_RESULTS``; exit with status 1 where they differ.

    Rows are Detectron2's ``[task, metric, value, tolerance]``; with several test sets the task is
    written ``<data set>/<task>``.

    Raises:
        UserError: a row names a task that was not evaluated.
    """
    if not cfg.TEST.EXPECTED_RESULTS:
        return
    tasks = {
        f"{name}/{task}": metrics
        for name, result in _by_dataset(cfg, results).items()
        for task, metrics in result.items()
    }
    if len(cfg.DATASETS.TEST) == 1:
        tasks.update(results)
    for task, *_ in cfg.TEST.EXPECTED_RESULTS:
        if task not in tasks:
            there = ", ".join(tasks) or "none"
            raise UserError(f"TEST.EXPECTED_RESULTS: no task '{task}' in the results ({there})")
    verify_results(cfg, tasks)


def results_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A text table with one row per data set and task; per-class metrics are left out.

    Args:
        results: ``{data set: {task: {metric: value}}}``.
    """
    rows = [
        {"data set": name, "task": task} | {k: v for k, v in metrics.items() if "-" not in k}
        for name, tasks in results.items()
        for task, metrics in tasks.items()
    ]
    return tabulate(rows, headers="keys", floatfmt=".2f", missingval="", tablefmt="simple")


def _distribute(model: torch.nn.Module, on_gpu: bool) -> torch.nn.Module:
    """Wrap the model where there are several processes, on GPUs or (through gloo) on CPU cores."""
    options = inspect.signature(DistributedDataParallel).parameters
    # torch is renaming the option that spares sending all buffers in every iteration.
    new_name, old_name = "forward_sync_buffers", "broadcast_buffers"
    sync_buffers = {new_name if new_name in options else old_name: False}
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return create_ddp_model(model, device_ids=device_ids, **sync_buffers)


def _by_dataset(cfg: CfgNode, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Undo Detectron2's special case: it leaves out the level of a single data set."""
    names = cfg.DATASETS.TEST
    return OrderedDict({names[0]: results}) if len(names) == 1 else results
