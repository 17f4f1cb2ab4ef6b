"""Outlier exposure: paste objects of no known class into training images."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

from tdos_d2.data.shapes import ShapeSource


class ObjectSource(Protocol):
    """Where outliers come from."""

    def sample(self, rng: np.random.Generator, max_side: int) -> tuple[np.ndarray, np.ndarray]:
        """An object: patch (h, w, 3) uint8 and mask (h, w) float in 0..1, max(h, w) <= max_side."""
        ...


# name in INPUT.OOD_PASTE.SOURCE -> class of the source
SOURCES: dict[str, type[ObjectSource]] = {"shapes": ShapeSource}

_MIN_SIDE = 4
# Share of an object's box that may lie outside the image.
_MAX_CUT = 0.25
_BLUR = cv2.getGaussianKernel(3, 0.8)


class OODPaste:
    """Pastes objects into an image and labels their pixels as OOD.

    Objects stand anywhere but in the top strip of the image, on any class. A pasted object is
    brought part of the way to the brightness and noise of the image, so that the way it was made
    does not give it away. Sources, like images, may have their channels in any order.

    Args:
        source: where the objects come from.
        prob: probability that an image gets any object.
        num: least and largest number of objects, drawn uniformly.
        size: range of an object's larger side as a share of the image's shorter side (uniform; at
            least 4 pixels).
        ood_label: label of pasted pixels.

    Raises:
        ValueError: a range is empty or ``prob`` is no probability.
    """

    def __init__(
        self,
        source: ObjectSource,
        prob: float,
        num: tuple[int, int] = (1, 3),
        size: tuple[float, float] = (0.05, 0.5),
        *,
        ood_label: int,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in 0..1, got {prob}")
        if not 1 <= num[0] <= num[1]:
            raise ValueError(f"num must be a range that starts at 1 or above, got {num}")
        if not 0 < size[0] <= size[1] <= 1:
            raise ValueError(f"size must be a range within 0..1, got {size}")
        self.source = source
        self.prob = prob
        self.num = num
        self.size = size
        self.ood_label = ood_label

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paste objects into copies of ``image`` and ``label``.

        Args:
            image: (H, W, 3) uint8.
            label: (H, W) uint8.
            rng: the only source of randomness.

        Returns:
            image and label. Outside the pasted pixels the label is that of the input, and the image
            is too, but for a soft seam of one pixel.
        """
        image, label = image.copy(), label.copy()
        if rng.random() >= self.prob:
            return image, label
        for _ in range(int(rng.integers(self.num[0], self.num[1] + 1))):
            side = rng.uniform(*self.size) * min(label.shape)
            patch, mask = self.source.sample(rng, max(_MIN_SIDE, round(side)))
            patch = _match_image(patch, mask, image, rng)
            self._paste(image, label, patch, mask, rng)
        return image, label

    def _paste(
        self,
        image: np.ndarray,
        label: np.ndarray,
        patch: np.ndarray,
        mask: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        # A patch may end at its object's outline; the seam needs one pixel more.
        patch = cv2.copyMakeBorder(patch, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        mask = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        (height, width), (h, w) = label.shape, mask.shape
        left = round(rng.uniform(-_MAX_CUT * w, width - (1 - _MAX_CUT) * w))
        foot = round(rng.uniform(max(0.3 * height, h), height + _MAX_CUT * h))
        top = foot - h
        # The parts of the image and of the patch that cover each other.
        rows = slice(max(top, 0), min(foot, height))
        cols = slice(max(left, 0), min(left + w, width))
        inner = (slice(rows.start - top, rows.stop - top),
                 slice(cols.start - left, cols.stop - left))  # fmt: skip
        hard = (mask[inner] > 0.5).astype(np.float32)
        # A 3x3 blur of the hard mask: the seam reaches one pixel to either side of the outline.
        alpha = cv2.sepFilter2D(hard, -1, _BLUR, _BLUR, borderType=cv2.BORDER_REPLICATE)[..., None]
        under = image[rows, cols]
        image[rows, cols] = np.round(under + alpha * (patch[inner] - under.astype(np.float32)))
        label[rows, cols][hard > 0] = self.ood_label


def _match_image(
    patch: np.ndarray, mask: np.ndarray, image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Bring a patch a random part of the way to the image's brightness and noise; float32."""
    # A sparse grid of pixels is enough for both measures.
    step = max(1, min(image.shape[:2]) // 64)
    brightness = float(image[::step, ::step].mean()) / max(float(patch[mask > 0.5].mean()), 8.0)
    factor = np.clip(brightness, 0.5, 1.6) ** rng.uniform(0, 0.6)
    grain = np.float32(_noise_level(image) * rng.uniform(0.3, 1.2))
    noise = rng.standard_normal(patch.shape, dtype=np.float32) * grain
    return np.clip(patch * np.float32(factor) + noise, 0, 255)


def _noise_level(image: np.ndarray) -> float:
    """Standard deviation of an image's noise, from differences of neighbours in smooth parts."""
    rows = image[:: max(1, image.shape[0] // 32)].astype(np.int16)
    second = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
    # The median ignores the edges; for Gaussian noise of deviation s it is 0.6745 * sqrt(6) * s.
    return float(np.median(np.abs(second))) / 1.652
