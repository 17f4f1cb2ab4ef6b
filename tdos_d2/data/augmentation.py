"""Random transforms of training images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from .reading import IGNORE

# fvcore makes a tensor from Pillow's read-only array, but does not write to it.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", module="fvcore")


class RandomScale(T.Augmentation):
    """Resize by a random factor, uniform in ``factors = (low, high)``."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self._init({"factors": tuple(factors)})

    def get_transform(self, image: np.ndarray) -> T.ResizeTransform:
        height, width = image.shape[:2]
        factor = np.random.uniform(*self.factors)
        new_size = max(1, round(height * factor)), max(1, round(width * factor))
        return T.ResizeTransform(height, width, *new_size)


class RandomScaleCrop(T.Augmentation):
    """:class:`RandomScale` and a crop in one step: pixels outside the crop are not computed.

    The result equals that of Detectron2's two separate transforms.

    Args:
        factors: factors of ``RandomScale``.
        crop: gets an image of the new size, of which only the shape may be used, and its label.
    """

    def __init__(self, factors: Sequence[float], crop: T.Augmentation) -> None:
        super().__init__()
        self.scale, self.crop = RandomScale(factors), crop

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> T.Transform:
        resize = self.scale.get_transform(image)
        label = None if sem_seg is None else resize.apply_segmentation(sem_seg)
        shape = np.broadcast_to(np.uint8(0), (resize.new_h, resize.new_w, 3))
        return ResizedCrop(resize, self.crop.get_transform(shape, label))


class ResizedCrop(T.Transform):
    """A crop of a resized image.

    Args:
        resize: resize of the whole image.
        crop: crop of the resized image.
    """

    def __init__(self, resize: T.ResizeTransform, crop: T.CropTransform) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (crop.h, crop.w, 3)."""
        resize, crop = self.resize, self.crop
        # The same factors as for the whole image: Pillow also uses pixels around the box.
        y, x = resize.h / resize.new_h, resize.w / resize.new_w
        box = crop.x0 * x, crop.y0 * y, (crop.x0 + crop.w) * x, (crop.y0 + crop.h) * y
        box = (*box[:2], min(box[2], resize.w), min(box[3], resize.h))
        return np.asarray(Image.fromarray(image).resize((crop.w, crop.h), resize.interp, box=box))

    def apply_segmentation(self, label: np.ndarray) -> np.ndarray:
        """(H, W) -> (crop.h, crop.w), the nearest value."""
        return self.crop.apply_segmentation(self.resize.apply_segmentation(label))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y)."""
        return self.crop.apply_coords(self.resize.apply_coords(coords))


def build_train_augmentations(
    *,
    scale_range: Sequence[float],
    crop: tuple[str, Sequence[float]] | None,
    single_category_max_area: float,
    flip: str,
) -> list[T.Augmentation | T.Transform]:
    """Resize, crop, flip: the geometry of Mask2Former's recipe for Cityscapes.

    Args:
        scale_range: range of the resize factor.
        crop: type and size as in ``T.RandomCrop``; None = no crop. Images smaller than an absolute
            crop are not cropped (see :func:`pad`).
        single_category_max_area: largest share of one class in a crop (10 tries).
        flip: "horizontal", "vertical" or "none".
    """
    augmentations: list[T.Augmentation | T.Transform] = [RandomScale(scale_range)]
    if crop is not None:
        crops = T.RandomCrop_CategoryAreaConstraint(*crop, single_category_max_area, IGNORE)
        augmentations = [RandomScaleCrop(scale_range, crops)]
    if flip != "none":
        vertical = flip == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    return augmentations


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], color: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Pad on the right and at the bottom up to ``size = (height, width)``.

    Args:
        image: (H, W, 3) uint8, padded with ``color``.
        label: (H, W) uint8, padded with 255.
    """
    bottom, right = (max(new - old, 0) for new, old in zip(size, label.shape, strict=True))
    if not bottom and not right:
        return image, label
    border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(np.ascontiguousarray(image), *border, value=np.round(color).tolist())
    label = np.pad(label, ((0, bottom), (0, right)), constant_values=IGNORE)
    return image, label


def overlap(
    frame: Sequence[int], box: Sequence[int], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the overlap in a frame and in a box at (top, left), both given by (H, W)."""
    low = np.clip((top, left), 0, frame)
    high = np.clip((top + box[0], left + box[1]), low, frame)
    outer = slice(low[0], high[0]), slice(low[1], high[1])
    inner = slice(low[0] - top, high[0] - top), slice(low[1] - left, high[1] - left)
    return outer, inner
