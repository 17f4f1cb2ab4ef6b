"""Test-time augmentation: mean of the outputs for flipped and resized versions of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor, nn

from ..value_checks import check_positive

_OUTPUTS = ("sem_seg", "ood_score", "ood_scores")


class SemanticSegmentorWithTTA(nn.Module):
    """Calls a segmentation model with versions of an image and averages its outputs.

    Versions are those of Detectron2's ``TEST.AUG``: every size, and each of them flipped.
    ``sem_seg``, ``ood_score`` and ``ood_scores`` are averaged without conversion: for a logarithmic
    score, the logarithms are averaged.
    """

    @configurable
    def __init__(
        self, *, model: nn.Module, min_sizes: Sequence[int] = (), max_size: int = 4000, flip: bool
    ) -> None:
        """
        Args:
            model: takes Detectron2's list of dicts, returns outputs of size ``height``, ``width``.
            min_sizes: shorter sides of the resized versions in pixels; empty = the image's size.
            max_size: largest longer side.
            flip: also use mirror images.
        """
        super().__init__()
        self.model = model
        self.resizes = [ResizeShortestEdge(size, max_size) for size in min_sizes]
        self.flip = flip

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> dict[str, Any]:
        check_positive(cfg, "TEST.AUG", "MIN_SIZES", "MAX_SIZE")
        node = cfg.TEST.AUG
        return {
            "model": model,
            "min_sizes": node.MIN_SIZES,
            "max_size": node.MAX_SIZE,
            "flip": node.FLIP,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Inputs and outputs are those of the model in evaluation."""
        return [self._average(inputs) for inputs in batched_inputs]

    def _average(self, inputs: dict[str, Any]) -> dict[str, Any]:
        height, width = inputs["image"].shape[-2:]
        # The model resizes the maps of every version to this size, so that they can be added.
        inputs = {"height": height, "width": width, **inputs}
        total, number = None, 0  # a running sum keeps the maps of only one version in memory
        for image in self._sizes(inputs["image"]):
            for mirrored in (False, True) if self.flip else (False,):
                version = image.flip(-1) if mirrored else image
                (output,) = self.model([{**inputs, "image": version}])
                maps = {key: output[key] for key in _OUTPUTS if key in output}
                maps = _each_map(lambda x: x.flip(-1), maps) if mirrored else maps
                total = maps if total is None else _each_map(torch.add, total, maps)
                number += 1
        return _each_map(lambda x: x / number, total)

    def _sizes(self, image: Tensor) -> Iterator[Tensor]:
        """(3, H, W) uint8 -> the same image in the requested sizes."""
        if not self.resizes:
            yield image
        # Detectron2's transforms are for (H, W, C) arrays.
        array = image.permute(1, 2, 0).cpu().numpy()
        for resize in self.resizes:
            resized = resize.get_transform(array).apply_image(array)
            yield torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _each_map(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """``function`` of maps, or of the maps with the same keys in (nested) dicts."""
    if isinstance(outputs[0], Mapping):
        return {key: _each_map(function, *(x[key] for x in outputs)) for key in outputs[0]}
    return function(*outputs)
