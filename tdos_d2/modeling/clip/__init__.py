"""CLIP: building, loading, walking its towers. Nothing else in tdos_d2 touches open_clip."""

from __future__ import annotations

from .build import build_clip, check_weights_file, missing_weights_file, release_weights
from .tokens import END, START, tokenize
from .towers import ImageTokens, TextTower, ViTTower

__all__ = [
    "END",
    "START",
    "ImageTokens",
    "TextTower",
    "ViTTower",
    "build_clip",
    "check_weights_file",
    "missing_weights_file",
    "release_weights",
    "tokenize",
]
