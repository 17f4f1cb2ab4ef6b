"""The whole predictor as one module: from a camera frame to score, labels and mask of its size.

It includes resizing, normalisation, windows and text embeddings. All frames have one size, which
makes the graph fixed; it has only operators that every runtime computes alike.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from ..tdos import TDOS
from .export import without_text_encoder
from .predictor import OODPredictor

logger = logging.getLogger(__name__)

INPUT = "image"
CHANNELS = ("bgr", "rgb")
_ON = 255  # value of a mask's pixels, as in OpenCV
_HALF = 2**11  # Pillow's weights have 22 bits


class PredictorModel(nn.Module):
    """:class:`OODPredictor` for frames of one size.

    Args:
        predictor: on the CPU; it shares its submodules with this module and is not changed.
        frame: (H, W) of the frames.
        channels: channel order of the frames, "bgr" or "rgb".
        threshold: pixels with a score of this or more are in the mask; None: no mask.
        labels: whether to output labels of the known classes, if the model has any.

    Attributes:
        outputs: names of the outputs, in order.
    """

    def __init__(
        self,
        predictor: OODPredictor,
        frame: tuple[int, int],
        *,
        channels: str = "bgr",
        threshold: float | None = None,
        labels: bool = True,
    ) -> None:
        super().__init__()
        model = predictor.model
        self.model = without_text_encoder(model) if isinstance(model, TDOS) else model
        self.frame, self.threshold = frame, threshold
        self.swap = predictor.channels.lower() != channels
        self.resize = pillow_resize(frame, predictor.input_size(*frame))
        self.labels = labels and bool(model.class_names)
        self.outputs = ("ood_score",)
        self.outputs += ("labels",) * self.labels + ("ood_mask",) * (threshold is not None)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (H, W, 3) uint8, a camera frame.

        Returns:
            Those of the following that ``outputs`` names: the score (H, W) float32, larger = more
            anomalous; the known class with the largest S (H, W) uint8; the mask (H, W) uint8, 255
            where the score is the threshold or more, else 0.
        """
        pixels = self.resize(image.permute(2, 0, 1))
        if self.swap:
            pixels = pixels[[2, 1, 0]]
        height, width = self.frame
        inputs = {"image": pixels, "height": height, "width": width}
        (found,) = self.model([inputs])
        results = [found["ood_score"]]
        if self.labels:
            results.append(found["sem_seg"].argmax(0).to(torch.uint8))
        if self.threshold is not None:
            results.append((results[0] >= self.threshold).to(torch.uint8) * _ON)
        return tuple(results)


def pillow_resize(old: tuple[int, int], new: tuple[int, int]) -> nn.Sequential:
    """Pillow's bilinear ``resize`` of (3, H, W) uint8 from ``old`` to ``new`` (H, W), to the bit.

    Pillow resizes along rows, then along columns, and rounds in between; since version 13 in the
    other order for some sizes. The order is the one that gives what the installed Pillow gives; if
    neither does, a warning says so.
    """
    rows, columns = _Resampling(2, old[1], new[1]), _Resampling(1, old[0], new[0])
    noise = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    resized = Image.fromarray(noise).resize(new[::-1], Image.Resampling.BILINEAR)
    expected, image = torch.from_numpy(np.array(resized)), torch.from_numpy(noise).permute(2, 0, 1)
    orders = nn.Sequential(rows, columns), nn.Sequential(columns, rows)
    for order in orders:
        if torch.equal(order(image).permute(1, 2, 0), expected):
            return order
    logger.warning("Pillow %s resizes in another way: pixels may differ by 1", PIL.__version__)
    return orders[0]


class _Resampling(nn.Module):
    """Pillow's bilinear resampling along an axis of 8-bit images, exact in every runtime.

    It is written as a weighted sum of the few source pixels of each target pixel, since runtimes
    differ in ONNX's Resize with antialiasing: ONNX Runtime rounds differently, and OpenVINO
    silently skips the antialiasing. Pillow's weights are integers. Their upper and lower halves are
    summed separately: all values are integers that float32 holds, whatever the order of the sums.
    (In one sum, pixels at a tie would be rounded up by one runtime and down by another.) The
    gather works on uint8, a quarter of the bytes of float32.

    Args:
        axis: 1 or 2 of (3, H, W).
        old: length of the axis.
        new: its length after resampling.
    """

    def __init__(self, axis: int, old: int, new: int) -> None:
        super().__init__()
        self.axis, self.needed = axis, old != new
        places, weights = resampling(old, new)
        self.register_buffer("places", torch.from_numpy(places), False)
        for name, part in zip(("upper", "lower"), np.divmod(weights, _HALF), strict=True):
            part = torch.from_numpy(part.astype(np.float32))
            self.register_buffer(name, part if axis == 2 else part[..., None], False)

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> the same with another H or W."""
        if not self.needed:
            return image
        upper, lower = 0.0, _HALF * _HALF / 2  # Pillow rounds by adding a half
        for places, high, low in zip(self.places, self.upper, self.lower, strict=True):
            pixels = image.index_select(self.axis, places).float()
            upper, lower = upper + pixels * high, lower + pixels * low
        return ((upper + (lower / _HALF).floor()) / _HALF).floor().to(torch.uint8)


def resampling(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels of each target pixel, and their weights, in Pillow's bilinear resampling.

    Returns:
        Indices (n, new) and weights (n, new) in units of 2^-22, both int64; n is the largest
        number of source pixels of a target pixel. A target pixel is the weighted sum, plus a half,
        rounded down.
    """
    step = old / new
    support = max(step, 1.0)  # half the width of the triangle; it covers all pixels when shrinking
    centres = (np.arange(new) + 0.5) * step
    first = np.maximum(np.floor(centres - support + 0.5), 0).astype(np.int64)
    taps = first + np.arange(math.ceil(support) * 2 + 1)[:, None]
    weights = np.maximum(1 - np.abs(taps + 0.5 - centres) / support, 0) * (taps < old)
    needed = weights.any(1)
    weights = np.floor(weights / weights.sum(0) * _HALF**2 + 0.5).astype(np.int64)
    return np.minimum(taps, old - 1)[needed], weights[needed]
