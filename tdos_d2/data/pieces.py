"""Outliers made of the training images: pieces of them in drawn outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data.catalog import Metadata

from .reading import check_same_size, read_image, read_label
from .shapes import FloatArray, ShapeSource

# Range of a piece's side relative to its image's shorter side, before it is scaled to the object.
_SIDE = (0.15, 0.6)
# Frames, and windows in each, that are tried for a piece.
_FRAMES, _WINDOWS = 4, 5


class LabelledFrame(NamedTuple):
    """Files of a training image and its label, and the metadata of their dataset."""

    image: str
    label: str
    metadata: Metadata


class PieceSource(ShapeSource):
    """Drawn objects whose textures are pieces of training images: real textures out of place.

    A piece is a square window of an image, turned by a multiple of 90 degrees and mirrored at
    random, its channels are permuted at random (one time in six, they stay), and half of the pieces
    are negatives. So position and orientation are not those of the class that it was cut from, and
    the colours mostly are not: a sixth of CamVid's pieces keeps its mean colour. Windows with void
    or OOD pixels are not taken: what has no known class in training stays unseen. If several
    windows have such pixels, the texture is a drawn one.

    Args:
        frames: the training images.
        image_format: order of channels, "RGB" or "BGR".
    """

    def __init__(self, frames: Sequence[LabelledFrame], image_format: str = "RGB") -> None:
        self._frames = list(frames)
        self._format = image_format

    def texture(self, rng: np.random.Generator, size: tuple[int, int], style: str) -> FloatArray:
        """A piece (h, w, 3) float32 in 0..255; ``style`` is that of a drawn texture.

        Raises:
            UserError: an image or a label cannot be read.
        """
        window = self._window(rng)
        if window is None:
            return super().texture(rng, size, style)
        piece = np.rot90(window, rng.integers(4))
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        piece = piece[..., rng.permutation(3)]
        if rng.random() < 0.5:
            piece = 255 - piece
        h, w = size
        scaled = cv2.resize(np.ascontiguousarray(piece), (w, h), interpolation=cv2.INTER_AREA)
        return scaled.astype(np.float32)

    def _window(self, rng: np.random.Generator) -> np.ndarray | None:
        """A random square of known pixels (side, side, 3); None if none was found."""
        for _ in range(_FRAMES):
            frame = self._frames[rng.integers(len(self._frames))]
            known = read_label(frame.label, frame.metadata) < len(frame.metadata.stuff_classes)
            for _ in range(_WINDOWS):
                side = max(2, round(min(known.shape) * rng.uniform(*_SIDE)))
                top, left = (int(rng.integers(n - side + 1)) for n in known.shape)
                window = np.s_[top : top + side, left : left + side]
                if known[window].all():
                    image = read_image(frame.image, self._format)
                    names = f"label {frame.label}", f"its image {frame.image}"
                    check_same_size(names[0], known, names[1], image)
                    return image[window]
        return None
