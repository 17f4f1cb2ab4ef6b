"""Reading images and label maps from files."""

from __future__ import annotations

import os
from functools import partial

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..files import decode_image, decode_values, once_per_file, open_with
from ..files import image_size as size_of_image

IGNORE = 255
_UNDECLARED = -1


def read_image(path: str | os.PathLike, format: str = "RGB") -> np.ndarray:
    """Read an image and rotate it according to its EXIF data.

    Args:
        path: the file; its format is detected from its content, not its name.
        format: channel order, "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: the file cannot be read as an image, or has more than 16 bits per channel.
    """
    image = open_with(decode_image, "image", path, PathManager.open)
    return image[..., ::-1] if format == "BGR" else image


@once_per_file(2**16)
def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height of :func:`read_image`'s result, from the file's header; cached.

    Raises:
        UserError: the file is not an image.
    """
    return open_with(size_of_image, "image", path, PathManager.open)


def read_label(
    path: str | os.PathLike, metadata: Metadata, region_mask: str | os.PathLike | None = None
) -> np.ndarray:
    """Read a label map and translate the values of the file.

    Datasets of ``evaluator_type`` "ood" give 0 (known), 1 (OOD) and 255 (void), by ``id_values``,
    ``ood_values`` and ``ignore_values``; with ``undeclared="ignore"`` all other values are void.
    Others give train ids: 0..K-1 for the K ``stuff_classes``, K for the metadata's ``ood_values``
    (none by default), the train ids in the dict ``class_values`` for further values, and 255 for
    255 (unless that is declared as something else), ``ignore_label`` and ``ignore_values``. If the
    file's values are not train ids, a dict ``label_values`` maps them to these. With a dict
    ``label_colours``, from (r, g, b) to the result, the file is read as a colour image.

    Args:
        path: an image file with one channel (or a palette, whose indices are used), or in colour.
        metadata: metadata of the label's dataset.
        region_mask: the ``region_mask_file_name`` of the frame, if it has one: an image file with
            one channel; where it is not 0 the label is 255.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: a file cannot be read, has several channels, fractions, fewer than 8 bits of grey
            or an undeclared value or colour, or the region mask has another size.
    """
    colours = metadata.get("label_colours")
    if colours:
        label = _read_colours(path, metadata)
    else:
        label = _translate_values(path, metadata, value_table(metadata))
    return _masked(label, path, region_mask)


def _translate_values(
    path: str | os.PathLike, metadata: Metadata, table: np.ndarray
) -> np.ndarray:
    values = read_values(path)
    if values.dtype != np.uint8:  # more than 8 bits
        if values.min() < 0 or values.max() > 255:
            raise _undeclared(path, metadata, values[(values < 0) | (values > 255)])
        values = values.astype(np.uint8)
    undeclared = cv2.LUT(values, (table == _UNDECLARED).astype(np.uint8))
    if undeclared.any():
        raise _undeclared(path, metadata, values[undeclared > 0])
    return cv2.LUT(values, table.astype(np.uint8))  # as NumPy's indexing, but faster


def _read_colours(path: str | os.PathLike, metadata: Metadata) -> np.ndarray:
    """(H, W) uint8: a colour-coded mask, translated by ``label_colours`` of the metadata."""
    declared = metadata.label_colours
    picture = open_with(decode_image, "label", path, PathManager.open).astype(np.int32)
    codes = (picture[..., 0] << 16) | (picture[..., 1] << 8) | picture[..., 2]
    known = np.array([(r << 16) | (g << 8) | b for r, g, b in declared])
    order = np.argsort(known)
    place = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    label = np.array(list(declared.values()), np.uint8)[place]
    unknown = known[place] != codes
    if unknown.any():
        if metadata.get("undeclared", "error") != "ignore":
            found = [[code >> 16, code >> 8 & 255, code & 255]
                     for code in np.unique(codes[unknown]).tolist()]  # fmt: skip
            shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            raise UserError(
                f"label {path} has colours that dataset '{metadata.name}' does not declare: {shown}"
            )
        label[unknown] = IGNORE
    return label


def read_classes(
    path: str | os.PathLike, metadata: Metadata, region_mask: str | os.PathLike | None = None
) -> np.ndarray:
    """Read the label of an OOD dataset whose metadata have ``class_values``.

    Arguments and errors are those of :func:`read_label`.

    Returns:
        (H, W) uint8: 0..K-1 known classes, K OOD, 255 void, or known without a class.
    """
    table = value_table(metadata)
    known, ood = table == 0, table == 1
    table[known], table[ood] = IGNORE, num_known_classes(metadata)
    for value, number in metadata.class_values.items():
        table[value] = number
    label = _translate_values(path, metadata, table)
    return _masked(label, path, region_mask)


def num_known_classes(metadata: Metadata) -> int:
    """Number K of known classes in the labels of an OOD dataset; 0 without ``class_values``."""
    return 1 + max((metadata.get("class_values") or {}).values(), default=-1)


def _masked(
    label: np.ndarray, path: str | os.PathLike, region_mask: str | os.PathLike | None
) -> np.ndarray:
    """The label, with 255 where the region mask, if there is one, is not 0."""
    if region_mask is not None:
        label[read_region(region_mask, path, label)] = IGNORE
    return label


def read_region(
    path: str | os.PathLike, label_path: str | os.PathLike, label: np.ndarray
) -> np.ndarray:
    """(H, W) bool: where a region mask is not 0.

    Raises:
        UserError: as :func:`read_values`, or the mask has another size than the label.
    """
    return _read_beside(path, "region mask", label_path, label) != 0


def read_instances(
    path: str | os.PathLike, label_path: str | os.PathLike, label: np.ndarray
) -> np.ndarray:
    """(H, W) integers or bool: an instance mask, the ``instance_file_name`` of a frame.

    Raises:
        UserError: as :func:`read_values`, or the mask has another size than the label.
    """
    return _read_beside(path, "instance mask", label_path, label)


def _read_beside(
    path: str | os.PathLike, kind: str, label_path: str | os.PathLike, label: np.ndarray
) -> np.ndarray:
    """The values of a mask of this kind, which must have the size of its label."""
    values = read_values(path, kind)
    check_same_size(f"{kind} {path}", values, f"label {label_path}", label)
    return values


def read_values(path: str | os.PathLike, kind: str = "label") -> np.ndarray:
    """(H, W) integers or bool in an image file, which must have one channel.

    They are decoded by :func:`~tdos_d2.files.decode_values`. ``kind`` is for messages; only a
    "label" and a "class map" have values with meanings of their own, which need 8 bits.

    Raises:
        UserError: the file cannot be read, has several channels or values that are not integers, or
            is a label or class map in grey with fewer than 8 bits.
    """
    decode = partial(decode_values, shallow=kind not in ("label", "class map"))
    values = open_with(decode, kind, path, PathManager.open)
    if values.ndim != 2:
        raise UserError(f"{kind} {path} has {values.shape[2]} channels: it must have one")
    return values


def value_table(metadata: Metadata) -> np.ndarray:
    """(256,) int16: the label for each value in a label file; -1 = undeclared.

    Raises:
        UserError: the metadata of a dataset that is not "ood" have no ``stuff_classes``.
    """
    table = np.full(256, _UNDECLARED, np.int16)
    if metadata.get("evaluator_type") == "ood":
        if metadata.get("undeclared", "error") == "ignore":
            table[:] = IGNORE
        table[list(metadata.get("id_values", (0,)))] = 0
        table[list(metadata.get("ood_values", (1,)))] = 1
        table[list(metadata.get("ignore_values", (255,)))] = IGNORE
        return table
    classes = metadata.get("stuff_classes")
    if not classes:
        raise UserError(f"dataset '{metadata.name}': its metadata has no stuff_classes")
    if "label_values" in metadata.as_dict():
        for value, train_id in metadata.label_values.items():
            table[value] = train_id
    else:
        table[: len(classes)] = np.arange(len(classes))
    table[list(metadata.get("ood_values", ()))] = len(classes)
    for value, train_id in metadata.get("class_values", {}).items():
        table[value] = train_id
    others = {*metadata.get("label_values", ()), *metadata.get("ood_values", ())}
    ignored = {IGNORE, metadata.get("ignore_label", IGNORE)}
    ignored -= others & {IGNORE}  # in masks of 0 and 255 it is a class, or OOD
    ignored.update(metadata.get("ignore_values", ()))
    # Detectron2 allows any ignore_label, for example -1.
    table[[value for value in ignored if 0 <= value <= 255]] = IGNORE
    return table


def check_same_size(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Raise UserError unless two images or label maps have the same height and width."""
    size, wanted = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, other))
    if size != wanted:
        raise UserError(f"{name} is {size}, but {other_name} is {wanted}")


def _undeclared(path: str | os.PathLike, metadata: Metadata, values: np.ndarray) -> UserError:
    found = np.unique(values)
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    return UserError(
        f"label {path} has values that dataset '{metadata.name}' does not declare: {shown}"
    )
