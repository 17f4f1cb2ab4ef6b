"""CLIP's modified ResNet as a Detectron2 backbone."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ..clip import ImageTokens, ResNetTower
from ..semantic_augmentation import StyleMixing
from .encoder import TAPS, CLIPImageEncoder


@BACKBONE_REGISTRY.register()
class CLIPModifiedResNet(CLIPImageEncoder):
    """CLIP's ResNet image encoder: taps are its four stages, at strides 4, 8, 16 and 32.

    A frozen encoder keeps its BatchNorm statistics, whatever ``train()`` says; so does, by default,
    one that was loaded and is fine-tuned.
    """

    kind = "ResNet"

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
            frozen: keep weights, statistics and mode as they are and compute no gradients.
            architecture: name that builds the same architecture without weights.
            frozen_norm: the same for the BatchNorm layers of an encoder that is not frozen.
            augmentation: (B, C, h, w), (B, H, W) -> (B, C, h, w), for the first stage's map and
                the region that it perturbs.
        """
        super().__init__(ResNetTower(visual), frozen, architecture, frozen_norm)
        self.augmentation = augmentation

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        node = cfg.MODEL.SEM_AUG
        mixing = StyleMixing(node.ALPHA) if node.ENABLED else None
        return {
            **super().from_config(cfg, input_shape),
            "frozen_norm": cfg.MODEL.BACKBONE.FREEZE_NORM and bool(cfg.MODEL.CLIP.WEIGHTS),
            "augmentation": mixing,
        }

    def _encode(self, images: Tensor, region: Tensor | None) -> ImageTokens:
        augmentation = self.augmentation
        if augmentation is None or region is None:
            return self.tower(images)
        return self.tower(images, lambda features: augmentation(features, region))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the maps in :meth:`forward`'s result."""
        shapes = {
            name: ShapeSpec(channels=channels, stride=stride)
            for name, channels, stride in zip(
                TAPS, self.tower.widths, self.tower.strides, strict=True
            )
        }
        dense = ShapeSpec(channels=self.tower.embed_dim, stride=self.tower.strides[-1])
        return {**shapes, "dense": dense}

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this."""
        return self.tower.strides[-1]
