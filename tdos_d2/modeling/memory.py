"""A bounded memory of normal features; features far from all of them are anomalous.

This is PatchCore's idea (arXiv 2106.08265) for driving scenes: frozen features of normal frames are
stored, and the score of a location is its distance to the nearest of them. It needs no labels and
no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import UserError
from ..value_checks import check_positive
from .linear import linear

# Locations and vectors that a search compares at a time: 64 MiB of cosines.
_LOCATIONS, _BLOCK = 8192, 2048
# What is around the frames that a memory is fitted with; of an earlier version it was their border.
PADDING = "mean colour"


class Encoded(NamedTuple):
    """An encoder's maps (1, C, h, w) of an image or a window by name.

    ``filled`` is the share of their height and width that the image fills; the rest is padding.
    """

    maps: Mapping[str, Tensor]
    filled: tuple[float, float] = (1.0, 1.0)

    def of_image(self, maps: Tensor) -> Tensor:
        """The cells of maps (B, C, h, w) whose centres are in the image, at least one."""
        sides = zip(self.filled, maps.shape[-2:], strict=True)
        # A centre on the border is outside, also where the product is rounded up.
        rows, columns = (max(math.ceil(share * n - 0.5 - 1e-6), 1) for share, n in sides)
        return maps[..., :rows, :columns]


class FeatureMemory(nn.Module):
    """Unit vectors of normal locations, and the distance of other locations to the nearest of them.

    A vector concatenates the levels at a location: each level is centred by the mean of normal
    features, normalised to unit length and resized to the grid of the first level. The whole vector
    is scaled to unit length, so that the cosine of two vectors is the mean of the levels' cosines.

    Args:
        levels: names of the encoder's maps; the first one determines the grid.
        channels: channels of each level.
        size: largest number of vectors.
        neighbours: k, the number of nearest vectors in the score.
    """

    def __init__(
        self, levels: Sequence[str], channels: Sequence[int], size: int, neighbours: int = 3
    ) -> None:
        super().__init__()
        self.levels, self.channels = tuple(levels), tuple(channels)
        self.size, self.neighbours = size, neighbours
        self.register_buffer("mean", torch.zeros(sum(channels)))
        self.register_buffer("vectors", torch.zeros(0, sum(channels)))

    def embed(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) by name -> (B, sum C_i, h_0, w_0) of unit length."""
        maps = [features[level].float() for level in self.levels]
        grid = maps[0].shape[-2:]
        parts = []
        for level, mean in zip(maps, self.mean.split(self.channels), strict=True):
            centred = F.normalize(level - mean[:, None, None], dim=1)
            if centred.shape[-2:] != grid:
                centred = F.interpolate(centred, size=grid, mode="bilinear", align_corners=False)
                centred = F.normalize(centred, dim=1)
            parts.append(centred)
        return torch.cat(parts, dim=1) / len(parts) ** 0.5  # the norm of n joined unit vectors

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) by name -> (B, h_0, w_0): 1 - mean cosine to the k nearest
        vectors, in [0, 2].

        Raises:
            UserError: the memory is empty.
        """
        if not len(self.vectors):
            raise UserError("the memory is empty: fill it with tools/fit_memory.py")
        # Under autocast the products would be rounded to half precision, which causes ties.
        with torch.autocast(self.vectors.device.type, enabled=False):
            embedded = self.embed(features)
            queries = embedded.permute(0, 2, 3, 1).flatten(0, 2)
            # An exported model may have any number of locations; its vectors are fixed.
            exported = torch.compiler.is_exporting()
            parts = (queries,) if exported else queries.split(_LOCATIONS)
            vectors = self.vectors.float()
            cosines = torch.cat([self._similarity(part, vectors) for part in parts])
        return (1 - cosines).view(-1, *embedded.shape[-2:])

    def _similarity(self, queries: Tensor, vectors: Tensor) -> Tensor:
        """(N, sum C_i), (M, sum C_i) unit vectors -> (N,): mean cosine to the k nearest of M."""
        k = min(self.neighbours, len(vectors))
        # All cosines at once may not fit into memory: find the nearest in each block, then among
        # those.
        near = [
            linear(queries, block).topk(min(k, len(block)), dim=1).values
            for block in vectors.split(_BLOCK)
        ]
        return torch.cat(near, dim=1).topk(k, dim=1).values.mean(1)

    @torch.no_grad()
    def fit(self, frames: Iterable[Encoded], seed: int) -> int:
        """Fill the memory with features of normal frames, drawn at random; not with padding.

        Args:
            frames: frames or their windows, iterated over twice: a list or a dataset.
            seed: seed of the random selection.

        Returns:
            The number of vectors, at most the memory's size.

        Raises:
            UserError: there are no frames.
        """
        total, cells, count = torch.zeros_like(self.mean), 0, 0
        for frame in frames:
            maps = [frame.of_image(frame.maps[level]).float() for level in self.levels]
            total += torch.cat([level.mean(dim=(0, 2, 3)) for level in maps])
            cells += maps[0][:, 0].numel()
            count += 1
        if not count:
            raise UserError("there is no normal frame to fit the memory with")
        self.mean.copy_(total / count)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(cells, generator=generator)[: self.size].sort().values
        kept, taken = [], 0
        for frame in frames:
            embedded = frame.of_image(self.embed(frame.maps))
            vectors = embedded.permute(0, 2, 3, 1).flatten(0, 2)
            here = chosen[(chosen >= taken) & (chosen < taken + len(vectors))] - taken
            kept.append(vectors[here.to(vectors.device)])
            taken += len(vectors)
        self.vectors = torch.cat(kept)
        return len(self.vectors)

    def info(self) -> dict[str, Any]:
        """Levels, number of vectors and padding of the frames, for a checkpoint."""
        vectors = len(self.vectors)
        return {"levels": list(self.levels), "vectors": vectors, "padding": PADDING}

    def match(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Resize the buffers to the number of vectors in a checkpoint."""
        vectors = state.get(f"{prefix}vectors")
        if vectors is not None and vectors.shape[1:] == self.vectors.shape[1:]:
            self.vectors = self.vectors.new_zeros(len(vectors), vectors.shape[1])

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        self.match(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)


def build_memory(cfg, shapes: Mapping[str, ShapeSpec]) -> FeatureMemory:
    """Build the memory of ``MODEL.MEMORY``.

    Args:
        cfg: config.
        shapes: shapes of the encoder's maps.

    Raises:
        UserError: there is no level, or the encoder lacks one.
    """
    check_positive(cfg, "MODEL.MEMORY", "SIZE", "NEIGHBOURS")
    node = cfg.MODEL.MEMORY
    if not node.LEVELS or not set(node.LEVELS) <= set(shapes):
        raise UserError(
            f"MODEL.MEMORY.LEVELS: this encoder has {', '.join(shapes)}, not {node.LEVELS}"
        )
    channels = [shapes[level].channels for level in node.LEVELS]
    return FeatureMemory(node.LEVELS, channels, node.SIZE, node.NEIGHBOURS)


class FeaturesOf:
    """The encoded parts of frames, computed again in each iteration over them."""

    def __init__(
        self, images: Iterable[Tensor], encode: Callable[[Tensor], Iterable[Encoded]]
    ) -> None:
        self.images, self.encode = images, encode

    def __iter__(self) -> Iterator[Encoded]:
        for image in self.images:
            yield from self.encode(image)
