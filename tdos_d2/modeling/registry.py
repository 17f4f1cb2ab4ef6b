"""Registries of the model's parts: register a custom part, then name it in the config.

A part is built as ``Part(cfg, *shapes)``; with Detectron2's ``@configurable`` it can also be built
from plain arguments. The comment at each registry gives the inputs and outputs of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from ..errors import UserError
from ..value_checks import check_choice

# (cfg, shapes of the four taps, N) -> module with ``channels`` and ``size_divisibility``; four taps
# (B, C, h, w), score map (B, N, h', w') -> levels of strides 4, 8, 16, 32, finest first.
NECK_REGISTRY = Registry("NECK")

# (cfg, names: the K known classes and the OOD word) -> module with ``embed_dim``; no input ->
# (N, D) text embeddings. MODEL.REG.LANGUAGE_WEIGHT needs its ``build_references(cfg, names)``.
TEXT_REGISTRY = Registry("TEXT")

# (cfg, D of the text, D of the visual context) -> module; (N, D) text, (B, S, D) visual context ->
# (B, N, D).
CONTEXT_DECODER_REGISTRY = Registry("CONTEXT_DECODER")

# (cfg, channels of the levels, D, N) -> module; levels, (B, N, D) text -> memory of three maps,
# coarsest first, and mask features (B, C, h, w), C being MODEL.PIXEL_DECODER.HIDDEN_DIM.
PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")

# (cfg, D, N, number of classes) -> module; memory, mask features, text -> class logits
# (O, B, N, classes + 1) and mask logits (O, B, N, h, w) of O outputs; in evaluation only the last.
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")


def build_neck(cfg, in_shapes: Sequence[ShapeSpec], num_queries: int) -> nn.Module:
    """``MODEL.NECK.NAME``; "" = FPNNeck for taps of several strides, ScaleNeck for one."""
    # A CNN's taps are already a pyramid; a ViT's taps have one stride.
    several = len({shape.stride for shape in in_shapes}) > 1
    default = "FPNNeck" if several else "ScaleNeck"
    return _build(NECK_REGISTRY, cfg.MODEL.NECK.NAME or default, cfg, in_shapes, num_queries)


def build_text(cfg, names: Sequence[str]) -> nn.Module:
    """``MODEL.TEXT.NAME``; "" = FixedText with MODEL.TEXT.EMBEDDINGS, PromptedText without."""
    # With embeddings from a file no text encoder is built, so that CLIP is not needed.
    default = "FixedText" if cfg.MODEL.TEXT.EMBEDDINGS else "PromptedText"
    if cfg.MODEL.TEXT.NAME == "PromptedText" and cfg.MODEL.TEXT.EMBEDDINGS:
        raise UserError(
            "MODEL.TEXT.NAME PromptedText encodes text itself: MODEL.TEXT.EMBEDDINGS must be empty"
        )
    return _build(TEXT_REGISTRY, cfg.MODEL.TEXT.NAME or default, cfg, names)


def build_context_decoder(cfg, *shapes: int) -> nn.Module:
    """``MODEL.CONTEXT_DECODER.NAME`` for D of the text and D of the visual context."""
    return _build(CONTEXT_DECODER_REGISTRY, cfg.MODEL.CONTEXT_DECODER.NAME, cfg, *shapes)


def build_pixel_decoder(cfg, in_channels: Sequence[int], *shapes: int) -> nn.Module:
    """``MODEL.PIXEL_DECODER.NAME`` for the levels' channels, D and N."""
    name = cfg.MODEL.PIXEL_DECODER.NAME
    return _build(PIXEL_DECODER_REGISTRY, name, cfg, in_channels, *shapes)


def build_transformer_decoder(cfg, *shapes: int) -> nn.Module:
    """``MODEL.TRANSFORMER_DECODER.NAME`` for D, N and the number of classes."""
    return _build(TRANSFORMER_DECODER_REGISTRY, cfg.MODEL.TRANSFORMER_DECODER.NAME, cfg, *shapes)


def _build(registry: Registry, name: str, *arguments: Any) -> nn.Module:
    # Registry.get would raise a KeyError with a table of all parts and a traceback.
    check_choice(f"MODEL.{registry._name}.NAME", name, [known for known, _ in registry])
    return registry.get(name)(*arguments)
