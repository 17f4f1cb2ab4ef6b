"""Registration of training datasets: images, masks and the names of the known classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..reading import IGNORE
from .folder import ImageFolder, register_folder
from .label_colours import Colour, check_declared_once, colour_table, parse_colours


def register_segmentation_dataset(
    name: str,
    image_root: str | os.PathLike,
    label_root: str | os.PathLike,
    classes: Sequence[str] | Mapping[str, int | Sequence[int]] | None = None,
    *,
    colours: Mapping[str, Any] | None = None,
    image_list: str | os.PathLike | None = None,
    image_glob: str = "**/*",
    image_suffix: str = "",
    label_suffix: str = ".png",
    ood_values: Sequence[int] = (),
    ignore_values: Sequence[int] = (255,),
    ood_colours: Any = (),
    ignore_colours: Any = (),
) -> None:
    """Register a folder of images with masks of known classes, for training or measuring mIoU.

    The folders and the list are read when the dataset is loaded, masks when they are used.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        image_root, label_root, image_glob, image_suffix, label_suffix: as for
            :func:`~tdos_d2.data.datasets.ood.register_ood_dataset`.
        classes: names of the known classes, whose values in the masks are 0, 1, ...; or a mapping
            of names to a value or a list of values. Optional with ``colours``, whose order then
            applies.
        colours: class name -> colour or list of colours, for colour-coded masks; a colour is
            (r, g, b) or "#rrggbb". Without it masks must have one channel.
        image_list: text file with an image of the dataset per line: its path below ``image_root``,
            with or without extension; None = all.
        ood_values, ood_colours: values or colours of pixels that are OOD in training (label K).
        ignore_values, ignore_colours: values or colours of void.

    Raises:
        UserError: the name is taken, or an argument is invalid.
    """
    where = f"dataset '{name}'"
    if colours is None:
        if ood_colours or ignore_colours:
            raise UserError(f"{where}: ood_colours and ignore_colours need colours")
        metadata = _of_values(where, classes, ood_values, ignore_values)
    elif ood_values or tuple(ignore_values) not in ((), (IGNORE,)):
        raise UserError(
            f"{where}: with colours, void and OOD are ood_colours and ignore_colours, not values"
        )
    else:
        metadata = _of_colours(where, classes, colours, ood_colours, ignore_colours)
    folder = ImageFolder(
        Path(image_root).expanduser(), Path(label_root).expanduser(), image_glob=image_glob,
        image_suffix=image_suffix, label_suffix=label_suffix,
        image_list=None if image_list is None else Path(image_list).expanduser(),
    )
    register_folder(name, folder, evaluator_type="sem_seg", ignore_label=IGNORE, **metadata)


def _of_values(
    where: str, classes: Any, ood_values: Sequence[int], ignore_values: Sequence[int]
) -> dict[str, Any]:
    if not classes:
        raise UserError(f"{where}: classes (or colours) must name the known classes")
    names = _names(where, classes)
    of_class = [[i] for i in range(len(names))]
    if isinstance(classes, Mapping):
        of_class = [_of_class(where, *entry) for entry in classes.items()]
    values = [*chain.from_iterable(of_class), *ood_values, *ignore_values]
    if not all(of_class) or not all(type(v) is int and 0 <= v <= 255 for v in values):
        raise UserError(f"{where}: values in masks are whole numbers in 0..255, at least one each")
    check_declared_once(where, values)
    return {
        "stuff_classes": names,
        "label_values": {v: i for i, own in enumerate(of_class) for v in own},
        "ood_values": tuple(ood_values),
        "ignore_values": tuple(ignore_values),
    }


def _of_class(where: str, name: str, value: Any) -> list[int]:
    if type(value) is int:
        return [value]
    if isinstance(value, (str, Mapping)) or not isinstance(value, Collection):
        raise UserError(
            f"{where}, class '{name}': a whole number in 0..255 or a list of them, not {value!r}"
        )
    return list(value)


def _of_colours(
    where: str, classes: Any, colours: Mapping[str, Any], ood: Any, ignored: Any
) -> dict[str, Any]:
    if isinstance(classes, Mapping):
        raise UserError(f"{where}: masks have values (classes) or colours, not both")
    names = _names(where, classes or list(colours))
    if sorted(names) != sorted(colours):
        raise UserError(f"{where}: colours must name the classes, each once: {', '.join(names)}")
    found: dict[int, list[Colour]] = {
        i: parse_colours(colours[name], f"{where}, class '{name}'") for i, name in enumerate(names)
    }
    if not all(found.values()):
        raise UserError(f"{where}: each class needs a colour")
    return {
        "stuff_classes": names,
        "stuff_colors": [found[i][0] for i in range(len(names))],
        "label_colours": colour_table(
            {
                **found,
                len(names): parse_colours(ood, f"{where}, ood_colours"),
                IGNORE: parse_colours(ignored, f"{where}, ignore_colours"),
            },
            where,
        ),
    }


def _names(where: str, classes: Any) -> list[str]:
    if isinstance(classes, str) or not isinstance(classes, Collection):
        raise UserError(f"{where}: classes must be a list or a mapping, not {classes!r}")
    names = list(classes)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{where}: class names must be texts")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: a class name is given twice")
    if len(names) > 254:
        raise UserError(f"{where}: at most 254 classes are possible, got {len(names)}")
    return names
