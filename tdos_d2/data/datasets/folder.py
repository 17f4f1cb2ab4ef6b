"""Datasets that consist of a folder of images and a folder of label maps."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import UserError
from ...files import find_files
from ...untrusted import read_lines
from ..reading import image_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
# Masks that a record may name beside its label.
_MASKS = {"region mask": "region_mask_file_name", "instance mask": "instance_file_name"}


class MissingDatasetError(UserError):
    """The folder of a dataset is not there."""


def data_root() -> Path:
    """Folder of the built-in datasets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images and a folder of label maps.

    The id of an image is its path below ``images`` without extension and ``image_suffix``; its
    label is ``labels/<id><label_suffix>``. Files without an image's extension, hidden files and
    labels in the folder of the images are ignored. Other arguments are those of
    :func:`~tdos_d2.data.datasets.ood.register_ood_dataset`.

    Attributes:
        images: folder of the images.
        labels: folder of the labels, may be the same; None = the dataset has no labels.
        pattern: regular expression that must fully match the last part of an id.
        image_list: text file with the ids of the dataset's frames, one per line, with or without
            the extension of the image; None = all.
        left_out: indices of invalid frames in the sorted list of all ``total`` frames before
            ``pattern`` is applied.
    """

    images: Path | str
    labels: Path | str | None
    image_glob: str = "**/*"
    image_suffix: str = ""
    label_suffix: str = ".png"
    pattern: str = ".*"
    left_out: tuple[int, ...] = ()
    total: int = 0
    region_mask: Path | None = None
    image_list: Path | None = None
    instances: Path | None = None
    instance_suffix: str = ".png"

    def locate(self, name: str) -> ImageFolder:
        """The folder itself; see :meth:`BuiltinFolder.locate`."""
        return self

    def frames(self, name: str) -> list[dict[str, Any]]:
        """List images and labels, sorted by path, without opening a file.

        Args:
            name: name of the dataset, for messages.

        Returns:
            dicts with file_name, image_id and, if the dataset has them, sem_seg_file_name,
            region_mask_file_name and instance_file_name; these files need not exist.

        Raises:
            MissingDatasetError: the folder of the images or the region mask is missing, or all
                images belong to other splits.
            UserError: the folder of the labels or of the instance masks is missing; there are no
                images, two images for one label, or another number of images than ``total``; the
                list cannot be read, or names a missing image.
        """
        image_root = Path(self.images)
        if not os.path.isdir(image_root):
            raise MissingDatasetError(f"dataset '{name}': no folder {image_root}")
        stems: dict[str, str] = {}
        for path, stem in self._images(self.image_glob):
            if stem in stems:
                raise UserError(f"dataset '{name}': {stems[stem]} and {path} would share one label")
            stems[stem] = path
        if not stems:
            where = f"{image_root} (pattern '{self.image_glob}')"
            raise UserError(f"dataset '{name}': no images in {where}")
        if self.left_out and len(stems) != self.total:
            raise UserError(
                f"dataset '{name}': {image_root} has {len(stems)} images, not {self.total}; frames "
                "that do not count are known by their place in the complete list"
            )
        chosen = [stem for i, stem in enumerate(stems) if i not in self.left_out]
        chosen = [s for s in chosen if re.fullmatch(self.pattern, s.rpartition("/")[2])]
        if self.image_list is not None:
            listed = self._listed(name, stems)
            chosen = [stem for stem in chosen if stem in listed]
        if not chosen:
            raise MissingDatasetError(f"dataset '{name}': {image_root} has none of its images")
        if self.labels is not None and not os.path.isdir(self.labels):
            raise UserError(
                f"dataset '{name}': no folder {self.labels} with the labels of the images in "
                f"{image_root}"
            )
        if self.instances is not None and not self.instances.is_dir():
            raise UserError(f"dataset '{name}': no folder {self.instances} with instance masks")
        return [self._record(name, str(image_root / stems[stem]), stem) for stem in chosen]

    def _listed(self, name: str, stems: dict[str, str]) -> set[str]:
        """The ids in ``image_list``; ``stems`` maps ids to the paths of their images."""
        where = f"dataset '{name}', list {self.image_list}"
        lines = read_lines(self.image_list, where)
        by_path = {os.path.splitext(path)[0]: stem for stem, path in stems.items()}
        by_path |= {path: stem for stem, path in stems.items()}
        found = {line: by_path.get(line, line) for line in filter(None, map(str.strip, lines))}
        lost = [line for line, stem in found.items() if stem not in stems]
        if lost or not found:
            what = f"no image {lost[0]} in {self.images}" if lost else "it names no image"
            raise UserError(f"{where}: {what}")
        return set(found.values())

    def read(self, name: str) -> list[dict[str, Any]]:
        """Dataset dicts: :meth:`frames` with height and width, after a check that all files exist.

        Raises:
            MissingDatasetError: see :meth:`frames`.
            UserError: see :meth:`frames`; a label or mask is missing, or an image is unreadable.
        """
        dicts = self.frames(name)
        if self.labels is not None:
            check_labels_exist(name, dicts)
        for record in dicts:
            for kind, key in _MASKS.items():
                mask = record.get(key)
                if mask and not os.path.isfile(mask):
                    raise UserError(f"dataset '{name}': no {kind} {mask}")
            record["width"], record["height"] = image_size(record["file_name"])
        return dicts

    def stray_labels(self) -> list[str]:
        """Label files that belong to no image, sorted. Frames in ``left_out`` count as images."""
        if self.labels is None:
            return []
        known = {stem for _, stem in self._images("**/*")}
        end = self.label_suffix
        labels = [path for path in find_files(self.labels) if path.endswith(end)]
        below = _below(self.images, self.labels)
        if below:  # the images are inside the labels' folder
            labels = [path for path in labels if not path.startswith(below)]
        labels = _without(labels, self.labels, self.instances, self.instance_suffix)
        stray = [path for path in labels if path.removesuffix(end) not in known]
        return sorted(str(Path(self.labels, path)) for path in stray)

    def _record(self, name: str, file_name: str, stem: str) -> dict[str, Any]:
        record = {"file_name": file_name, "image_id": stem}
        if self.labels is not None:
            record["sem_seg_file_name"] = str(Path(self.labels, stem + self.label_suffix))
        mask = self.region_mask
        if mask is not None:
            if not mask.exists():
                raise MissingDatasetError(f"dataset '{name}': no region mask {mask}")
            record["region_mask_file_name"] = str(mask / f"{stem}.png" if mask.is_dir() else mask)
        if self.instances is not None:
            record["instance_file_name"] = str(self.instances / f"{stem}{self.instance_suffix}")
        return record

    def _images(self, pattern: str) -> list[tuple[str, str]]:
        """Paths of the images relative to ``images``, with "/", and their ids, sorted by path."""
        paths = find_files(self.images, pattern)
        paths = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
        paths = _without(paths, self.images, self.labels, self.label_suffix)
        paths = _without(paths, self.images, self.instances, self.instance_suffix)
        stems = [(path, os.path.splitext(path)[0]) for path in paths]
        end = self.image_suffix
        return [(path, stem.removesuffix(end)) for path, stem in stems if stem.endswith(end)]


@dataclass(frozen=True)
class BuiltinFolder:
    """A built-in dataset below :func:`data_root`.

    Attributes:
        names: possible names of its folder.
        layouts: possible layouts of its files, with paths below the folder. The first name and
            layout whose images exist are used.
        made_by: script that creates the folder.
    """

    names: tuple[str, ...]
    layouts: tuple[ImageFolder, ...]
    made_by: str = ""

    def locate(self, name: str) -> ImageFolder:
        """The folders on disk of the dataset ``name``.

        Raises:
            MissingDatasetError: there is no folder with one of the names.
        """
        root = data_root()
        there = [root / folder for folder in self.names if (root / folder).is_dir()]
        if not there:
            others = f" (nor {', '.join(self.names[1:])})" if len(self.names) > 1 else ""
            made = f" (made by {self.made_by})" if self.made_by else ""
            raise MissingDatasetError(
                f"dataset '{name}': no folder {root / self.names[0]}{others}{made}; "
                f"DETECTRON2_DATASETS must name the folder that holds it (now: '{root}')"
            )
        places = [(folder, layout) for folder in there for layout in self.layouts]
        complete = [(f, layout) for f, layout in places if (f / layout.images).is_dir()]
        folder, layout = (complete or places)[0]
        labels = None if layout.labels is None else folder / layout.labels
        return dataclasses.replace(layout, images=folder / layout.images, labels=labels)


def register_folder(name: str, folder: ImageFolder | BuiltinFolder, **metadata: Any) -> None:
    """Register a dataset whose files are listed when it is loaded.

    ``has_labels`` and ``folder`` are added to its metadata.

    Raises:
        UserError: the name is taken.
    """
    layout = folder.layouts[0] if isinstance(folder, BuiltinFolder) else folder
    metadata = {"has_labels": layout.labels is not None, "folder": folder, **metadata}
    register_dataset(name, lambda: folder.locate(name).read(name), **metadata)


def register_dataset(name: str, read: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset with Detectron2; ``read`` is called when it is loaded.

    Raises:
        UserError: the name is taken.
    """
    if name in DatasetCatalog:
        raise UserError(f"dataset '{name}' is already registered")
    try:
        MetadataCatalog.get(name).set(**metadata)
    except AssertionError as error:  # from a dataset that was removed only from DatasetCatalog
        raise UserError(f"dataset '{name}' already has other metadata") from error
    DatasetCatalog.register(name, read)


def check_labels_exist(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Raise UserError, naming the first, if a ``sem_seg_file_name`` does not exist."""
    missing = [record for record in dicts if not PathManager.isfile(record["sem_seg_file_name"])]
    if missing:
        raise UserError(
            f"dataset '{name}': {len(missing)} of {len(dicts)} images have no label, first "
            f"{missing[0]['file_name']} (no file {missing[0]['sem_seg_file_name']})"
        )


def _without(
    paths: list[str], folder: Path | str, others: Path | str | None, suffix: str
) -> list[str]:
    """``paths``, below ``folder``, without files of the folder ``others`` that may be inside it."""
    inside = None if others is None else _below(others, folder)
    if inside is None:
        return paths
    return [path for path in paths if not (path.startswith(inside) and path.endswith(suffix))]


def _below(folder: Path | str, other: Path | str) -> str | None:
    """Path of ``folder`` relative to ``other``, with "/" at its end; None = not below ``other``."""
    folder, other = (Path(path).resolve() for path in (folder, other))
    if not folder.is_relative_to(other):
        return None
    inside = folder.relative_to(other).as_posix()
    return "" if inside == "." else f"{inside}/"
