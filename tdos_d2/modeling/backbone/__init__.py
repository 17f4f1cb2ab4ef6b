"""Image encoders as Detectron2 backbones, and the trainable necks."""

from __future__ import annotations

from .clip_encoders import (
    CLIPModifiedResNet,
    CLIPVisionTransformer,
    check_encoder,
    encoder_name,
)
from .freezable_encoder import TAPS
from .neck import FPNNeck, ScaleNeck
from .timm_encoder import TimmBackbone
from .timm_weights import pixel_statistics_for

__all__ = [
    "TAPS", "CLIPModifiedResNet", "CLIPVisionTransformer", "FPNNeck", "ScaleNeck", "TimmBackbone",
    "check_encoder", "encoder_name", "pixel_statistics_for",
]  # fmt: skip
