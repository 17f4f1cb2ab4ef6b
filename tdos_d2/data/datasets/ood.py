"""OOD test sets: ``register_ood_dataset`` for your own, and the built-in benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..reading import IGNORE
from .folder import BuiltinFolder, ImageFolder, register_folder

PROTOCOLS = ("anomaly", "obstacle")

# As the official tools do: what is neither normal nor anomaly is void.
_SMIYC = {"undeclared": "ignore"}
_OBSTACLE = {"undeclared": "ignore", "protocol": "obstacle"}
_LAF = {
    "id_values": (1,),
    "ood_values": tuple(range(2, 201)),
    "ignore_values": (0, 255),
    **_OBSTACLE,
}
# Without numbers 19 and 21 to 29, whose objects are in the test scenes too.
_OBSTACLE_VAL = r"validation_(?!(19|2[1-9])$).*"
# Neither validation nor the scenes that are evaluated apart: snow and night.
_OBSTACLE_TEST = (
    r"(curvy-street|one-way-street|gravel|greyasphalt|motorway|paving|darkasphalt2?)(_.*)?"
)
# Frames of Lost and Found's test split, by their place in the sorted list, whose label is all zero.
_LAF_INVALID = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
_LAF_FRAMES = 1203
# Without children (one scene) and bicycles (three sequences), which are known classes.
_LAF_NO_KNOWN = (
    r"(?!15_Rechbergstr_Deckenpfronn|01_Hanns_Klemm_Str_45_00000[67]|10_Schlossberg_9_000004).*"
)


def _smiyc(track: str, pattern: str, labelled: bool) -> BuiltinFolder:
    """Validation and test frames lie in one folder; labels of the latter are not public."""
    layout = ImageFolder(
        "images", "labels_masks" if labelled else None, label_suffix="_labels_semantic.png",
        pattern=pattern,
    )
    return BuiltinFolder((f"dataset_{track}",), (layout,))


def _fishyscapes(folder: str, script: str) -> BuiltinFolder:
    return BuiltinFolder((folder,), (ImageFolder("images", "labels"),), f"datasets/{script}")


def _lost_and_found(pattern: str) -> BuiltinFolder:
    layout = ImageFolder(
        "leftImg8bit/test", "gtCoarse/test", image_suffix="_leftImg8bit",
        label_suffix="_gtCoarse_labelIds.png", pattern=pattern, left_out=_LAF_INVALID,
        total=_LAF_FRAMES,
    )
    return BuiltinFolder(("dataset_LostAndFound", "LostAndFound", "lost_and_found"), (layout,))


_FS_LAF = _fishyscapes("fs_laf", "prepare_fs_laf.py")
_FS_STATIC = {v: _fishyscapes(f"fs_static_v{v}", "prepare_fs_static.py") for v in (1, 2, 3)}
_ROAD_ANOMALY = BuiltinFolder(
    (
        "RoadAnomaly", "RoadAnomaly_jpg", "dataset_RoadAnomaly", "road_anomaly",
        "RoadAnomaly/RoadAnomaly_jpg",
    ),
    (
        ImageFolder("frames", "frames", image_glob="*", label_suffix=".labels/labels_semantic.png"),
        ImageFolder("original", "labels"),
    ),
)

# name -> place, and what differs from the defaults of register_ood_dataset
_BUILTIN: dict[str, tuple[BuiltinFolder, dict[str, Any]]] = {
    "smiyc_anomalytrack_val": (_smiyc("AnomalyTrack", "validation.*", True), _SMIYC),
    "smiyc_anomalytrack_test": (_smiyc("AnomalyTrack", "(?!validation).*", False), _SMIYC),
    "smiyc_obstacletrack_val": (_smiyc("ObstacleTrack", _OBSTACLE_VAL, True), _OBSTACLE),
    "smiyc_obstacletrack_test": (_smiyc("ObstacleTrack", _OBSTACLE_TEST, False), _OBSTACLE),
    # The anomaly is 2 in EPFL's files (as in its tool, so is anything above), 1 in the 0/1 form.
    "road_anomaly": (_ROAD_ANOMALY, {"ood_values": range(1, 255)}),
    "fs_laf_val": (_FS_LAF, _OBSTACLE),
    **{f"fs_static_v{version}_val": (place, _SMIYC) for version, place in _FS_STATIC.items()},
    "fs_static_val": (_FS_STATIC[2], _SMIYC),
    "laf_test": (_lost_and_found(".*"), _LAF),
    "laf_test_noknown": (_lost_and_found(_LAF_NO_KNOWN), _LAF),
}


def register_ood_dataset(
    name: str,
    image_root: str | os.PathLike,
    label_root: str | os.PathLike,
    *,
    image_glob: str = "**/*",
    image_suffix: str = "",
    label_suffix: str = ".png",
    region_mask: str | os.PathLike | None = None,
    id_values: Sequence[int] = (0,),
    ood_values: Sequence[int] = (1,),
    ignore_values: Sequence[int] = (255,),
    undeclared: str = "error",
    protocol: str = "anomaly",
    min_pred: int | None = None,
    min_gt: int | None = None,
    test_size: tuple[int, int] | None = None,
) -> None:
    """Register a folder of images with OOD labels as a test set.

    The folders are read when the set is used, the values of labels when they are read.

    Args:
        name: name for ``DATASETS.TEST``.
        image_root: folder of the images, nested or not. Other files in it do not matter.
        label_root: folder of the labels: that of ``a/b.jpg`` is ``label_root/a/b`` +
            ``label_suffix``. May be ``image_root``.
        image_glob: which paths below ``image_root`` are images of the set.
        image_suffix: end of an image's name, before the extension, that its label does not have,
            for example "_leftImg8bit". Only images with it belong to the set.
        label_suffix: end of a label's path, for example "_labels_semantic.png".
        region_mask: pixels that never count, such as the ego vehicle or the sky: a mask file for
            all frames, or a folder with a mask ``a/b.png`` for every image. What is not zero in a
            mask is void.
        id_values: values in label files that mean known (0 after reading).
        ood_values: values that mean OOD (1 after reading).
        ignore_values: values that do not count (255 after reading).
        undeclared: what other values are: an "error", or to "ignore".
        protocol: component metrics of large "anomaly" or small "obstacle" objects.
        min_pred: least size of a predicted component in pixels; None = the protocol's.
        min_gt: least size of a true component in pixels; None = the protocol's.
        test_size: (W, H) that the model's input is resized to; scores have the image's size.

    Raises:
        UserError: the name is taken or an argument is wrong.
    """
    metadata = ood_metadata(
        name, id_values=id_values, ood_values=ood_values, ignore_values=ignore_values,
        undeclared=undeclared, protocol=protocol, min_pred=min_pred, min_gt=min_gt,
        test_size=test_size,
    )
    image_root, label_root = Path(image_root).expanduser(), Path(label_root).expanduser()
    region_mask = None if region_mask is None else Path(region_mask).expanduser()
    folder = ImageFolder(
        image_root, label_root, image_glob=image_glob, image_suffix=image_suffix,
        label_suffix=label_suffix, region_mask=region_mask,
    )
    register_folder(name, folder, **metadata)


def register_ood() -> None:
    """Register the built-in OOD sets that belong to no other family."""
    for name, (folder, options) in _BUILTIN.items():
        register_folder(name, folder, **ood_metadata(name, **options))


def ood_metadata(
    name: str,
    *,
    id_values: Sequence[int] = (0,),
    ood_values: Sequence[int] = (1,),
    ignore_values: Sequence[int] = (255,),
    undeclared: str = "error",
    protocol: str = "anomaly",
    min_pred: int | None = None,
    min_gt: int | None = None,
    test_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Check the arguments of :func:`register_ood_dataset` and lay them out as metadata."""
    if undeclared not in ("error", "ignore"):
        raise UserError(f"dataset '{name}': undeclared must be error or ignore, got {undeclared!r}")
    if protocol not in PROTOCOLS:
        raise UserError(
            f"dataset '{name}': protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    values = [*id_values, *ood_values, *ignore_values]
    if len(set(values)) < len(values):
        raise UserError(f"dataset '{name}': a label value is declared twice")
    if not all(0 <= value <= 255 for value in values):
        raise UserError(f"dataset '{name}': label values must be in 0..255")
    if test_size is not None and (len(test_size) != 2 or min(test_size) < 1):
        raise UserError(f"dataset '{name}': test_size must be (W, H), got {test_size!r}")
    return {
        "evaluator_type": "ood",
        "ignore_label": IGNORE,
        "id_values": tuple(id_values),
        "ood_values": tuple(ood_values),
        "ignore_values": tuple(ignore_values),
        "undeclared": undeclared,
        "protocol": protocol,
        "min_pred": min_pred,
        "min_gt": min_gt,
        "test_size": None if test_size is None else tuple(test_size),
    }
