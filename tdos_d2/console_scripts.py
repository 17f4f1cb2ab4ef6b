"""The commands that pip installs: tdos-train, tdos-evaluate, tdos-predict, tdos-calibrate."""

from __future__ import annotations

from .engine import exit_with_one_line
from .engine.train_command import run


def train() -> None:
    """train_net.py: train, or evaluate with ``--eval-only``."""
    exit_with_one_line(run)


def evaluate() -> None:
    """train_net.py ``--eval-only``."""
    exit_with_one_line(lambda: run(eval_only=True))


def predict() -> None:
    """tools/predict.py."""
    from .inference.predict_command import run as run_prediction

    exit_with_one_line(run_prediction)


def calibrate() -> None:
    """tools/calibrate.py."""
    from .inference.calibrate_command import run as run_calibration

    exit_with_one_line(run_calibration)
