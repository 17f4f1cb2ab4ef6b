"""Outliers from cut-out photographs: images whose background is transparent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import find_files, open_image, open_with
from .coco_objects import fit
from .datasets.folder import IMAGE_SUFFIXES


class CutoutSource:
    """Objects in images with a transparent background, each equally often, half of them mirrored.

    All images are read once at the start, to check them (2 ms for one of 200x200 pixels).

    Args:
        folder: folder of the images, searched with its subfolders.
        image_format: order of channels, "RGB" or "BGR".
        origin: option or config key that names the folder, for messages.

    Raises:
        UserError: the folder does not exist or has no images, or one of them cannot be read or is
            transparent nowhere or everywhere.
    """

    photograph = True  # see ObjectSource

    def __init__(
        self,
        folder: str | os.PathLike,
        image_format: str = "RGB",
        origin: str = "INPUT.OOD_PASTE.CUTOUTS",
    ) -> None:
        folder = Path(folder)
        self._format = image_format
        if not folder.is_dir():
            raise UserError(f"{origin}: no folder {folder}")
        names = [name for name in find_files(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
        self._paths = [folder / name for name in names]
        if not names:
            raise UserError(f"{origin}: {folder} has no images")
        for path in self._paths:  # now, not hours later
            open_with(_decode, "cutout", path)

    def sample(self, rng: np.random.Generator, max_side: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut out an object.

        Args:
            rng: the only source of randomness.
            max_side: largest side of the patch in pixels. Objects are enlarged by at most 50 %.

        Returns:
            patch (h, w, 3) uint8 and mask (h, w) float32 in 0..1, with at least one pixel of 1.

        Raises:
            UserError: the image cannot be read any more.
        """
        path = self._paths[rng.integers(len(self._paths))]
        pixels = open_with(_decode, "cutout", path)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        alpha = pixels[..., 3] / np.float32(255)
        # The colours under transparent pixels are arbitrary and must not reach the object's edge.
        weighted, soft = fit(pixels[..., :3] * alpha[..., None], alpha, max_side)
        patch = np.clip(weighted / np.maximum(soft, 1e-3)[..., None], 0, 255).astype(np.uint8)
        if self._format == "BGR":
            patch = patch[..., ::-1]
        return patch, soft / soft.max()


def _decode(file: IO[bytes]) -> np.ndarray:
    """(h, w, 4) uint8: the part of an image that is not transparent."""
    with open_image(file) as image:
        pixels = np.array(image.convert("RGBA"))
    if pixels[..., 3].min() == 255:
        raise ValueError("it has no transparent pixel, and would be pasted as a rectangle")
    box = Image.fromarray(pixels[..., 3]).getbbox()
    if box is None:
        raise ValueError("it is transparent everywhere")
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]
