"""CLIP: building, loading and running its encoders. Only this package uses open_clip."""

from __future__ import annotations

from .loading import (
    QUICK_GELU_SUFFIX,
    build_clip,
    image_encoder_kind,
    missing_weights_file,
    release_weights,
)
from .text_encoder import END, START, TextEncoder, token_batch, tokenize
from .towers import ImageTokens, ResNetTower, TextTower, ViTTower

__all__ = [
    "END", "QUICK_GELU_SUFFIX", "START", "ImageTokens", "ResNetTower", "TextEncoder", "TextTower",
    "ViTTower", "build_clip", "image_encoder_kind", "missing_weights_file", "release_weights",
    "token_batch", "tokenize",
]  # fmt: skip
