"""The dataset mapper: from dataset dicts to the model's inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from detectron2.projects.point_rend import ColorAugSSDTransform

from ..errors import UserError
from ..value_checks import check_interval, check_positive, check_share
from .augmentation import build_train_augmentations, pad
from .ood_paste import OODPaste, build_ood_paste
from .reading import check_same_size, read_image, read_label
from .samplers import sample_randomness
from .verify.quick import check_registered

_RARE_CLASS_TRIES = 10
_CROPS = ("absolute", "absolute_range", "relative", "relative_range")  # Detectron2's


class TDOSDatasetMapper:
    """Reads the image, and in training the label, of a dataset dict and transforms them.

    1. In training: random resize, crop and flip; otherwise the resizing of the test set, if any.
    2. In training: paste outliers, then apply the same photometric distortion to all pixels
       (otherwise colours would reveal pasted objects), then pad to the size of the crop.

    The random numbers of a training sample depend only on the seed and the dict's "position" (see
    :class:`~tdos_d2.data.samplers.PositionalDataset`).
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        metadata: Mapping[str, Metadata] | None = None,
        ood_paste: OODPaste | None = None,
        distortion: T.Transform | None = None,
        pad_size: tuple[int, int] | None = None,
        pad_color: Sequence[float] = (0, 0, 0),
        min_rare_pixels: int = 0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            is_train: whether to read labels, transform at random and paste outliers.
            augmentations: applied first, to image and label.
            image_format: "RGB" or "BGR".
            metadata: metadata of the training datasets by name, for reading labels. If there are
                several, each dict must have its "dataset_name".
            ood_paste: pastes outliers into a training image.
            distortion: photometric distortion of a training image, after pasting.
            pad_size: (height, width) that smaller training images are padded to.
            pad_color: colour of the padding; that of labels is 255.
            min_rare_pixels: a dict with a "rare_class" (see :class:`~.rare_class.RareClassDataset`)
                is cropped up to 10 times, until its crop has more pixels of that class than this.
            seed: any integer >= 0.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.metadata = dict(metadata or {})
        self.ood_paste = ood_paste
        self.distortion = distortion
        self.pad_size = pad_size
        self.pad_color = pad_color
        self.min_rare_pixels = min_rare_pixels
        self.seed = seed

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, dataset_name: str | None = None
    ) -> dict[str, Any]:
        """Read ``cfg``; ``dataset_name`` is the test dataset, whose ``test_size`` applies."""
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT must be RGB or BGR, got {cfg.INPUT.FORMAT!r}")
        if is_train:
            kwargs = _train_kwargs(cfg)
        else:
            kwargs = {"augmentations": _test_augmentations(cfg, dataset_name)}
        return {"is_train": is_train, "image_format": cfg.INPUT.FORMAT, **kwargs}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and transform one sample.

        Args:
            dataset_dict: in Detectron2's format; in training with ``sem_seg_file_name``.

        Returns:
            the dict with image_id, height and width (of the file), ``image``, a (3, h, w) uint8
            tensor in ``image_format``, and in training ``sem_seg``, an (h, w) int64 tensor: 0..K-1
            known classes, K = OOD, 255 = ignored.

        Raises:
            UserError: a file cannot be read, a label has undeclared values or another size, or it
                is not known of which training set it is.
        """
        record = copy.deepcopy(dataset_dict)
        record.setdefault("image_id", record["file_name"])
        image = read_image(record["file_name"], self.image_format)
        try:
            check_image_size(record, image)
        except SizeMismatchError as error:
            raise UserError(str(error)) from error
        if self.is_train:
            image, label = self._augment(record, image)
            record["sem_seg"] = torch.from_numpy(label.astype(np.int64))
        else:
            image, *_ = self._transform(image, None)
        record["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return record

    def _augment(self, record: dict[str, Any], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # OpenCV's threads would compete with the other dataloader workers.
        cv2.setNumThreads(0)
        path = record.pop("sem_seg_file_name")
        label = read_label(path, self.metadata[self._dataset_of(record)])
        check_same_size(f"label {path}", label, f"its image {record['file_name']}", image)
        position = record.get("position")
        if position is None:  # a dict that comes from some other dataset class
            position = np.random.randint(2**31)
        with sample_randomness(self.seed, position) as rng:
            frame_height = len(image)
            rare_class = record.get("rare_class")
            for _ in range(1 + _RARE_CLASS_TRIES):
                # Resized again, too: at a small scale, perhaps no crop has enough pixels.
                sample = self._transform(image, label)
                if rare_class is None or np.sum(sample[1] == rare_class) > self.min_rare_pixels:
                    break
            image, label, transforms = sample
            if self.ood_paste is not None:
                rows = _rows_in_frame(transforms, frame_height, len(image))
                image, label = self.ood_paste(image, label, rng, rows)
            if self.distortion is not None:
                image = self.distortion.apply_image(image)
        if self.pad_size is not None:
            image, label = pad(image, label, self.pad_size, self.pad_color)
        return image, label

    def _dataset_of(self, record: Mapping[str, Any]) -> str:
        if "dataset_name" not in record and len(self.metadata) > 1:
            raise UserError(
                f"the dict of {record['file_name']} has no dataset_name, which tells whose label "
                "values it has, and DATASETS.TRAIN has several sets: build_train_loader of "
                "tdos_d2.data adds it"
            )
        return record.get("dataset_name", next(iter(self.metadata)))

    def _transform(
        self, image: np.ndarray, label: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, T.Transform]:
        aug_input = T.AugInput(image, sem_seg=label)
        transforms = self.augmentations(aug_input)
        return aug_input.image, aug_input.sem_seg, transforms


def _train_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of a mapper for training, read from ``cfg``."""
    check_positive(cfg, "INPUT", "SCALE_RANGE")
    check_interval(cfg, "INPUT", "SCALE_RANGE")
    check_positive(cfg, "INPUT.CROP", "SIZE")
    check_share(cfg, "INPUT.CROP", "SINGLE_CATEGORY_MAX_AREA")
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "vertical", "none"):
        raise UserError(
            f"INPUT.RANDOM_FLIP must be horizontal, vertical or none, got {cfg.INPUT.RANDOM_FLIP!r}"
        )
    crop = (cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None
    if crop and crop[0] not in _CROPS:
        raise UserError(f"INPUT.CROP.TYPE: '{crop[0]}' is none of {', '.join(_CROPS)}")
    relative = crop and crop[0].startswith("relative")
    if crop and not all(s <= 1 if relative else isinstance(s, int) for s in crop[1]):
        raise UserError(
            f"INPUT.CROP.SIZE: {crop[1]} does not go with INPUT.CROP.TYPE {crop[0]}: absolute "
            "sizes are whole pixels, relative ones shares up to 1"
        )
    if crop and crop[0] == "absolute_range":  # the only one whose SIZE is not (height, width)
        check_interval(cfg, "INPUT.CROP", "SIZE")
    return {
        "augmentations": build_train_augmentations(
            scale_range=cfg.INPUT.SCALE_RANGE,
            crop=crop,
            single_category_max_area=cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
            flip=cfg.INPUT.RANDOM_FLIP,
        ),
        "metadata": {name: MetadataCatalog.get(name) for name in cfg.DATASETS.TRAIN},
        "ood_paste": build_ood_paste(cfg),
        # SSD's: brightness 32, contrast and saturation 0.5-1.5, hue 18.
        "distortion": ColorAugSSDTransform(cfg.INPUT.FORMAT) if cfg.INPUT.COLOR_AUG_SSD else None,
        # Only absolute crops have a fixed size.
        "pad_size": tuple(crop[1]) if crop and crop[0] == "absolute" else None,
        "pad_color": cfg.MODEL.PIXEL_MEAN,
        "min_rare_pixels": cfg.INPUT.RARE_CLASS.MIN_CROP_PIXELS,
        "seed": max(cfg.SEED, 0),
    }


def test_sizes(cfg: CfgNode) -> dict[str, tuple[int, int]]:
    """``INPUT.TEST_SIZES``: by dataset, (shorter side, largest longer side) in pixels.

    Raises:
        UserError: a row has another form, or its dataset is unknown or named twice.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for row in cfg.INPUT.TEST_SIZES:
        match row:
            case [str(name), int(shorter), int(longer)] if 0 < shorter <= longer:
                check_registered(name)
                if name in sizes:
                    raise UserError(f"INPUT.TEST_SIZES names '{name}' twice")
                sizes[name] = (shorter, longer)
            case _:
                raise UserError(
                    'INPUT.TEST_SIZES has rows of ["dataset", shorter side, longer side at most] '
                    f"in pixels, not {row!r}"
                )
    return sizes


def _rows_in_frame(transforms: T.Transform, frame_height: int, height: int) -> tuple[float, float]:
    """Top and bottom edge of a transformed image in its frame, relative to the frame's height."""
    corners = np.array([[0.0, 0.0], [0.0, frame_height]])
    top, bottom = transforms.apply_coords(corners)[:, 1]
    return float(-top / (bottom - top)), float((height - top) / (bottom - top))


def size_rule(cfg: CfgNode, dataset_name: str | None = None) -> dict[str, Any]:
    """Input size for images of a test dataset, or (None) of the predictor.

    Returns:
        ``{"size": (width, height)}``, ``{"shorter": ..., "longer": ...}`` (length of the shorter
        side, and limit of the longer), or ``{}`` for the original size.
    """
    test_size = MetadataCatalog.get(dataset_name).get("test_size") if dataset_name else None
    if test_size is not None:
        return {"size": tuple(test_size)}
    check_positive(cfg, "INPUT", "MAX_SIZE_TEST")
    default = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    shorter, longer = test_sizes(cfg).get(dataset_name, default)
    return {"shorter": shorter, "longer": longer} if shorter > 0 else {}


def _test_augmentations(cfg: CfgNode, dataset_name: str | None) -> list[T.Augmentation]:
    match size_rule(cfg, dataset_name):
        case {"size": (width, height)}:
            return [T.Resize((height, width))]
        case {"shorter": shorter, "longer": longer}:
            return [_ResizeShorterSide(shorter, longer)]
    return []


class _ResizeShorterSide(T.ResizeShortestEdge):
    """Detectron2's, with one line for images so narrow that no pixel of a side would be left."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform) and not (transform.new_h and transform.new_w):
            height, width = image.shape[:2]
            raise UserError(
                f"an image of {width}x{height} is too narrow: with its longer side of "
                f"{self.max_size} pixels (INPUT.MAX_SIZE_TEST) nothing of the other is left"
            )
        return transform
