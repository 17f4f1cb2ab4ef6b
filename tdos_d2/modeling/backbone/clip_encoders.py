"""CLIP's image encoders, ViT and modified ResNet, as Detectron2 backbones."""

from __future__ import annotations

import logging

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ...errors import UserError
from ..clip import ImageTokens, ResNetTower, ViTTower, build_clip, image_encoder_kind
from ..semantic_augmentation import QueryNoise, StyleMixing
from .freezable_encoder import FreezableEncoder

logger = logging.getLogger(__name__)


class CLIPImageEncoder(FreezableEncoder):
    """Four intermediate maps, the image embedding and the dense embedding of a CLIP encoder."""

    kind: str  # as returned by ``image_encoder_kind``
    in_text_space = True

    @configurable
    def __init__(
        self,
        *,
        visual: nn.Module,
        frozen: bool,
        architecture: str,
        frozen_norm: bool = False,
        augmentation: nn.Module | None = None,
    ) -> None:
        """
        Args:
            visual: the ``visual`` of an open_clip ``CLIP`` model.
            frozen, frozen_norm: ``whole`` and ``norms`` of :meth:`freeze`.
            architecture: name that builds the same architecture without weights.
            augmentation: ``QueryNoise`` for a ViT, ``StyleMixing`` for a ResNet.
        """
        super().__init__()
        self.tower = self._build_tower(visual, augmentation)
        self.channels, self.strides = self.tower.channels, self.tower.strides
        self.dense_channels = self.tower.embed_dim
        # For checkpoints; the name includes the activation, which the weights may determine.
        self.architecture = architecture
        self.freeze(frozen, frozen_norm)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        check_encoder(cfg)
        node, loaded = cfg.MODEL.CLIP, bool(cfg.MODEL.CLIP.WEIGHTS)
        clip, architecture = build_clip(node.NAME, node.WEIGHTS, node.ACTIVATION)
        if not loaded:
            logger.info(
                "MODEL.CLIP.WEIGHTS is empty: CLIP starts from random weights; the image encoder "
                "is trained, and text embeddings have no language meaning"
            )
        return {
            "visual": clip.visual,
            # Random weights are always trained: frozen, they would be a fixed random projection.
            "frozen": node.FREEZE_IMAGE and loaded,
            "architecture": architecture,
            "frozen_norm": cfg.MODEL.BACKBONE.FREEZE_NORM and loaded,
            "augmentation": cls._build_augmentation(cfg.MODEL.SEM_AUG),
        }

    def encode(self, images: Tensor, region: Tensor | None) -> ImageTokens:
        """Taps and, in CLIP's text space, the image embedding and the dense embedding."""
        return self.tower(images, region)


@BACKBONE_REGISTRY.register()
class CLIPVisionTransformer(CLIPImageEncoder):
    """CLIP's ViT image encoder: all maps have the stride of the patches.

    Taps are taken after blocks round(L * {4, 6, 8, 12} / 12) of L, counted from 1 (the published
    4, 6, 8, 12 of ViT-B).
    """

    kind = "ViT"

    @staticmethod
    def _build_augmentation(node) -> QueryNoise | None:
        return QueryNoise(node.BLOCKS, node.NOISE) if node.ENABLED else None

    @staticmethod
    def _build_tower(visual: nn.Module, noise: nn.Module | None) -> ViTTower:
        depth = len(visual.transformer.resblocks)
        if depth < 4:  # two taps would be the same block
            raise ValueError(f"a ViT of {depth} blocks has no four taps")
        # By share of the depth, so that the taps of a ViT-L are comparable features.
        return ViTTower(visual, [round(depth * k / 12) for k in (4, 6, 8, 12)], noise)


@BACKBONE_REGISTRY.register()
class CLIPModifiedResNet(CLIPImageEncoder):
    """CLIP's ResNet image encoder: taps are its four stages, at strides 4, 8, 16 and 32."""

    kind = "ResNet"

    @staticmethod
    def _build_augmentation(node) -> StyleMixing | None:
        # There is no attention whose queries could get noise, so the style of regions is changed.
        return StyleMixing(node.ALPHA, node.STYLE_NOISE) if node.ENABLED else None

    _build_tower = ResNetTower


def encoder_name(cfg) -> str:
    """Name of a config's encoder: timm's name with MODEL.TIMM.LEVELS, or CLIP's name.

    For a custom backbone it is the name in the registry.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name == "TimmBackbone":
        levels = ", ".join(map(str, cfg.MODEL.TIMM.LEVELS))
        return cfg.MODEL.TIMM.NAME + (f" (levels {levels})" if levels else "")
    return cfg.MODEL.CLIP.NAME if hasattr(BACKBONE_REGISTRY.get(name), "kind") else name


def check_encoder(cfg) -> None:
    """Raise UserError if ``MODEL.BACKBONE.NAME`` is not for the encoder of ``MODEL.CLIP.NAME``."""
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)
    kind = image_encoder_kind(cfg.MODEL.CLIP.NAME)
    fitting = [name for name, other in BACKBONE_REGISTRY if getattr(other, "kind", None) == kind]
    # A custom backbone has no kind, and may use CLIP in any way.
    if getattr(backbone, "kind", kind) != kind:
        raise UserError(
            f"MODEL.BACKBONE.NAME: {cfg.MODEL.BACKBONE.NAME} is for a {backbone.kind}, but the "
            f"image encoder of MODEL.CLIP.NAME '{cfg.MODEL.CLIP.NAME}' is a {kind}: "
            f"use {' or '.join(fitting)}"
        )
