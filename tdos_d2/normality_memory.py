"""The meta-architecture of a detector that needs normal frames only: no labels, no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor

from .errors import UserError
from .modeling.backbone import encoder_name
from .modeling.image_model import ImageModel
from .modeling.memory import FeatureMemory, build_memory
from .modeling.scores import resize


@META_ARCH_REGISTRY.register()
class NormalityMemory(ImageModel):
    """Scores a pixel by how far its features are from all features of normal frames.

    The encoder stays as it is; what is learned is the memory, which :meth:`fit_memory` fills (see
    tools/fit_memory.py). There are no known classes: ``sem_seg`` has no channels.
    """

    padding = "replicate"  # the mean colour would be far from all features

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        memory: FeatureMemory,
        encoder: str = "",
        **image: Any,
    ) -> None:
        """
        Args:
            backbone: gives the maps that the memory keeps.
            memory: its first level's grid is that of the score.
            encoder: what the backbone is called in checkpoints.
            image: of :class:`~tdos_d2.modeling.image_model.ImageModel`.
        """
        super().__init__(**image)
        self.backbone = backbone.requires_grad_(False).eval()
        self.size_divisibility = backbone.size_divisibility
        self.memory, self.encoder = memory, encoder
        self.class_names: tuple[str, ...] = ()
        self.score_name, self.extra_scores = "memory", ()

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        if cfg.MODEL.TDOS.EXTRA_SCORES:
            raise UserError("MODEL.TDOS.EXTRA_SCORES: a NormalityMemory has no score but its own")
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "encoder": encoder_name(cfg),
            "memory": build_memory(cfg, backbone.output_shape()),
            **cls.image_config(cfg),
        }

    def checkpoint_info(self) -> dict[str, Any]:
        """What must agree with the config of a model that loads the memory."""
        return {
            "class_names": [],
            "clip_name": getattr(self.backbone, "architecture", ""),
            "memory": {
                "encoder": self.encoder,
                "levels": list(self.memory.levels),
                "vectors": len(self.memory.vectors),
            },
        }

    def train(self, mode: bool = True) -> NormalityMemory:
        """Nothing is trained: the encoder stays in eval mode."""
        return super().train(False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts: ``image`` (3, H, W) in [0, 255], optionally
                ``height`` and ``width`` of the original image.

        Returns:
            Per input ``ood_score`` (H, W) float32 at original size, in [0, 2], larger = more
            anomalous, and ``sem_seg`` (0, H, W).
        """
        outputs = []
        for inputs in batched_inputs:
            image = inputs["image"]
            size = (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
            score = resize(self._slide(image)[None], size)
            outputs.append({"sem_seg": score[0, :0], "ood_score": score[0, 0]})
        return outputs

    def fit_memory(self, images: Iterable[Tensor], *, seed: int = 0) -> int:
        """Fill the memory with features of normal frames, drawn at random and equally of each.

        Args:
            images: (3, H, W) frames in [0, 255], gone through twice: a list or a dataset.
            seed: of the drawing.

        Returns:
            The number of vectors, at most the memory's size.

        Raises:
            UserError: there is no frame.
        """
        with torch.no_grad():
            return self.memory.fit(self._features_of(images), seed)

    def match_checkpoint(self, state: Mapping[str, Tensor]) -> None:
        """Give the memory the size that it has in a checkpoint that is about to be loaded."""
        self.memory.match(state, "memory.")

    def _decode(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        height, width = size
        padded = self._padded_size(height), self._padded_size(width)
        return resize(self.memory(features)[:, None], padded)[..., :height, :width]
