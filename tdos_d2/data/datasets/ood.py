"""OOD test sets: ``register_ood_dataset`` for your own, and the built-in ones."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from tdos_d2.data.datasets.folder import BuiltinFolder, read_folder, register
from tdos_d2.data.reading import IGNORE
from tdos_d2.errors import UserError

PROTOCOLS = ("anomaly", "obstacle")

# name -> place, and what differs from the defaults of register_ood_dataset
_BUILTIN: dict[str, tuple[BuiltinFolder, dict[str, Any]]] = {
    # "images" also holds the test frames, whose labels are not public. Like the official tool,
    # take what is neither normal nor anomaly as void.
    "smiyc_anomalytrack_val": (
        BuiltinFolder(
            ("dataset_AnomalyTrack",),
            "images",
            "labels_masks",
            image_glob="validation*",
            label_suffix="_labels_semantic.png",
        ),
        {"undeclared": "ignore"},
    ),
    # 2 is the anomaly; as in the official tool, so is anything above.
    "road_anomaly": (
        BuiltinFolder(
            ("RoadAnomaly", "RoadAnomaly_jpg", "dataset_RoadAnomaly"),
            "frames",
            "frames",
            image_glob="*",
            label_suffix=".labels/labels_semantic.png",
        ),
        {"ood_values": range(2, 255)},
    ),
}


def register_ood_dataset(
    name: str,
    image_root: str | os.PathLike,
    label_root: str | os.PathLike,
    *,
    image_glob: str = "**/*",
    label_suffix: str = ".png",
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
        label_suffix: end of a label's path, for example "_labels_semantic.png".
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
    metadata = _ood_metadata(
        name,
        id_values=id_values,
        ood_values=ood_values,
        ignore_values=ignore_values,
        undeclared=undeclared,
        protocol=protocol,
        min_pred=min_pred,
        min_gt=min_gt,
        test_size=test_size,
    )
    read = functools.partial(
        read_folder, name, image_root, label_root, image_glob=image_glob, label_suffix=label_suffix
    )
    register(name, read, **metadata)


def register_builtin_ood(name: str, folder: BuiltinFolder, **options: Any) -> None:
    """Register a set below the data root; ``options`` as in :func:`register_ood_dataset`."""
    register(name, functools.partial(folder.read, name), **_ood_metadata(name, **options))


def register_ood() -> None:
    """Register the built-in OOD sets that belong to no other family."""
    for name, (folder, options) in _BUILTIN.items():
        register_builtin_ood(name, folder, **options)


def _ood_metadata(
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
    """Check the arguments and lay them out as metadata."""
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
