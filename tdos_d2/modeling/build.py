"""What a model takes from the config besides numbers: class names and the text side."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from torch import nn

from ..errors import UserError
from .clip import TextTower, build_clip
from .text import FixedText, PromptedText


def class_names_from(cfg) -> list[str]:
    """Names of the known classes: ``MODEL.TDOS.CLASS_NAMES``, else those of the first training set.

    Raises:
        UserError: neither gives any name.
    """
    names = list(cfg.MODEL.TDOS.CLASS_NAMES)
    if not names and cfg.DATASETS.TRAIN:
        names = list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes", []))
    if not names:
        raise UserError(
            "no class names: set MODEL.TDOS.CLASS_NAMES, or a DATASETS.TRAIN whose metadata has "
            "stuff_classes"
        )
    return names


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
