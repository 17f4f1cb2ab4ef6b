"""Multi-scale deformable attention without a compiled extension, on any device, exportable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .deformable_sampling import sum_of_samples
from .transformer_layers import init_xavier


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples (Deformable DETR, equation 3).

    Args:
        value: (B, S, H, D), the L levels concatenated, S = sum of h * w; H heads.
        shapes: (h, w) of each level.
        locations: (B, Q, H, L, P, 2), sampling points (x, y) in [0, 1] over a whole level; samples
            outside are zero.
        weights: (B, Q, H, L, P), summing to 1 over L and P.

    Returns:
        (B, Q, H * D).
    """
    batch, queries, heads, _, points = locations.shape[:5]
    # (B * H, L, 1, P * Q, 2): on a CPU grid_sample is vectorised only along the last axis, and sums
    # are fast along any other axis.
    # grid_sample's coordinates are from -1 to 1.
    grids = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(3, 4).flatten(0, 1)[:, :, None]
    # L maps (B * H, D, h * w)
    levels = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=-1)
    samples = [  # L times (B * H, D, P, Q)
        F.grid_sample(
            level.unflatten(-1, shape), grids[:, i], padding_mode="zeros", align_corners=False
        ).view(batch * heads, -1, points, queries)
        for i, (level, shape) in enumerate(zip(levels, shapes, strict=True))
    ]
    weights = weights.permute(0, 2, 3, 4, 1).reshape(batch * heads, 1, -1, queries)
    output = (torch.cat(samples, dim=2) * weights).sum(2)  # sum over L * P: (B * H, D, Q)
    return output.view(batch, -1, queries).transpose(1, 2)


def _attend(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    weights: Tensor,
) -> Tensor:
    """(B, Q, H * D), with (Q, 2) ``reference`` and (B, Q, H, L, P, 2) ``offsets`` from it.

    Offsets are in cells of their level, so all levels start with the same pattern.
    """
    sizes = torch.tensor([(w, h) for h, w in shapes], device=value.device).view(-1, 1, 2)
    reference = reference[:, None, None, None]
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if value.device.type == "cpu" and not traced:
        return sum_of_samples(value, shapes, reference * sizes - 0.5 + offsets, weights)
    locations = reference + offsets / sizes
    if traced or not torch.is_grad_enabled():
        return multi_scale_deformable_attention(value, shapes, locations, weights)
    # Samples, which take most of a layer's memory, are computed again in the backward pass.
    return checkpoint(
        multi_scale_deformable_attention, value, shapes, locations, weights, use_reentrant=False
    )


class MultiScaleDeformableAttention(nn.Module):
    """Deformable self-attention over a pyramid.

    Args:
        dim: channels; a multiple of ``num_heads``.
        num_levels: levels of the pyramid.
        num_heads: heads.
        num_points: sampling points per head and level.
    """

    def __init__(
        self, dim: int, num_levels: int = 3, num_heads: int = 8, num_points: int = 4
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of {num_heads} heads")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        samples = num_heads * num_levels * num_points
        self.offsets = nn.Linear(dim, 2 * samples)
        self.weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        # Heads start with different directions, and their points at increasing distances.
        nn.init.zeros_(self.offsets.weight)  # at the start only the bias moves points
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        # Projected onto a square: point p is p cells away along x, y or both.
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        bias = directions[:, None, None] * steps.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.weights.weight)  # softmax of zeros: equal weights for all samples
        nn.init.zeros_(self.weights.bias)
        init_xavier(self.value_proj, self.output_proj)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C).
            reference: (Q, 2), point (x, y) in [0, 1] of each query.
            value: (B, S, C), the levels concatenated.
            shapes: (h, w) of each level.

        Returns:
            (B, Q, C).
        """
        split = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.offsets(query).unflatten(-1, (*split, 2))
        weights = self.weights(query).unflatten(-1, (self.num_heads, -1))
        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        # Sampling in float32: half precision is too coarse for positions on a large map.
        with torch.autocast(query.device.type, enabled=False):
            weights = weights.float().softmax(-1).unflatten(-1, split[1:])  # over L * P
            output = _attend(value.float(), shapes, reference, offsets.float(), weights)
        return self.output_proj(output.to(query.dtype))
