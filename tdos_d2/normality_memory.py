"""The meta-architecture of a detector that needs normal frames only: no labels, no training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from .errors import UserError
from .modeling.memory import FeatureMemory
from .modeling.scores import resize
from .modeling.sliding_window import slide


@META_ARCH_REGISTRY.register()
class NormalityMemory(nn.Module):
    """Scores a pixel by how far its features are from all features of normal frames.

    The encoder stays as it is; what is learned is the memory, which :meth:`fit` fills (see
    tools/fit_memory.py). There are no known classes: ``sem_seg`` has no channels.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        memory: FeatureMemory,
        levels: Sequence[str] = ("tap3", "tap4"),
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        window_size: int = 0,
        window_stride: int = 341,
        window_batch: int = 4,
    ) -> None:
        """
        Args:
            backbone: gives the maps in ``levels``.
            memory: for the channels of these maps.
            levels: names of maps; the first one's grid is that of the score.
            pixel_mean: per channel, in the order of the images given.
            pixel_std: per channel.
            window_size: side of the sliding window in pixels, 0 = whole image.
            window_stride: its step in pixels.
            window_batch: windows per forward pass.
        """
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.memory = memory
        self.levels = tuple(levels)
        self.class_names: tuple[str, ...] = ()
        self.score_name, self.extra_scores = "memory", ()
        self.window = {"size": window_size, "stride": window_stride, "batch": window_batch}
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node = cfg.MODEL.MEMORY
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        unknown = [level for level in node.LEVELS if level not in shapes]
        if unknown or not node.LEVELS:
            raise UserError(
                f"MODEL.MEMORY.LEVELS: this encoder has {', '.join(shapes)}, not {node.LEVELS}"
            )
        channels = [shapes[level].channels for level in node.LEVELS]
        return {
            "backbone": backbone,
            "memory": FeatureMemory(channels, node.SIZE, node.NEIGHBOURS),
            "levels": node.LEVELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "window_size": cfg.TEST.WINDOW.SIZE,
            "window_stride": cfg.TEST.WINDOW.STRIDE,
            "window_batch": cfg.TEST.WINDOW.BATCH,
        }

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

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
            score = resize(slide(self._normalise(image), self._predict, **self.window)[None], size)
            outputs.append({"sem_seg": score[0, :0], "ood_score": score[0, 0]})
        return outputs

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor], *, seed: int = 0) -> int:
        """Fill the memory with features of normal frames, drawn at random and equally of each.

        Args:
            images: (3, H, W) frames in [0, 255], gone through twice: a list or a dataset.
            seed: of the drawing.

        Returns:
            The number of vectors, at most the memory's size.

        Raises:
            UserError: there is no frame.
        """
        generator = torch.Generator().manual_seed(seed)
        total, cells, count = torch.zeros_like(self.memory.mean), 0, 0
        for image in images:
            maps = self._levels(self._normalise(image)[None])
            total += torch.cat([level.float().mean(dim=(0, 2, 3)) for level in maps])
            cells += maps[0][0, 0].numel()
            count += 1
        if not count:
            raise UserError("there is no normal frame to fit the memory with")
        self.memory.mean.copy_(total / count)
        size = len(self.memory.vectors)
        chosen, taken = torch.randperm(cells, generator=generator)[:size].sort().values, 0
        kept = []
        for image in images:
            vectors = self.memory.embed(self._levels(self._normalise(image)[None]))[0].flatten(1).T
            here = chosen[(chosen >= taken) & (chosen < taken + len(vectors))] - taken
            kept.append(vectors[here.to(vectors.device)])
            taken += len(vectors)
        count = sum(map(len, kept))
        self.memory.vectors[:count] = torch.cat(kept)
        self.memory.count.fill_(count)
        return count

    def _levels(self, images: Tensor) -> list[Tensor]:
        d = self.backbone.size_divisibility
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % d, 0, -height % d), mode="replicate")
        features = self.backbone(padded)
        return [features[level] for level in self.levels]

    def _predict(self, windows: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 1, h, w)."""
        d = self.backbone.size_divisibility
        height, width = windows.shape[-2:]
        padded = (height + -height % d, width + -width % d)
        with torch.autocast(self.device.type, enabled=False):
            score = self.memory([level.float() for level in self._levels(windows)])
        return resize(score[:, None], padded)[..., :height, :width]

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std
