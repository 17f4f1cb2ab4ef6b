"""Training: Detectron2's engine with exact resume, checks before the start and clear errors."""

from __future__ import annotations

from ..loading.checkpoint import TDOSCheckpointer, read_checkpoint_info
from ..loading.config_files import load_config
from .launch import launch_job
from .optimizer import build_lr_scheduler, build_optimizer
from .preflight import check_run
from .results import check_expected_results
from .trainer import Trainer

__all__ = [
    "TDOSCheckpointer",
    "Trainer",
    "build_lr_scheduler",
    "build_optimizer",
    "check_expected_results",
    "check_run",
    "launch_job",
    "load_config",
    "read_checkpoint_info",
]
