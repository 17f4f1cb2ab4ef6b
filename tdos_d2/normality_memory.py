"""The meta-architecture of a detector that needs only normal frames: no labels, no training."""

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
from .modeling.linear import use_onednn
from .modeling.memory import FeatureMemory, build_memory
from .modeling.scores import resize


@META_ARCH_REGISTRY.register()
class NormalityMemory(ImageModel):
    """Scores a pixel by the distance of its features to those of normal frames.

    The encoder is not changed; only the memory is filled, by :meth:`fit_memory` (see
    tools/fit_memory.py). There are no known classes: ``sem_seg`` has no channels.
    """

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
            backbone: returns the maps of the memory's levels.
            memory: the memory; the grid of its first level is that of the score.
            encoder: name of the backbone in checkpoints.
            image: arguments of :class:`~tdos_d2.modeling.image_model.ImageModel`.
        """
        super().__init__(**image)
        self.backbone = backbone.requires_grad_(False).eval()
        self.size_divisibility = backbone.size_divisibility
        self.memory, self.encoder = memory, encoder
        self.class_names: tuple[str, ...] = ()
        self.score_name, self.extra_scores = "memory", ()
        use_onednn(self)

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
        """Information that must agree with the config of a model that loads the memory."""
        return {
            "class_names": [],
            "clip_name": getattr(self.backbone, "architecture", ""),
            "memory": {"encoder": self.encoder, **self.memory.info()},
        }

    def train(self, mode: bool = True) -> NormalityMemory:
        """Keep the encoder in eval mode, as nothing is trained."""
        return super().train(False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts: ``image`` (3, H, W) in [0, 255], optionally
                ``height`` and ``width`` of the original image.

        Returns:
            Per input, ``ood_score`` (H, W) float32 at original size, in [0, 2], larger = more
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
        """Fill the memory with features of normal frames, drawn at random.

        Args:
            images: (3, H, W) frames in [0, 255], iterated over twice: a list or a dataset.
            seed: seed of the random selection.

        Returns:
            The number of vectors, at most the memory's size.

        Raises:
            UserError: there are no frames.
        """
        with torch.no_grad():
            return self.memory.fit(self._features_of(images), seed)

    def match_checkpoint(self, state: Mapping[str, Tensor]) -> None:
        """Resize the memory to that in a checkpoint before this is loaded."""
        self.memory.match(state, "memory.")

    def _decode(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        height, width = size
        padded = self._padded_size(height), self._padded_size(width)
        return resize(self.memory(features)[:, None], padded)[..., :height, :width]
