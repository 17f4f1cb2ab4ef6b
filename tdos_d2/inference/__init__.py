"""Using a trained model: predictor, objects, words at test time, export, and their command."""

from __future__ import annotations

from .predictor import OODPredictor

__all__ = ["OODPredictor"]
