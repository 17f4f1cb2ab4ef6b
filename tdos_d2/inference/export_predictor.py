"""The whole predictor as one module: from a camera frame to score, labels and mask of its size.

It includes resizing, normalisation, windows and text embeddings. All frames have one size, which
makes the graph fixed; it has only operators that every runtime computes alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..tdos import TDOS
from .export import without_text_encoder
from .predictor import OODPredictor

INPUT = "image"
CHANNELS = ("bgr", "rgb")
_ON = 255  # value of a mask's pixels, as in OpenCV


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
        # In the order of Pillow's passes: along rows, then along columns.
        size = predictor.input_size(*frame)
        self.along_rows = _Resampling(2, frame[1], size[1])
        self.along_columns = _Resampling(1, frame[0], size[0])
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
        pixels = self.along_columns(self.along_rows(image.permute(2, 0, 1)))
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


class _Resampling(nn.Module):
    """Pillow's bilinear resampling along an axis, with rounding to integers.

    It is written as a weighted sum of the few source pixels of each target pixel, since runtimes
    differ in ONNX's Resize with antialiasing: ONNX Runtime rounds differently, and OpenVINO
    silently skips the antialiasing. The gather works on uint8, a quarter of the bytes of float32.

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
        weights = torch.from_numpy(weights)
        self.register_buffer("weights", weights if axis == 2 else weights[..., None], False)

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> the same with another H or W."""
        if not self.needed:
            return image
        total = sum(
            image.index_select(self.axis, places).float() * weights
            for places, weights in zip(self.places, self.weights, strict=True)
        )
        return (total + 0.5).floor().to(torch.uint8)


def resampling(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels of each target pixel, and their weights, in Pillow's bilinear resampling.

    Returns:
        Indices (n, new) int64 and weights (n, new) float32 that sum to 1 over n; n is the largest
        number of source pixels of a target pixel.
    """
    step = old / new
    support = max(step, 1.0)  # half the width of the triangle; it covers all pixels when shrinking
    centres = (np.arange(new) + 0.5) * step
    first = np.maximum(np.floor(centres - support + 0.5), 0).astype(np.int64)
    taps = first + np.arange(math.ceil(support) * 2 + 1)[:, None]
    weights = np.maximum(1 - np.abs(taps + 0.5 - centres) / support, 0) * (taps < old)
    needed = weights.any(1)
    weights = (weights / weights.sum(0))[needed]
    return np.minimum(taps, old - 1)[needed], weights.astype(np.float32)
