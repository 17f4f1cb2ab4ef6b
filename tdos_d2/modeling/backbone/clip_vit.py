"""CLIP's ViT as a Detectron2 backbone."""

from __future__ import annotations

import logging

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from ..clip import ViTTower, build_clip

logger = logging.getLogger(__name__)

TAPS = ("tap1", "tap2", "tap3", "tap4")


@BACKBONE_REGISTRY.register()
class CLIPVisionTransformer(Backbone):
    """CLIP's ViT image encoder: four intermediate maps, the image embedding, the dense embedding.

    Taps are taken after blocks round(L * {4, 6, 8, 12} / 12) of L, counted from 1 (the published
    4, 6, 8, 12 of ViT-B).
    """

    @configurable
    def __init__(self, *, visual: torch.nn.Module, frozen: bool, architecture: str) -> None:
        """
        Args:
            visual: the ``visual`` of an open_clip ``CLIP`` model.
            frozen: keep weights and mode as they are and compute no gradients.
            architecture: name that builds the same architecture without weights.
        """
        super().__init__()
        depth = len(visual.transformer.resblocks)
        if depth < 4:
            raise ValueError(f"a ViT of {depth} blocks has no four taps")
        self.tower = ViTTower(visual, [round(depth * k / 12) for k in (4, 6, 8, 12)])
        self.frozen = frozen
        self.architecture = architecture
        if frozen:
            self.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        clip, architecture = build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS)
        if not cfg.MODEL.CLIP.WEIGHTS:
            logger.info(
                "MODEL.CLIP.WEIGHTS is empty: CLIP starts from random weights; the image encoder "
                "is trained, and the text side carries no meaning of words"
            )
        return {
            "visual": clip.visual,
            "frozen": cfg.MODEL.CLIP.FREEZE_IMAGE and bool(cfg.MODEL.CLIP.WEIGHTS),
            "architecture": architecture,
        }

    def train(self, mode: bool = True) -> CLIPVisionTransformer:
        """Set the mode of everything but a frozen tower, which stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), H and W multiples of ``size_divisibility``.

        Returns:
            ``tap1`` ... ``tap4`` (B, C, h, w) with h = H / patch size; ``embedding`` (B, D);
            ``dense`` (B, D, h, w), patch tokens in CLIP's text space.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.tower(images)
        features = dict(zip(TAPS, tokens.taps, strict=True))
        return {**features, "embedding": tokens.embedding, "dense": tokens.dense}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the maps in :meth:`forward`'s result."""
        stride = self.tower.patch_size
        shapes = {name: ShapeSpec(channels=self.tower.width, stride=stride) for name in TAPS}
        return {**shapes, "dense": ShapeSpec(channels=self.tower.embed_dim, stride=stride)}

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this."""
        return self.tower.patch_size
