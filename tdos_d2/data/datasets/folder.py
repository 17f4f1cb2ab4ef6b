"""Data sets that are a folder of images and a folder of label maps."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from tdos_d2.data.reading import image_size
from tdos_d2.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class MissingDatasetError(UserError):
    """The folder of a data set is not there."""


def data_root() -> Path:
    """Where built-in data sets lie: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


@dataclass(frozen=True)
class BuiltinFolder:
    """Place of a built-in data set below :func:`data_root`.

    Attributes:
        names: names that its folder may have; the first that exists is taken.
        images: folder of the images in it.
        labels: folder of the labels in it.
        image_glob: which files below ``images`` belong to the set.
        label_suffix: what follows the image's path without extension in the path of its label.
    """

    names: tuple[str, ...]
    images: str
    labels: str
    image_glob: str = "**/*"
    label_suffix: str = ".png"

    def read(self, name: str) -> list[dict[str, Any]]:
        """Dataset dicts of the set called ``name``; raises as :func:`read_folder` does."""
        root = data_root()
        for folder in (root / candidate for candidate in self.names):
            if folder.is_dir():
                return read_folder(
                    name,
                    folder / self.images,
                    folder / self.labels,
                    image_glob=self.image_glob,
                    label_suffix=self.label_suffix,
                )
        others = f" (nor {', '.join(self.names[1:])})" if len(self.names) > 1 else ""
        raise MissingDatasetError(
            f"dataset '{name}': no folder {root / self.names[0]}{others}; "
            f"DETECTRON2_DATASETS must name the folder that holds it (now: '{root}')"
        )


def register(name: str, read: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a data set with Detectron2; ``read`` is called when the set is asked for.

    Raises:
        UserError: the name is taken.
    """
    if name in DatasetCatalog:
        raise UserError(f"dataset '{name}' is already registered")
    try:
        MetadataCatalog.get(name).set(**metadata)
    except AssertionError as error:  # left from a set that was removed from DatasetCatalog only
        raise UserError(f"dataset '{name}' already has other metadata") from error
    DatasetCatalog.register(name, read)


def read_folder(
    name: str,
    image_root: str | os.PathLike,
    label_root: str | os.PathLike,
    *,
    image_glob: str,
    label_suffix: str,
) -> list[dict[str, Any]]:
    """List images and their labels, sorted by path.

    The label of image ``a/b.jpg`` is ``label_root/a/b`` + ``label_suffix``. Files that are no
    images by name, hidden ones and, where labels lie among the images, label files are left out.

    Args:
        name: name of the data set, for messages.
        image_root: folder of the images.
        label_root: folder of the labels, may be the same.
        image_glob: pattern of image paths below ``image_root``.
        label_suffix: see above.

    Returns:
        dicts with file_name, sem_seg_file_name, image_id (path below ``image_root`` without
        extension), height and width.

    Raises:
        MissingDatasetError: one of the folders is missing.
        UserError: no image, two for one label, an unreadable one, or one without label.
    """
    image_root, label_root = Path(image_root).expanduser(), Path(label_root).expanduser()
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise MissingDatasetError(f"dataset '{name}': no folder {folder}")
    stems: dict[str, str] = {}
    for path in _image_paths(image_root, label_root, image_glob, label_suffix):
        stem = os.path.splitext(path)[0]
        if stem in stems:
            raise UserError(f"dataset '{name}': {stems[stem]} and {path} would share one label")
        stems[stem] = path
    if not stems:
        raise UserError(f"dataset '{name}': no images in {image_root} (pattern '{image_glob}')")
    dicts = [
        {
            "file_name": str(image_root / path),
            "sem_seg_file_name": str(label_root / (stem + label_suffix)),
            "image_id": stem,
        }
        for stem, path in stems.items()
    ]
    check_labels_exist(name, dicts)
    for record in dicts:
        record["width"], record["height"] = image_size(record["file_name"])
    return dicts


def check_labels_exist(name: str, dicts: list[dict[str, Any]]) -> None:
    """Raise UserError, naming the first, if a ``sem_seg_file_name`` does not exist."""
    missing = [record for record in dicts if not PathManager.isfile(record["sem_seg_file_name"])]
    if missing:
        raise UserError(
            f"dataset '{name}': {len(missing)} of {len(dicts)} images have no label, first "
            f"{missing[0]['file_name']} (no file {missing[0]['sem_seg_file_name']})"
        )


def _image_paths(
    image_root: Path, label_root: Path, image_glob: str, label_suffix: str
) -> list[str]:
    """Paths of the images relative to ``image_root``, with "/", sorted."""
    paths = glob.glob(image_glob, root_dir=image_root, recursive=True)
    paths = [Path(path).as_posix() for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    inside = os.path.relpath(label_root.resolve(), image_root.resolve()).replace(os.sep, "/")
    if not inside.startswith(".."):  # labels lie among the images
        below = "" if inside == "." else inside + "/"
        paths = [p for p in paths if not (p.startswith(below) and p.endswith(label_suffix))]
    return sorted(paths)
