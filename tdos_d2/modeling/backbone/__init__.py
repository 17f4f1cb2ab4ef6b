"""CLIP image encoders as Detectron2 backbones, and the trainable neck."""

from __future__ import annotations

from .clip_vit import TAPS, CLIPVisionTransformer
from .neck import ScaleNeck

__all__ = ["TAPS", "CLIPVisionTransformer", "ScaleNeck"]
