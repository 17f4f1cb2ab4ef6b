"""Inference on overlapping windows, averaged by coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UserError


def check_window(size: int, stride: int) -> None:
    """Raise UserError if windows would leave gaps."""
    if size and not 0 < stride <= size:
        raise UserError(f"TEST.WINDOW.STRIDE must be 1 to TEST.WINDOW.SIZE ({size}), not {stride}")


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every ``stride``, the last one shifted inside."""
    count = max(math.ceil((length - size) / stride), 0) + 1  # at least one, on any axis
    return [max(min(i * stride, length - size), 0) for i in range(count)]


def slide(
    image: Tensor,
    predict: Callable[[Tensor], Tensor],
    *,
    size: int,
    stride: int,
    batch: int,
) -> Tensor:
    """Predict on windows and average where they overlap.

    Args:
        image: (3, H, W), any size and aspect; along an axis shorter than ``size`` the window is as
            long as the image.
        predict: (B, 3, h, w) -> (B, C, h, w).
        size: side of the window in pixels; 0 = the whole image.
        stride: step of the window in pixels.
        batch: windows per call of ``predict``.

    Returns:
        (C, H, W) mean over the windows that cover a pixel.
    """
    height, width = image.shape[-2:]
    if size <= 0 or (height <= size and width <= size):
        return predict(image[None])[0]
    h, w = min(size, height), min(size, width)
    corners = [
        (y, x) for y in window_starts(height, h, stride) for x in window_starts(width, w, stride)
    ]
    total = torch.zeros(())  # until the first output says how many maps there are
    coverage = image.new_zeros((height, width), dtype=torch.float32)
    for chunk in (corners[i : i + batch] for i in range(0, len(corners), batch)):
        windows = torch.stack([image[:, y : y + h, x : x + w] for y, x in chunk])
        for (y, x), output in zip(chunk, predict(windows), strict=True):
            if total.ndim == 0:
                total = output.new_zeros((len(output), height, width))
            total[:, y : y + h, x : x + w] += output
            coverage[y : y + h, x : x + w] += 1
    return total.div_(coverage)  # never 0: a stride up to the window's size leaves no gap
