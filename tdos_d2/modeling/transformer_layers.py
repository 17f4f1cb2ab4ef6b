"""Attention, feed-forward layers and sine positions, shared by the decoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_xavier(*layers: nn.Module) -> None:
    """Xavier-uniform weights, biases of 0."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Attention(nn.Module):
    """Multi-head attention through ``scaled_dot_product_attention``.

    Args:
        dim: channels of query and output; a multiple of ``num_heads``.
        num_heads: number of heads.
        bias: whether the query, key and value projections have a bias.
        dropout: dropout on attention weights and on the output, in training.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: (B, S, C).
            value: (B, S, C).
            blocked: (B, Q, S) bool, True where a query must not attend; no row may be all True.

        Returns:
            (B, Q, C).
        """
        # (B, S, C) -> (B, heads, S, C / heads)
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        # (B, 1, Q, S), the same for all heads; True = attend, unlike in nn.MultiheadAttention.
        allowed = None if blocked is None else ~blocked[:, None]
        dropout = self.dropout.p if self.training else 0.0  # a function, without a mode
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.dropout(self.out_proj(x.transpose(1, 2).flatten(2)))  # concatenate the heads


# In place, which saves writing a map of the hidden width.
_RELU = partial(nn.ReLU, inplace=True)


class FeedForward(nn.Sequential):
    """Linear, activation, linear: (..., C) -> (..., C)."""

    def __init__(
        self, dim: int, hidden_dim: int, activation: Callable[[], nn.Module] = _RELU
    ) -> None:
        super().__init__(nn.Linear(dim, hidden_dim), activation(), nn.Linear(hidden_dim, dim))
        init_xavier(self[0], self[2])


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def sine_positions(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Normalised 2-D sine encoding (DETR, section A.4): half of the channels for y, half for x.

    Args:
        height: rows of the map.
        width: columns of the map.
        dim: channels, a multiple of 4.
        device: device of the result.

    Returns:
        (height * width, dim) float32, row by row.
    """
    # dim / 4 frequencies; the sine and cosine of each, for y and for x, are the dim channels.
    frequencies = 10000 ** (-torch.arange(0, dim // 2, 2, device=device) / (dim // 2))

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device)  # from 1, as DETR counts
        # Divided by a tensor: in ONNX, plain numbers cannot depend on the size of the input.
        angle = (2 * math.pi * position / position[-1])[:, None] * frequencies
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # alternating

    y, x = encode(height), encode(width)
    y = y[:, None].expand(-1, width, -1)
    x = x[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)
