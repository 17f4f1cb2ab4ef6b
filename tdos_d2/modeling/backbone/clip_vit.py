"""CLIP's ViT as a Detectron2 backbone."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ..clip import ImageTokens, ViTTower
from ..semantic_augmentation import QueryNoise
from .encoder import TAPS, CLIPImageEncoder


@BACKBONE_REGISTRY.register()
class CLIPVisionTransformer(CLIPImageEncoder):
    """CLIP's ViT image encoder: all maps have the stride of the patches.

    Taps are taken after blocks round(L * {4, 6, 8, 12} / 12) of L, counted from 1 (the published
    4, 6, 8, 12 of ViT-B).
    """

    kind = "ViT"

    @configurable
    def __init__(
        self,
        *,
        visual: nn.Module,
        frozen: bool,
        architecture: str,
        augmentation: nn.Module | None = None,
    ) -> None:
        """
        Args:
            visual: the ``visual`` of an open_clip ``CLIP`` model.
            frozen: keep weights and mode as they are and compute no gradients.
            architecture: name that builds the same architecture without weights.
            augmentation: a ``QueryNoise``.
        """
        depth = len(visual.transformer.resblocks)
        if depth < 4:
            raise ValueError(f"a ViT of {depth} blocks has no four taps")
        tower = ViTTower(visual, [round(depth * k / 12) for k in (4, 6, 8, 12)], augmentation)
        super().__init__(tower, frozen, architecture)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        node = cfg.MODEL.SEM_AUG
        noise = QueryNoise(node.BLOCKS, node.NOISE) if node.ENABLED else None
        return {**super().from_config(cfg, input_shape), "augmentation": noise}

    def _encode(self, images: Tensor, region: Tensor | None) -> ImageTokens:
        return self.tower(images, region)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the maps in :meth:`forward`'s result."""
        stride = self.tower.patch_size
        shapes = {name: ShapeSpec(channels=self.tower.width, stride=stride) for name in TAPS}
        return {**shapes, "dense": ShapeSpec(channels=self.tower.embed_dim, stride=stride)}

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this."""
        return self.tower.patch_size
