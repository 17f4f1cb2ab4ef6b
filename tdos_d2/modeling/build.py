"""Parts of the model as the config describes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..ood_words import load_groups, prototypes
from .backbone import CLIPImageEncoder
from .clip import TextTower, build_clip
from .regularization import LanguageLoss, Regularization, VisionLoss
from .semantic_augmentation import SemanticAugmentation
from .text import FixedText, PromptedText, TextEncoder

logger = logging.getLogger(__name__)

PROMPT_STARTS = ("random", "group")


def build_text(cfg, names: Sequence[str]) -> nn.Module:
    """The text side for ``names`` (known classes and, last, the OOD word)."""
    node, prompts = cfg.MODEL.TDOS, cfg.MODEL.PROMPTS
    if prompts.INIT not in PROMPT_STARTS:
        raise UserError(
            f"MODEL.PROMPTS.INIT: '{prompts.INIT}' is none of {', '.join(PROMPT_STARTS)}"
        )
    from_group = prompts.INIT == "group" and bool(prompts.GROUPS) and node.NUM_NEGATIVE > 0
    if cfg.MODEL.TEXT.EMBEDDINGS:
        use_groups = prompts.GROUPS and node.NUM_NEGATIVE
        groups = load_groups(prompts.GROUPS, node.NUM_NEGATIVE).groups if use_groups else ()
        return FixedText.from_file(
            cfg.MODEL.TEXT.EMBEDDINGS, names, node.NUM_NEGATIVE, groups, from_group
        )
    encoder = cfg.MODEL.CLIP
    clip, _ = build_clip(encoder.NAME, encoder.WEIGHTS, encoder.ACTIVATION)
    return PromptedText(
        TextTower(clip),
        names,
        context_length=node.CONTEXT_LENGTH,
        num_negative=node.NUM_NEGATIVE,
        negative_length=node.NEGATIVE_LENGTH,
        prompt_std=node.PROMPT_STD,
        negative_words=load_groups(prompts.GROUPS, node.NUM_NEGATIVE).groups
        if from_group
        else None,
    )


def use_tf32(on: bool) -> None:
    """``MODEL.TF32`` for all of the process; the log says what a GPU that has TF32 does."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        products = "from factors rounded to TF32" if on else "in full"
        logger.info("MODEL.TF32 is %s: float32 products are computed %s", on, products)


def build_augmentation(cfg, num_known: int) -> SemanticAugmentation | None:
    """What chooses the region that is perturbed in training; None where it is off."""
    node = cfg.MODEL.SEM_AUG
    if not node.ENABLED:
        return None
    return SemanticAugmentation(
        num_known, region=node.REGION, prob=node.PROB, num_ellipses=node.NUM, size=node.SIZE
    )


def build_regularization(
    cfg, names: Sequence[str], text: nn.Module, backbone: CLIPImageEncoder
) -> Regularization:
    """The regularizers that the config asks for and that the model has a use for.

    Args:
        cfg: the config.
        names: the K known classes and, last, the OOD word.
        text: the text side.
        backbone: the image encoder.
    """
    node = cfg.MODEL.REG
    language = vision = None
    if node.LANGUAGE_WEIGHT:
        if isinstance(text, FixedText):
            references = text.references
        else:
            references = partial(
                _prompted_references,
                text.tower,
                tuple(names),
                template=node.TEMPLATE,
                groups=cfg.MODEL.PROMPTS.GROUPS,
                num_negative=cfg.MODEL.TDOS.NUM_NEGATIVE,
                keep=bool(cfg.MODEL.CLIP.WEIGHTS),
            )
            if not cfg.MODEL.CLIP.WEIGHTS:
                logger.info(
                    "the text encoder is random: MODEL.REG.LANGUAGE_WEIGHT and groups of OOD words "
                    "tell text queries apart, but carry no language meaning"
                )
        language = LanguageLoss(
            references, weight=node.LANGUAGE_WEIGHT, temperature=node.TEMPERATURE
        )
    if (node.VISION_MSE_WEIGHT or node.VISION_COSINE_WEIGHT) and not backbone.frozen:
        pretrained = getattr(backbone, "pretrained", bool(cfg.MODEL.CLIP.WEIGHTS))
        if pretrained and not cfg.MODEL.TDOS.HEADS_ONLY:
            vision = VisionLoss(
                backbone,
                mse_weight=node.VISION_MSE_WEIGHT,
                cosine_weight=node.VISION_COSINE_WEIGHT,
            )
        elif not pretrained:
            logger.info(
                "no vision regularizer: an image encoder that starts from random weights has "
                "nothing to hold on to"
            )
    return Regularization(language, vision)


def _prompted_references(
    tower: TextTower,
    names: Sequence[str],
    *,
    template: str,
    groups: str,
    num_negative: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Unit embeddings of the names' and word groups' texts, and the numbers of their queries."""
    encode = TextEncoder(tower)
    references = encode([template.replace("{}", name) for name in names])
    if groups and num_negative:
        # Nobody meets random weights again: what they give is not worth keeping on disk.
        weights = encode.weights_identity() if keep else None
        words = load_groups(groups, num_negative).groups
        of_groups = prototypes(words, encode.array, template, weights=weights)
        references = torch.cat([references, references.new_tensor(of_groups)])
    return references, torch.arange(len(references))
