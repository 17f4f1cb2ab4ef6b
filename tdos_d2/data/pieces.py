"""Outliers made of the training images: pieces of them in drawn outlines."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .reading import read_image
from .shapes import FloatArray, ShapeSource

# Range of a piece's side relative to its image's shorter side, before it is scaled to the object.
_SIDE = (0.15, 0.6)


class PieceSource(ShapeSource):
    """Drawn objects whose textures are pieces of training images: real textures out of place.

    A piece is a square of an image, turned by a multiple of 90 degrees and mirrored at random. Its
    channels are permuted at random and half of the pieces are negatives, so that neither position
    nor colours are those of the class that it was cut from. Nothing is read but the images.

    Args:
        files: the images.
        image_format: order of channels, "RGB" or "BGR".
    """

    def __init__(self, files: Sequence[str], image_format: str = "RGB") -> None:
        self._files = list(files)
        self._format = image_format

    def texture(self, rng: np.random.Generator, size: tuple[int, int], style: str) -> FloatArray:
        """A piece (h, w, 3) float32 in 0..255; ``style`` has no effect.

        Raises:
            UserError: an image cannot be read.
        """
        image = read_image(self._files[rng.integers(len(self._files))], self._format)
        side = max(2, round(min(image.shape[:2]) * rng.uniform(*_SIDE)))
        top, left = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
        piece = np.rot90(image[top : top + side, left : left + side], rng.integers(4))
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        piece = piece[..., rng.permutation(3)]
        if rng.random() < 0.5:
            piece = 255 - piece
        h, w = size
        scaled = cv2.resize(np.ascontiguousarray(piece), (w, h), interpolation=cv2.INTER_AREA)
        return scaled.astype(np.float32)
