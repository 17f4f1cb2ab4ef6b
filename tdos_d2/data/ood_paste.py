"""Outlier exposure: paste objects of no known class into training images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import UserError
from ..value_checks import check_interval, check_share
from .augmentation import overlap
from .coco_objects import CocoSource
from .cutouts import CutoutSource
from .datasets import data_root
from .pieces import LabelledFrame, PieceSource
from .reading import IGNORE
from .shapes import ShapeSource
from .verify.quick import class_names, get_dicts


class ObjectSource(Protocol):
    """A source of outliers. An attribute ``photograph = True`` marks a source of real objects."""

    def sample(self, rng: np.random.Generator, max_side: int) -> tuple[np.ndarray, np.ndarray]:
        """An object: patch (h, w, 3) uint8 and mask (h, w) float in 0..1, max(h, w) <= max_side."""
        ...


SOURCES = ("shapes", "pieces", "coco", "cutouts")
CHOICES = (*SOURCES, "auto", "mix", "none")  # values of INPUT.OOD_PASTE.SOURCE, see config.py
# Where "auto" finds no COCO objects: the better sources without data, see MODEL_ZOO.md.
_WITHOUT_COCO = [["shapes", 0.5], ["pieces", 0.5]]

_MIN_SIDE = 4
# Largest share of an object's width or height that may be outside the image.
_MAX_CUT = 0.25
# Range of the lower edge of an object, as a share of the image's height.
_DEPTH = (0.3, 1.1)
_BLUR = cv2.getGaussianKernel(3, 0.8)
# Attempts to place an object, and the share of it that must cover known pixels.
_TRIES = 10
_MIN_KNOWN = 0.5
# Height of the ground plane's horizon, as a share of the frame's height from the top; and smallest
# size of distant objects, relative to their size at the bottom edge.
_HORIZON = 0.4
_MIN_PERSPECTIVE = 0.15
# Shadow: half its width relative to the object's width; half its height relative to half its width;
# largest sideways shift relative to the object's width; share of the light that it removes.
_SHADOW_WIDTH = (0.4, 0.8)
_SHADOW_HEIGHT = (0.1, 0.35)
_SHADOW_LEAN = 0.5
_SHADOW_STRENGTH = (0.15, 0.7)
# Strength of the adaptation to the surrounding brightness: drawn objects, photographs.
_LIGHT = ((0.0, 0.6), (0.5, 1.0))


class OODPaste:
    """Pastes objects into an image and labels their pixels as OOD.

    Objects are placed anywhere except in the top strip of the image, on any class or on chosen
    classes; at least half of an object covers pixels that are not ignored. A pasted object is
    partly adapted to the brightness and noise of the image, so that the model cannot recognise it
    by these. Photographs are also scaled down with the height of their position in the frame, as
    objects on a ground plane are, and adapted to the brightness around them; drawn shapes have any
    size at any position. The channel order of source and images must agree, but may be RGB or BGR.

    Args:
        source: source of the objects, or several with weights, of which one is drawn per object.
        prob: probability that an image gets any object.
        num: smallest and largest number of objects, drawn uniformly.
        size: range of an object's larger side as a share of the image's shorter side (uniform; at
            least 4 pixels); for photographs, the size at the bottom of the frame.
        ood_label: label of pasted pixels.
        stand_on: labels that are allowed under the middle of an object's foot; empty: any.
        shadow: probability that an object darkens the ground (``stand_on``) around its foot.

    Raises:
        ValueError: a range is empty, a probability is not in 0..1 or a weight is not above 0.
    """

    def __init__(
        self,
        source: ObjectSource | Sequence[tuple[ObjectSource, float]],
        prob: float,
        num: tuple[int, int] = (1, 3),
        size: tuple[float, float] = (0.05, 0.5),
        *,
        ood_label: int,
        stand_on: Sequence[int] = (),
        shadow: float = 0.0,
    ) -> None:
        for name, value in (("prob", prob), ("shadow", shadow)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        if not 1 <= num[0] <= num[1]:
            raise ValueError(f"num must be a range that starts at 1 or above, got {num}")
        if not 0 < size[0] <= size[1] <= 1:
            raise ValueError(f"size must be a range within 0..1, got {size}")
        weighted = source if isinstance(source, Sequence) else [(source, 1.0)]
        self.sources, weights = zip(*weighted, strict=True)
        if min(weights) <= 0:
            raise ValueError(f"weights must be above 0, got {weights}")
        self.shares = np.array(weights) / sum(weights)
        self.prob = prob
        self.num = num
        self.size = size
        self.ood_label = ood_label
        self.stand_on = tuple(stand_on)
        self.shadow = shadow

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        rng: np.random.Generator,
        rows: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paste objects into copies of ``image`` and ``label``.

        Args:
            image: (H, W, 3) uint8.
            label: (H, W) uint8.
            rng: the only source of randomness.
            rows: position of the top and the bottom edge of this image in the frame that it was
                cropped from, as shares of the frame's height.

        Returns:
            image and label. Outside the pasted pixels the label is unchanged, and the image is
            unchanged except for a soft seam of one pixel and the shadows. Into images of fewer than
            8 rows or columns nothing is pasted.
        """
        image, label = image.copy(), label.copy()
        if rng.random() >= self.prob or min(label.shape) < 2 * _MIN_SIDE:
            return image, label
        noise = _noise_level(image)
        for _ in range(int(rng.integers(self.num[0], self.num[1] + 1))):
            any(self._try(image, label, rng, rows, noise) for _ in range(_TRIES))
        return image, label

    def _try(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator,
        rows: tuple[float, float], noise_level: float,
    ) -> bool:
        """Paste one object in place; returns False if its position is not allowed."""
        single = len(self.sources) == 1
        source = self.sources[0 if single else rng.choice(len(self.sources), p=self.shares)]
        photograph = getattr(source, "photograph", False)
        side = rng.uniform(*self.size) * min(label.shape)
        depth = None
        if photograph:
            depth = rng.uniform(*_DEPTH)
            in_frame = rows[0] + depth * (rows[1] - rows[0])
            side *= np.clip((in_frame - _HORIZON) / (1 - _HORIZON), _MIN_PERSPECTIVE, 1)
        patch, mask = source.sample(rng, max(_MIN_SIDE, round(side)))
        strength = rng.uniform(*_LIGHT[photograph])
        grain = np.float32(noise_level * rng.uniform(0.3, 1.2))
        noise = rng.standard_normal(patch.shape, dtype=np.float32) * grain
        # A patch may end at its object's outline, but the seam needs another pixel.
        h, w = mask.shape[0] + 2, mask.shape[1] + 2
        height, width = label.shape
        left = round(rng.uniform(-_MAX_CUT * w, width - (1 - _MAX_CUT) * w))
        lowest = height + _MAX_CUT * h
        if depth is None:
            foot = rng.uniform(max(_DEPTH[0] * height, h), lowest)
        else:
            foot = np.clip(depth * height, h, lowest)
        top = round(foot) - h
        # Positions outside the image have the label of the nearest pixel.
        under = label[np.clip(round(foot) - 1, 0, height - 1), np.clip(left + w // 2, 0, width - 1)]
        if self.stand_on and under not in self.stand_on:
            return False
        lit = image
        if photograph:  # the object's box and half its size around it
            size = h + h // 2 * 2, w + w // 2 * 2
            lit = image[overlap(label.shape, size, top - h // 2, left - w // 2)[0]]
        patch = patch * np.float32(_brightness(lit, patch, mask) ** strength) + noise
        patch = cv2.copyMakeBorder(np.clip(patch, 0, 255), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        mask = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        outer, inner = overlap(label.shape, mask.shape, top, left)
        covered = label[outer][mask[inner] > 0.5]
        if not len(covered) or np.mean(covered != IGNORE) < _MIN_KNOWN:
            return False
        if self.shadow and rng.random() < self.shadow:
            self._cast_shadow(image, label, mask, top, left, rng)
        self._blend(image[outer], label[outer], patch[inner], mask[inner])
        return True

    def _cast_shadow(
        self, image: np.ndarray, label: np.ndarray, mask: np.ndarray, top: int, left: int,
        rng: np.random.Generator,
    ) -> None:
        """Darken an ellipse on the ground at the lower edge of an object."""
        rows, columns = np.nonzero(mask > 0.5)
        width = np.ptp(columns) + 1
        across = width * rng.uniform(*_SHADOW_WIDTH)
        along = max(across * rng.uniform(*_SHADOW_HEIGHT), 1.0)
        x = left + columns.mean() + width * rng.uniform(-_SHADOW_LEAN, _SHADOW_LEAN)
        y = top + rows.max()
        reach = np.ceil([1.2 * along, 1.2 * across]).astype(int)
        first = np.floor([y, x]).astype(int) - reach
        outer, _ = overlap(label.shape, 2 * reach + 2, *first)
        ys, xs = np.ogrid[outer]
        distance = np.sqrt(((xs - x) / across) ** 2 + ((ys - y) / along) ** 2)
        # Full strength within 0.8 of the ellipse's radius, none beyond 1.2.
        shade = np.clip((1.2 - distance) / 0.4, 0, 1) * rng.uniform(*_SHADOW_STRENGTH)
        if self.stand_on:
            shade = shade * np.isin(label[outer], self.stand_on)
        image[outer] = np.round(image[outer] * (1 - shade[..., None]))

    def _blend(
        self, image: np.ndarray, label: np.ndarray, patch: np.ndarray, mask: np.ndarray
    ) -> None:
        """Blend an object into views of image and label that have its size."""
        hard = (mask > 0.5).astype(np.float32)
        # A 3x3 blur of the hard mask: the seam reaches one pixel to either side of the outline.
        alpha = cv2.sepFilter2D(hard, -1, _BLUR, _BLUR, borderType=cv2.BORDER_REPLICATE)[..., None]
        image[:] = np.round(image + alpha * (patch - image.astype(np.float32)))
        label[hard > 0] = self.ood_label


def build_ood_paste(cfg: CfgNode) -> OODPaste | None:
    """The :class:`OODPaste` of ``INPUT.OOD_PASTE``; None if its source is "none".

    Raises:
        UserError: a value is invalid, or the list of COCO objects does not exist.
    """
    check_share(cfg, "INPUT.OOD_PASTE", "PROB", "SHADOW")
    check_interval(cfg, "INPUT.OOD_PASTE", "NUM", "SIZE")
    node = cfg.INPUT.OOD_PASTE
    if node.SOURCE not in CHOICES:
        raise UserError(
            f"INPUT.OOD_PASTE.SOURCE must be one of {', '.join(CHOICES)}, got {node.SOURCE!r}"
        )
    if node.SOURCE == "none":
        return None
    mix = node.MIX if node.SOURCE == "mix" else [[node.SOURCE, 1.0]]
    if node.SOURCE == "auto":
        mix = [["coco", 1.0]]
        if warning := fallback_warning(cfg):
            logging.getLogger(__name__).warning(warning)
            mix = _WITHOUT_COCO
    if not mix:
        raise UserError("INPUT.OOD_PASTE.MIX is empty, but INPUT.OOD_PASTE.SOURCE is mix")
    for row in mix:
        if len(row) != 2 or row[0] not in SOURCES or not isinstance(row[1], (int, float)):
            raise UserError(
                f"INPUT.OOD_PASTE.MIX: {row} is not [one of {', '.join(SOURCES)}, weight]"
            )
    make = {
        "shapes": ShapeSource,
        "pieces": lambda: PieceSource(_training_frames(cfg), cfg.INPUT.FORMAT),
        "coco": lambda: CocoSource(_coco_list(cfg), node.COCO_CATEGORIES, cfg.INPUT.FORMAT),
        "cutouts": lambda: CutoutSource(
            data_root() / Path(node.CUTOUTS).expanduser(), cfg.INPUT.FORMAT
        ),
    }
    sources = [(make[name](), weight) for name, weight in mix]
    names = list(class_names(cfg))
    for name in node.STAND_ON:
        if name not in names:
            known = ", ".join(names)
            raise UserError(f"INPUT.OOD_PASTE.STAND_ON: '{name}' is none of the classes {known}")
    ground = [names.index(name) for name in node.STAND_ON]
    try:
        return OODPaste(
            sources, node.PROB, node.NUM, node.SIZE, ood_label=len(names), stand_on=ground,
            shadow=node.SHADOW,
        )
    except ValueError as error:
        name, _, reason = str(error).partition(" ")
        key = "MIX" if name == "weights" else name.upper()
        raise UserError(f"INPUT.OOD_PASTE.{key} {reason}") from error


def _training_frames(cfg: CfgNode) -> list[LabelledFrame]:
    return [
        LabelledFrame(frame["file_name"], frame["sem_seg_file_name"], MetadataCatalog.get(name))
        for name in cfg.DATASETS.TRAIN
        for frame in get_dicts(name)
    ]


def _coco_list(cfg: CfgNode) -> Path:
    return Path(cfg.INPUT.OOD_PASTE.COCO_LIST or data_root() / "coco_outliers.json").expanduser()


def fallback_warning(cfg: CfgNode) -> str:
    """Warning if the source is "auto" and there are no COCO objects; else ""."""
    path = _coco_list(cfg)
    if cfg.INPUT.OOD_PASTE.SOURCE != "auto" or path.is_file():
        return ""
    return (
        f"INPUT.OOD_PASTE.SOURCE is auto and {path} does not exist: the outliers of this training "
        "are drawn shapes and pieces of its images, neither COCO's objects "
        "(datasets/prepare_coco_outliers.py lists them) nor the published training data "
        "(configs/tdos_*_poc.yaml)"
    )


def _brightness(image: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> float:
    """Factor that gives an object the brightness of the image, within limits."""
    step = max(1, min(image.shape[:2]) // 64)  # a sparse grid of pixels is enough
    ratio = float(image[::step, ::step].mean()) / max(float(patch[mask > 0.5].mean()), 8.0)
    return float(np.clip(ratio, 0.5, 1.6))


def _noise_level(image: np.ndarray) -> float:
    """Standard deviation of an image's noise, from differences of neighbours in smooth parts."""
    rows = image[:: max(1, image.shape[0] // 32)].astype(np.int16)
    second = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
    # The median ignores the edges; for Gaussian noise of deviation s it is 0.6745 * sqrt(6) * s.
    return float(np.median(np.abs(second))) / 1.652
