"""Sine position encodings of maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(
    height: int, width: int, dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Normalised 2-D sine encoding (DETR, section A.4): half of the channels for y, half for x.

    Args:
        height: rows of the map.
        width: columns of the map.
        dim: channels, a multiple of 4.
        device: where to make it.

    Returns:
        (height * width, dim) float32, row by row.
    """
    # dim / 4 frequencies; the sine and cosine of each, for y and for x, are the dim channels.
    frequencies = 10000 ** (-torch.arange(0, dim // 2, 2, device=device) / (dim // 2))

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device)  # from 1, as DETR counts
        # Divided by a tensor: ONNX has no number that depends on the size of the input.
        angle = (2 * math.pi * position / position[-1])[:, None] * frequencies
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # alternating

    y, x = encode(height), encode(width)
    y = y[:, None].expand(-1, width, -1)
    x = x[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)
