"""What CLIP's two kinds of image encoder have in common as Detectron2 backbones."""

from __future__ import annotations

import logging

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ..clip import ImageTokens, build_clip, image_encoder_kind

logger = logging.getLogger(__name__)

TAPS = ("tap1", "tap2", "tap3", "tap4")


class FreezableEncoder(Backbone):
    """An image encoder that is frozen as a whole, in its BatchNorm layers, or not at all."""

    def freeze(self, whole: bool, norms: bool) -> None:
        """Say what is frozen, once all parts are there.

        Args:
            whole: keep weights, statistics and mode as they are and compute no gradients.
            norms: keep the BatchNorm layers of a trained encoder as they are.
        """
        self.frozen, self.frozen_norm = whole, norms
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)  # new modules are in training mode, frozen parts included

    def train(self, mode: bool = True) -> FreezableEncoder:
        """Set the mode of everything but what is frozen, which stays in eval mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen:
            return list(self.children())
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
        return norms if self.frozen_norm else []


class CLIPImageEncoder(FreezableEncoder):
    """Four intermediate maps, the image embedding and the dense embedding of a CLIP encoder."""

    kind: str  # of ``image_encoder_kind``

    def __init__(
        self, tower: nn.Module, frozen: bool, architecture: str, frozen_norm: bool = False
    ) -> None:
        """
        Args:
            tower: of ``tdos_d2.modeling.clip``.
            frozen: keep weights, statistics and mode as they are and compute no gradients.
            architecture: name that builds the same architecture without weights.
            frozen_norm: keep the BatchNorm layers of a trained encoder as they are.
        """
        super().__init__()
        self.tower = tower
        self.architecture = architecture
        self.freeze(frozen, frozen_norm)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        check_encoder(cfg)
        node = cfg.MODEL.CLIP
        clip, architecture = build_clip(node.NAME, node.WEIGHTS, node.ACTIVATION)
        if not node.WEIGHTS:
            logger.info(
                "MODEL.CLIP.WEIGHTS is empty: CLIP starts from random weights; the image encoder "
                "is trained, and text embeddings have no language meaning"
            )
        return {
            "visual": clip.visual,
            "frozen": node.FREEZE_IMAGE and bool(node.WEIGHTS),
            "architecture": architecture,
        }

    def forward(self, images: Tensor, region: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), H and W multiples of ``size_divisibility``.
            region: (B, H, W) in [0, 1], 1 where semantic augmentation perturbs; None: nowhere.

        Returns:
            ``tap1`` ... ``tap4`` (B, C, h, w) of the strides in ``output_shape``; ``embedding``
            (B, D); ``dense`` (B, D, h, w) in CLIP's text space.
        """
        # A frozen encoder has no backward pass: keep no activations for it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self._encode(images, region)
        features = dict(zip(TAPS, tokens.taps, strict=True))
        return {**features, "embedding": tokens.embedding, "dense": tokens.dense}

    def _encode(self, images: Tensor, region: Tensor | None) -> ImageTokens:
        raise NotImplementedError


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
