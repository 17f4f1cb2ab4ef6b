"""Inference on overlapping windows, averaged by coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

# What is averaged where windows overlap: "window" = outputs, "image" = maps of the encoder.
DECODE = ("window", "image")


def check_window(size: int, stride: int, decode: str = "window") -> None:
    """Raise UserError if windows would leave gaps, or ``decode`` is unknown."""
    if size and not 0 < stride <= size:
        raise UserError(f"TEST.WINDOW.STRIDE must be 1 to TEST.WINDOW.SIZE ({size}), not {stride}")
    if decode not in DECODE:
        raise UserError(f"TEST.WINDOW.DECODE must be {' or '.join(DECODE)}, not '{decode}'")


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis: every ``stride``, the last one shifted inside."""
    count = max(math.ceil((length - size) / stride), 0) + 1  # at least one, on any axis
    return [max(min(i * stride, length - size), 0) for i in range(count)]


def windows_at_once(batch: int, device: torch.device) -> int:
    """Windows per forward pass: ``batch``, or if that is 0 the number that suits the device.

    On a CPU several windows take as long together as one by one, and their maps more memory.
    """
    return batch or (1 if device.type == "cpu" else 4)


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
        image: (3, H, W), of any size and aspect ratio; along an axis shorter than ``size`` the
            window is as long as the image.
        predict: (B, 3, h, w) -> (B, C, h, w).
        size: side of the window in pixels; 0 = the whole image.
        stride: stride of the window in pixels.
        batch: windows per call of ``predict``; 0 = by the device.

    Returns:
        (C, H, W) mean over the windows that cover a pixel.
    """
    height, width = image.shape[-2:]
    if not needs_windows(image, size):
        return predict(image[None])[0]
    total = torch.zeros(())  # until the first output gives the number of maps
    coverage = image.new_zeros((height, width), dtype=torch.float32)
    for corners, parts in windows(image, size, stride, batch):
        h, w = parts.shape[-2:]
        for (y, x), output in zip(corners, predict(parts), strict=True):
            if total.ndim == 0:
                total = output.new_zeros((len(output), height, width))
            total[:, y : y + h, x : x + w] += output
            coverage[y : y + h, x : x + w] += 1
    return total.div_(coverage)  # never 0, as the stride is at most the window's size


def slide_encoder(
    image: Tensor,
    encode: Callable[[Tensor], dict[str, Tensor]],
    *,
    size: int,
    stride: int,
    batch: int,
    cell: int,
) -> dict[str, Tensor]:
    """Encode windows and average their maps where they overlap, each map on its own grid.

    Args:
        image: (3, H, W), H and W multiples of ``cell``.
        encode: (B, 3, h, w) -> by name (B, C, h / s, w / s) maps, s a divisor of ``cell``, or
            (B, C) vectors.
        size: side of the window in pixels, rounded up to a multiple of ``cell``.
        stride: stride of the window in pixels, rounded down to a multiple of ``cell``, so that the
            cells of windows are cells of the image.
        batch: windows per call of ``encode``; 0 = by the device.
        cell: side in pixels of the encoder's coarsest cell.

    Returns:
        By name (1, C, H / s, W / s) float32: the mean over windows that cover a cell; vectors
        (1, C) float32: the mean over windows.
    """
    size, stride = -(-size // cell) * cell, max(stride // cell, 1) * cell
    height, width = image.shape[-2:]
    total: dict[str, Tensor] = {}
    coverage = image.new_zeros((1, 1, height // cell, width // cell), dtype=torch.float32)
    count = 0
    for corners, parts in windows(image, size, stride, batch):
        h, w = parts.shape[-2:]
        count += len(corners)
        for y, x in corners:
            _part(coverage, y // cell, x // cell, h // cell, w // cell).add_(1)
        for name, outputs in encode(parts).items():
            if outputs.ndim == 2:
                total[name] = total.get(name, 0) + outputs.float().sum(0, keepdim=True)
                continue
            channels, rows, columns = outputs.shape[1:]
            step = h // rows
            if name not in total:
                shape = (1, channels, height // step, width // step)
                total[name] = outputs.new_zeros(shape, dtype=torch.float32)
            for (y, x), output in zip(corners, outputs, strict=True):
                _part(total[name], y // step, x // step, rows, columns).add_(output)
    return {
        name: maps / (count if maps.ndim == 2 else F.interpolate(coverage, maps.shape[-2:]))
        for name, maps in total.items()
    }


def _part(maps: Tensor, top: int, left: int, rows: int, columns: int) -> Tensor:
    return maps[..., top : top + rows, left : left + columns]


def needs_windows(image: Tensor, size: int) -> bool:
    """Whether (3, H, W) ``image`` is larger than a window of ``size``; 0 = the whole image."""
    return size > 0 and max(image.shape[-2:]) > size


def windows(
    image: Tensor, size: int, stride: int, batch: int
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """At most ``batch`` corners (y, x) and windows (B, 3, h, w) at a time; 0 = by the device."""
    batch = windows_at_once(batch, image.device)
    height, width = image.shape[-2:]
    h, w = min(size, height), min(size, width)
    corners = [
        (y, x) for y in window_starts(height, h, stride) for x in window_starts(width, w, stride)
    ]
    for chunk in (corners[i : i + batch] for i in range(0, len(corners), batch)):
        yield chunk, torch.stack([image[:, y : y + h, x : x + w] for y, x in chunk])
