"""Detectron2's trainer with exact resume, CPU processes and results per dataset."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    DefaultTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..config import set_key
from ..data import build_test_loader, build_train_loader
from ..data.ood_paste import fallback_warning
from ..errors import UserError
from ..evaluation import build_evaluator
from ..evaluation.writers import PictureEvaluator
from ..loading.checkpoint import TDOSCheckpointer
from ..loading.config_files import local_weights
from ..loading.network import network_settings
from ..loading.packing import PACKED
from ..loading.resuming import check_batch_size, resume_file, warn_of_damage
from ..modeling.test_time_augmentation import SemanticSegmentorWithTTA
from ..modeling.text.stored import StoredText
from ..value_checks import check_positive
from .optimizer import build_lr_scheduler, build_optimizer
from .preemption import (
    Preempted,
    StopBetweenFrames,
    StopWhenAsked,
    end_preempted,
    shield_workers,
    signals_wait,
)
from .results import (
    by_dataset,
    check_expected_results,
    keep_operating_point,
    report_results,
    write_results,
)
from .seeding import SeededBatches, settle_seed
from .steps import build_steps

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates the model of a config.

    An interrupted and resumed run equals an uninterrupted run, bit for bit in one process: samples
    depend on their position in the data order, and random state on (seed, iteration, rank).
    """

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # replaces DefaultTrainer's
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
        self._trainer = build_steps(cfg, model, self._batches, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        run_info = {"seed": cfg.SEED, "batch_size": cfg.SOLVER.IMS_PER_BATCH}
        run_info["network"] = network_settings(cfg)
        if warning := fallback_warning(cfg):
            run_info["outlier_warning"] = warning
        self.checkpointer = TDOSCheckpointer(
            model, cfg.OUTPUT_DIR, run_info=run_info, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in ``OUTPUT_DIR``, or only load ``MODEL.WEIGHTS``.

        Resuming uses the seed of the checkpoint and continues the data order where it stopped.
        Learning rates and weight decay are those of the config, which may have changed.

        Raises:
            UserError: the checkpoint is damaged, of another model, or past MAX_ITER.
        """
        path = resume_file(self.cfg) if resume else None
        warn_of_damage(self.cfg, path)
        if comm.is_main_process():
            remove_unfinished(Path(self.cfg.OUTPUT_DIR))
        if path is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            if isinstance(getattr(self.checkpointer.model, "text", None), StoredText):
                raise UserError(f"MODEL.WEIGHTS: {self.cfg.MODEL.WEIGHTS} {PACKED}")
            self._check_frozen_are_loaded()
            if comm.is_main_process():
                start_anew(Path(self.cfg.OUTPUT_DIR))
            return
        groups = self.optimizer.param_groups
        base_lrs, decays = list(self.scheduler.base_lrs), [g["weight_decay"] for g in groups]
        self.iter = -1
        try:
            whole = f"cannot resume from {path}: it is of another model, which has"
            rest = self.checkpointer.load(str(path), whole=whole)
        except ValueError as error:  # raised by optimizers if their groups differ
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot resume from {path}: {error}") from error
        if self.iter < 0:
            raise UserError(
                f"cannot resume from {path}: it has weights alone; MODEL.WEIGHTS starts from them"
            )
        self.start_iter = self.iter + 1
        if self.start_iter > self.max_iter:
            raise UserError(
                f"cannot resume from {path}: it is at iteration {self.start_iter}, "
                f"SOLVER.MAX_ITER is {self.max_iter}"
            )
        info = rest.get("tdos", {})
        check_batch_size(self.cfg, path, info)
        seed = info.get("seed", self.cfg.SEED)
        set_key(self.cfg, "SEED", seed)
        self.checkpointer.run_info["seed"] = self._batches.seed = seed
        self._batches.start_iteration = self.start_iter
        if base_lrs != self.scheduler.base_lrs:
            logger.info(f"learning rates are those of the config, no more those of {path}")
        self.scheduler.base_lrs = base_lrs
        # Loading replaced the groups. The next step must already use the new schedule.
        groups = self.optimizer.param_groups
        for group, lr, decay in zip(groups, self.scheduler.get_lr(), decays, strict=True):
            group["lr"], group["weight_decay"] = lr, decay

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, whether or not its run used mixed precision."""
        state = dict(state_dict["_trainer"])
        scaler = getattr(self._trainer, "grad_scaler", None)
        if scaler is not None and not state.get("grad_scaler"):
            state["grad_scaler"] = scaler.state_dict()
            logger.warning("mixed precision is new in this run: its loss scale starts anew")
        elif scaler is None and state.get("grad_scaler"):
            logger.warning("mixed precision was on in the checkpoint's run and is off in this one")
        super().load_state_dict({**state_dict, "_trainer": state})

    def _check_frozen_are_loaded(self) -> None:
        if not self.cfg.MODEL.TDOS.HEADS_ONLY:
            return
        trained = {k for k, v in self.checkpointer.model.named_parameters() if v.requires_grad}
        untrained = [key for key in self.checkpointer.not_loaded if key not in trained]
        if untrained:
            raise UserError(
                f"MODEL.TDOS.HEADS_ONLY: {self.cfg.MODEL.WEIGHTS} has no fitting {untrained[0]}"
                f" and {len(untrained) - 1} more, which would stay at random"
            )

    def train(self) -> Mapping[str, Any] | None:
        """Run training. Returns the results of the last evaluation on the main process.

        Raises:
            Preempted: SIGTERM or SIGINT arrived; a checkpoint of the last complete step is written.
        """
        with signals_wait():
            TrainerBase.train(self, self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            check_expected_results(self.cfg, results or {})
        return results

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's hooks; each evaluation also draws pictures for TensorBoard."""
        check_periods(self.cfg)
        # Undefined metrics would be NaN in metrics.json, which is not valid JSON.
        evaluate = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, lambda: _defined(self._evaluate()))
        built = [evaluate if isinstance(h, hooks.EvalHook) else h for h in super().build_hooks()]
        users = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        first = next(i for i, hook in enumerate(built) if isinstance(hook, users))
        return [*built[:first], MeanStatistics(), StopWhenAsked(), *built[first:]]

    def save_now(self) -> None:
        """Save the checkpoint of this iteration, whether or not it is time for one."""
        last = self.iter + 1 >= self.max_iter
        name = "model_final" if last else f"model_{self.iter:07d}"
        self.checkpointer.save(name, iteration=self.iter)

    def _evaluate(self) -> Mapping[str, Any]:
        cfg = self.cfg
        evaluators = [self.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        with_pictures = [
            DatasetEvaluators(
                [StopBetweenFrames(), evaluator, PictureEvaluator(name, cfg.TEST.NUM_PICTURES)]
            )
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True)
        ]
        checkpoint = self._saved_now()
        try:
            results = self.test(cfg, self.model, with_pictures, checkpoint)
        except Preempted:
            if not os.path.isfile(checkpoint):  # of this step; that of the last step always exists
                self.save_now()
            end_preempted()
        report_results(cfg, by_dataset(cfg, results), evaluators, checkpoint)
        if self.iter + 1 >= self.max_iter and comm.is_main_process():
            keep_operating_point(cfg, evaluators, checkpoint)
        self._last_eval_results = results
        return results

    def _saved_now(self) -> str:
        """The checkpoint of this iteration, or a description if none is saved."""
        if self.iter + 1 >= self.max_iter:
            return os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
        if (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            return os.path.join(self.cfg.OUTPUT_DIR, f"model_{self.iter:07d}.pth")
        return f"of iteration {self.iter}, which were not saved"

    @staticmethod
    def build_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
        """``data.build_train_loader``; its workers survive the signal that ends the training."""
        return shield_workers(build_train_loader(cfg, start_iteration))

    @staticmethod
    def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
        """``data.build_test_loader``; see :meth:`build_train_loader`."""
        return shield_workers(build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference"
    ) -> DatasetEvaluator:
        """The evaluator for the ``evaluator_type`` of ``dataset_name``."""
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, folder))

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        checkpoint: str | os.PathLike = "",
    ) -> Mapping[str, Any]:
        """Evaluate on every dataset in ``DATASETS.TEST``, print a table, write the results.

        Args:
            cfg: config.
            model: the model.
            evaluators: one per dataset; by default those of :meth:`build_evaluator`.
            checkpoint: the file of the model (default: ``MODEL.WEIGHTS``).

        Returns:
            On the main process ``{dataset: {task: {metric: value}}}``, one level less for a
            single dataset, as in Detectron2.
        """
        with inference_context(model):  # eval mode for all datasets: text is encoded only once
            results = cls._inference(cfg, model, evaluators)
        if comm.is_main_process() and results:
            write_results(cfg, by_dataset(cfg, results), checkpoint or _weights(cfg))
        return results

    @classmethod
    def _inference(
        cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Sequence[DatasetEvaluator] | None
    ) -> Mapping[str, Any]:
        """Detectron2's ``test``, in bfloat16 if ``TEST.BFLOAT16`` is set."""
        half = cfg.TEST.BFLOAT16 and cfg.MODEL.DEVICE == "cpu"
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_checkpoint(
        cls, cfg: CfgNode, model: torch.nn.Module, checkpoint: str | os.PathLike | None
    ) -> Mapping[str, Any]:
        """``test``, repeated with test-time augmentation if ``TEST.AUG`` is enabled.

        Saves the operating threshold beside ``checkpoint``, the file that the model was loaded
        from. Returns the results of ``test``.
        """
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        which = checkpoint or _weights(cfg)
        results = cls.test(cfg, model, evaluators, which)
        if checkpoint is not None and comm.is_main_process():
            keep_operating_point(cfg, evaluators, checkpoint)
        if cfg.TEST.AUG.ENABLED:
            logger.info("Once more, with test-time augmentation (TEST.AUG)")
            again = cfg.clone()
            set_key(again, "TEST.REPORT", False)
            set_key(again, "TEST.FRAME_COUNTS", False)  # those are of the plain results
            set_key(again, "TEST.SHOW_DIR", cfg.TEST.SHOW_DIR and f"{cfg.TEST.SHOW_DIR}_TTA")
            with_tta = [
                cls.build_evaluator(again, name, "inference_TTA") for name in cfg.DATASETS.TEST
            ]
            with_tta_model = SemanticSegmentorWithTTA(cfg, model).eval()
            augmented = cls._inference(cfg, with_tta_model, with_tta)
            if comm.is_main_process():
                whole = by_dataset(cfg, results)
                for name, tasks in by_dataset(cfg, augmented).items():
                    whole[name].update({f"{task}_TTA": row for task, row in tasks.items()})
                write_results(cfg, whole, which)
        report_results(cfg, by_dataset(cfg, results), evaluators, which)
        return results


