"""Evaluation: ``evaluate_scores`` needs only NumPy and OpenCV, the evaluators need Detectron2."""

from __future__ import annotations

from .dataset_metrics import evaluate_breakdown, evaluate_scores

__all__ = ["OODEvaluator", "SemSegEvaluator", "build_evaluator", "evaluate_breakdown",
           "evaluate_scores"]  # fmt: skip


def __getattr__(name: str):
    if name in __all__:
        from . import evaluators

        return getattr(evaluators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
