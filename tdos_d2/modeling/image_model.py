"""Base class of the meta-architectures: normalisation, padding and sliding windows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..value_checks import check_not_negative, check_positive
from .backbone import pixel_statistics_for
from .memory import Encoded, FeaturesOf
from .sliding_window import check_window, needs_windows, slide, slide_encoder, windows

logger = logging.getLogger(__name__)


class ImageModel(nn.Module):
    """Normalises images and predicts on them in sliding windows.

    Args:
        pixel_mean: per channel, in the channel order of the input images.
        pixel_std: per channel.
        window_size: side of the sliding window in pixels, 0 = whole image.
        window_stride: stride of the window in pixels.
        window_batch: windows per forward pass; 0 = 1 on a CPU, 4 on a GPU.
        window_decode: "window" decodes every window and averages the outputs, as published; "image"
            averages the encoder's maps and decodes once.

    Attributes:
        size_divisibility: height and width of the model's input are padded to a multiple of it.

    Raises:
        UserError: the stride leaves gaps between windows; unknown ``window_decode``.
    """

    backbone: Backbone
    size_divisibility: int

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        window_size: int = 0,
        window_stride: int = 341,
        window_batch: int = 0,
        window_decode: str = "window",
    ) -> None:
        super().__init__()
        check_window(window_size, window_stride, window_decode)
        self.decode_once = window_decode == "image"
        self.window = {"size": window_size, "stride": window_stride, "batch": window_batch}
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @staticmethod
    def image_config(cfg) -> dict[str, Any]:
        """The arguments from the config."""
        use_tf32(cfg.MODEL.TF32)
        check_positive(cfg, "MODEL", "PIXEL_STD")
        check_positive(cfg, "TEST.WINDOW", "STRIDE")
        check_not_negative(cfg, "TEST.WINDOW", "BATCH")
        # Of the weights also where a config was not completed: build_model(cfg) in a script.
        mean, std = pixel_statistics_for(cfg)
        return {
            "pixel_mean": mean,
            "pixel_std": std,
            "window_size": cfg.TEST.WINDOW.SIZE,
            "window_stride": cfg.TEST.WINDOW.STRIDE,
            "window_batch": cfg.TEST.WINDOW.BATCH,
            "window_decode": cfg.TEST.WINDOW.DECODE,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std

    def _slide(self, image: Tensor, **decoding: Any) -> Tensor:
        """(3, H, W) in [0, 255] -> (C, H, W), in windows if the image is larger than one.

        ``decoding`` is passed to :meth:`_decode`.
        """
        image = self._normalise(image)
        if not (self.decode_once and needs_windows(image, self.window["size"])):
            return slide(image, lambda part: self._predict(part, **decoding), **self.window)
        return self._decode(self._encode_once(image), tuple(image.shape[-2:]), **decoding)[0]

    def _encode_once(self, image: Tensor) -> dict[str, Tensor]:
        padded = self._padded(image[None])[0]
        return slide_encoder(padded, self._encode, cell=self.size_divisibility, **self.window)

    def _predict(self, images: Tensor, **decoding: Any) -> Tensor:
        """Normalised (B, 3, h, w) -> (B, C, h, w): the maps that are averaged over windows."""
        return self._decode(self._encode(images), tuple(images.shape[-2:]), **decoding)

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone(self._padded(images))

    def _decode(
        self, features: dict[str, Tensor], size: tuple[int, int], **decoding: Any
    ) -> Tensor:
        """Maps and vectors of the backbone for images of ``size`` (h, w) -> (B, C, h, w)."""
        raise NotImplementedError

    def _padded(self, images: Tensor) -> Tensor:
        """Pad (B, 3, h, w) with the mean colour to multiples of ``size_divisibility``."""
        h, w = images.shape[-2:]
        bottom, right = self._padded_size(h) - h, self._padded_size(w) - w
        return F.pad(images, (0, right, 0, bottom))

    def _padded_size(self, side: int) -> int:
        # Written as a multiple of d, so that torch.export knows that it is divisible.
        d = self.size_divisibility
        return (side + d - 1) // d * d

    def _features_of(self, images: Iterable[Tensor]) -> FeaturesOf:
        """The maps of frames (3, H, W) in [0, 255], for fitting a memory."""
        return FeaturesOf(images, self._encoded)

    def _encoded(self, image: Tensor) -> Iterator[Encoded]:
        """The maps of a frame as :meth:`_slide` makes them: of the whole, or of its windows."""
        image = self._normalise(image)
        if not needs_windows(image, self.window["size"]):
            yield Encoded(self._encode(image[None]), self._filled(image))
        elif self.decode_once:
            yield Encoded(self._encode_once(image), self._filled(image))
        else:
            for _, parts in windows(image, **self.window):
                maps = self._encode(parts)
                for i in range(len(parts)):
                    of_part = {name: values[i : i + 1] for name, values in maps.items()}
                    yield Encoded(of_part, self._filled(parts[i]))

    def _filled(self, image: Tensor) -> tuple[float, float]:
        """The share of the padded height and width that is image."""
        height, width = image.shape[-2:]
        return height / self._padded_size(height), width / self._padded_size(width)


def use_tf32(on: bool) -> None:
    """Apply ``MODEL.TF32`` to the process; logs the setting on a GPU that supports TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        products = "from factors rounded to TF32" if on else "in full"
        logger.info("MODEL.TF32 is %s: float32 products are computed %s", on, products)
