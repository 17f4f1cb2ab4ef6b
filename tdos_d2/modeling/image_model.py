"""What the meta-architectures do with an image before and around the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..value_checks import check_positive
from .sliding_window import check_window, slide


class ImageModel(nn.Module):
    """Normalises images and goes over them in windows.

    Args:
        pixel_mean: per channel, in the order of the images given.
        pixel_std: per channel.
        window_size: side of the sliding window in pixels, 0 = whole image.
        window_stride: its step in pixels.
        window_batch: windows per forward pass.

    Raises:
        UserError: a step that leaves gaps between windows.
    """

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        window_size: int = 0,
        window_stride: int = 341,
        window_batch: int = 4,
    ) -> None:
        super().__init__()
        check_window(window_size, window_stride)
        self.window = {"size": window_size, "stride": window_stride, "batch": window_batch}
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @staticmethod
    def image_config(cfg) -> dict[str, Any]:
        """The arguments, as the config has them."""
        check_positive(cfg, "MODEL", "PIXEL_STD")
        check_positive(cfg, "TEST.WINDOW", "STRIDE", "BATCH")
        return {
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

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std

    def _slide(self, image: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """(3, H, W) in [0, 255] -> (C, H, W): ``predict`` on windows, averaged by coverage."""
        return slide(self._normalise(image), predict, **self.window)
