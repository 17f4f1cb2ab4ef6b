"""Registration of OOD test datasets."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...labels import KNOWN, OOD, VOID
from ..reading import IGNORE
from .folder import ImageFolder, register_folder
from .label_colours import check_declared_once, colour_table, parse_colours

PROTOCOLS = ("anomaly", "obstacle")


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
    id_colours: Any = (),
    ood_colours: Any = (),
    ignore_colours: Any = (),
    image_list: str | os.PathLike | None = None,
    class_values: Mapping[int, int] | None = None,
    instance_root: str | os.PathLike | None = None,
    instance_suffix: str = ".png",
) -> None:
    """Register a folder of images with OOD labels as a test dataset.

    Folders are listed when the dataset is loaded, label values checked when a label is read.

    Args:
        name: name for ``DATASETS.TEST``.
        image_root: folder of the images, nested or not. Other files in it are ignored.
        label_root: folder of the labels: the label of ``a/b.jpg`` is ``label_root/a/b`` +
            ``label_suffix``. May be ``image_root``.
        image_glob: which paths below ``image_root`` are images of the dataset.
        image_suffix: ending of image names, before the extension, that label names do not have,
            for example "_leftImg8bit". Images without it are ignored.
        label_suffix: end of a label's path, for example "_labels_semantic.png".
        region_mask: a mask file for all frames, or a folder with a mask ``a/b.png`` for every
            image. Pixels that are not 0 in it, such as the ego vehicle or the sky, are void.
        id_values: values in label files for in-distribution pixels (0 after reading).
        ood_values: values for OOD pixels (1 after reading).
        ignore_values: values for void pixels (255 after reading).
        id_colours, ood_colours, ignore_colours: for colour-coded masks, colours instead of values:
            lists of (r, g, b) or "#rrggbb".
        image_list: text file with an image of the dataset per line: its path below ``image_root``,
            with or without extension; None = all.
        class_values: known class (0..K-1) of label values in ``id_values``, if labels have classes;
            for open-IoU.
        instance_root: folder of instance masks ``a/b`` + ``instance_suffix``: one channel, a number
            per true instance, 0 elsewhere; None = instances are the components of the labels.
        instance_suffix: end of an instance mask's path.
        undeclared: other values or colours are an error ("error") or void ("ignore").
        protocol: component sizes for large ("anomaly") or small objects ("obstacle").
        min_pred: smallest predicted component in pixels; None = the protocol's.
        min_gt: smallest true component in pixels; None = the protocol's.
        test_size: (W, H) that the model's input is resized to; scores have the image's size.

    Raises:
        UserError: the name is taken or an argument is wrong.
    """
    metadata = ood_metadata(
        name, id_values=id_values, ood_values=ood_values, ignore_values=ignore_values,
        undeclared=undeclared, protocol=protocol, min_pred=min_pred, min_gt=min_gt,
        test_size=test_size, class_values=class_values,
    )
    colours = _colours(name, id_colours, ood_colours, ignore_colours, class_values)
    values = tuple(id_values), tuple(ood_values), tuple(ignore_values)
    if colours and values != ((0,), (1,), (255,)):
        raise UserError(f"dataset '{name}': masks have values or colours, not both")
    metadata |= colours
    given = image_root, label_root, region_mask, image_list, instance_root
    paths = [None if path is None else Path(path).expanduser() for path in given]
    folder = ImageFolder(
        *paths[:2], image_glob=image_glob, image_suffix=image_suffix, label_suffix=label_suffix,
        region_mask=paths[2], image_list=paths[3], instances=paths[4],
        instance_suffix=instance_suffix,
    )
    register_folder(name, folder, **metadata)


def _colours(
    name: str, known: Any, ood: Any, ignored: Any, class_values: Any
) -> dict[str, Any]:
    """``label_colours`` of colour-coded masks; empty if no colour is declared."""
    where = f"dataset '{name}'"
    given = {KNOWN: known, OOD: ood, VOID: ignored}
    if not any(given.values()):
        return {}
    if class_values:
        raise UserError(f"{where}: class_values needs labels with values, not colours")
    if not (known and ood):
        raise UserError(f"{where}: masks in colour need id_colours and ood_colours")
    parsed = {label: parse_colours(colours, where) for label, colours in given.items()}
    return {"label_colours": colour_table(parsed, where)}


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
    class_values: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Check arguments of :func:`register_ood_dataset` and return them as metadata."""
    if undeclared not in ("error", "ignore"):
        raise UserError(f"dataset '{name}': undeclared must be error or ignore, got {undeclared!r}")
    if protocol not in PROTOCOLS:
        raise UserError(
            f"dataset '{name}': protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    sizes = {"min_pred": min_pred, "min_gt": min_gt}
    for key, size in sizes.items():
        if size is not None and not _is_integer(size):
            raise UserError(f"dataset '{name}': {key} must be an integer, got {size!r}")
    lists = {"id_values": id_values, "ood_values": ood_values, "ignore_values": ignore_values}
    if test_size is not None:
        lists["test_size"] = test_size
    for key, numbers in lists.items():
        is_list = isinstance(numbers, Collection) and not isinstance(numbers, (str, bytes))
        if not is_list or not all(map(_is_integer, numbers)):
            raise UserError(f"dataset '{name}': {key} must be a list of integers, got {numbers!r}")
    values = [*id_values, *ood_values, *ignore_values]
    check_declared_once(f"dataset '{name}'", values)
    if not all(0 <= value <= 255 for value in values):
        raise UserError(f"dataset '{name}': label values must be in 0..255")
    if test_size is not None and (len(test_size) != 2 or min(test_size) < 1):
        raise UserError(f"dataset '{name}': test_size must be (W, H), got {test_size!r}")
    class_values = dict(class_values or {})
    if not class_values.keys() <= set(id_values):
        raise UserError(f"dataset '{name}': class_values has a value that is not in id_values")
    if not all(type(number) is int and 0 <= number < VOID for number in class_values.values()):
        raise UserError(f"dataset '{name}': class_values must give classes in 0..254")
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
        "class_values": class_values,
    }


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # NumPy's too