def check_periods(cfg: CfgNode) -> None:
    """Raise UserError if a period of the config is invalid for the hooks."""
    check_positive(cfg, "SOLVER", "CHECKPOINT_PERIOD")
    check_positive(cfg, "TEST.PRECISE_BN", "NUM_ITER")


def remove_unfinished(folder: Path) -> None:
    """Delete incomplete checkpoints of killed runs, which could otherwise fill the disk."""
    for path in folder.glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def start_anew(folder: Path) -> None:
    """Log what a run without ``--resume`` will overwrite in ``folder``, and empty ``metrics.json``.

    Its old lines are kept in ``metrics.<number>.json``. The file itself is not replaced, as a
    writer has it open.
    """
    old = [path.name for path in sorted(folder.glob("*.pth"), reverse=True)]
    metrics = folder / "metrics.json"
    kept = ""
    if metrics.is_file() and metrics.stat().st_size:
        number = next(i for i in count(1) if not (folder / f"metrics.{i}.json").exists())
        shutil.copy2(metrics, folder / f"metrics.{number}.json")
        os.truncate(metrics, 0)
        kept = f"; its metrics.json is now metrics.{number}.json"
    if old:
        shown = ", ".join(old[:3]) + (f" and {len(old) - 3} more" if old[3:] else "")
        logger.warning(
            f"{folder} has checkpoints of another run ({shown}), and this is no --resume: those of "
            f"the same names, their thresholds and results.* will be overwritten{kept}"
        )


