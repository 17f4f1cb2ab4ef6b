"""A bounded memory of normal features: what is far from all of them is anomalous.

PatchCore's idea (arXiv 2106.08265) for driving scenes: frozen features of normal frames are
kept, and a place is the more anomalous the less it looks like the nearest of them. No labels, no
training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

# Similarities held at a time in the search: 64 MiB in float32.
_BLOCK = 2**24


class FeatureMemory(nn.Module):
    """Unit vectors of normal places, and the distance of other places to the nearest of them.

    A vector joins the levels of the place: each level is centred with the mean of normal features,
    brought to unit length and resized to the grid of the first level; together they have unit
    length again, so that a cosine of two vectors is the mean of the levels' cosines.

    Args:
        channels: of each level.
        size: vectors at most.
        neighbours: k, how many of the nearest vectors count.
    """

    def __init__(self, channels: Sequence[int], size: int, neighbours: int = 3) -> None:
        super().__init__()
        self.channels, self.neighbours = tuple(channels), neighbours
        self.register_buffer("mean", torch.zeros(sum(channels)))
        self.register_buffer("vectors", torch.zeros(size, sum(channels)))
        self.register_buffer("count", torch.tensor(0))

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) maps, the grid that counts first -> (B, sum C_i, h_0, w_0) unit."""
        grid = levels[0].shape[-2:]
        parts = []
        for level, mean in zip(levels, self.mean.split(self.channels), strict=True):
            centred = F.normalize(level.float() - mean[:, None, None], dim=1)
            if centred.shape[-2:] != grid:
                centred = F.interpolate(centred, size=grid, mode="bilinear", align_corners=False)
                centred = F.normalize(centred, dim=1)
            parts.append(centred)
        return torch.cat(parts, dim=1) / len(parts) ** 0.5  # the norm of n joined unit vectors

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) maps -> (B, h_0, w_0): 1 - mean cosine to the k nearest, in [0, 2].

        Raises:
            UserError: the memory is empty.
        """
        if not self.count:
            raise UserError("the memory is empty: fill it with tools/fit_memory.py")
        embedded = self.embed(levels)
        queries = embedded.permute(0, 2, 3, 1).flatten(0, 2)
        vectors = self.vectors[: int(self.count)].to(queries.dtype)
        step = max(_BLOCK // len(vectors), 1)
        k = min(self.neighbours, len(vectors))
        # In blocks: all cosines at once may not fit into memory.
        near = [(q @ vectors.T).topk(k, dim=1).values.mean(1) for q in queries.split(step)]
        return (1 - torch.cat(near)).view(len(embedded), *embedded.shape[-2:])
