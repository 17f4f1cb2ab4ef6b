"""The text side as the config describes it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .clip import TextTower, build_clip
from .text import FixedText, PromptedText


def build_text(cfg, names: Sequence[str]) -> nn.Module:
    """The text side for ``names`` (known classes and, last, the OOD word)."""
    node = cfg.MODEL.TDOS
    if cfg.MODEL.TEXT.EMBEDDINGS:
        return FixedText.from_file(cfg.MODEL.TEXT.EMBEDDINGS, names, node.NUM_NEGATIVE)
    clip, _ = build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS)
    return PromptedText(
        TextTower(clip),
        names,
        context_length=node.CONTEXT_LENGTH,
        num_negative=node.NUM_NEGATIVE,
        negative_length=node.NEGATIVE_LENGTH,
        prompt_std=node.PROMPT_STD,
    )
