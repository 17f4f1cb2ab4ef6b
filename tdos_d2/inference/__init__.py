"""Inference with a trained model: predictor, objects, words at test time, export, commands."""

from __future__ import annotations

from .predictor import OODPredictor

__all__ = ["OODPredictor"]
