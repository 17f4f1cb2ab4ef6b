"""Using a trained model: predictor, objects, words, drawing, and the command that joins them."""

from __future__ import annotations

from typing import Any

__all__ = ["OODPredictor"]


def __getattr__(name: str) -> Any:
    # Drawing serves training too; the predictor needs the engine, which draws.
    if name in __all__:
        from .predictor import OODPredictor

        return OODPredictor
    raise AttributeError(f"module 'tdos_d2.inference' has no attribute '{name}'")
