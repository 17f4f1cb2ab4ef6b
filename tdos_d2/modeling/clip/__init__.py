"""CLIP: building, loading, walking its towers. Nothing else in tdos_d2 touches open_clip."""

from __future__ import annotations

from .loading import (
    ACTIVATIONS,
    QUICK_GELU_SUFFIX,
    build_clip,
    check_weights_file,
    image_encoder_kind,
    missing_weights_file,
    release_weights,
)
from .tokens import END, START, token_batch, tokenize
from .towers import ImageTokens, ResNetTower, TextTower, ViTTower

__all__ = [
    "ACTIVATIONS",
    "END",
    "QUICK_GELU_SUFFIX",
    "START",
    "ImageTokens",
    "ResNetTower",
    "TextTower",
    "ViTTower",
    "build_clip",
    "check_weights_file",
    "image_encoder_kind",
    "missing_weights_file",
    "release_weights",
    "token_batch",
    "tokenize",
]