def _weights(cfg: CfgNode) -> str | Path:
    return local_weights(cfg) or cfg.MODEL.WEIGHTS or "(none)"


def _defined(results: Any) -> Any:
    """Nested results without NaN values."""
    if not isinstance(results, Mapping):
        return results
    return {key: _defined(value) for key, value in results.items() if value == value}


class MeanStatistics(hooks.HookBase):
    """Averages BatchNorm statistics over the processes after each step.

    Each process normalises its own images, but a checkpoint has the statistics of one process.
    All processes average in every step, before evaluation or saving, so that none waits for another
    that has no more frames.
    """

    def after_step(self) -> None:
        norms = [norm for norm in get_bn_modules(self.trainer.model) if norm.track_running_stats]
        if comm.get_world_size() == 1 or not norms:
            return
        buffers = [x for norm in norms for x in (norm.running_mean, norm.running_var)]
        means = torch.cat(buffers) / comm.get_world_size()
        torch.distributed.all_reduce(means)
        for buffer, mean in zip(buffers, means.split([len(x) for x in buffers]), strict=True):
            buffer.copy_(mean)


def _distribute(model: torch.nn.Module, on_gpu: bool) -> torch.nn.Module:
    """Wrap the model if there are several processes, on GPUs or (through gloo) on CPU cores."""
    options = inspect.signature(DistributedDataParallel).parameters
    # torch is renaming the option that disables the broadcast of all buffers in every iteration.
    renamed = "forward_sync_buffers" in options
    sync_buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    device_ids = [comm.get_local_rank()] if on_gpu else None
    return create_ddp_model(model, device_ids=device_ids, **sync_buffers)
