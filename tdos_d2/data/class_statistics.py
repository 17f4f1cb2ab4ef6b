"""Pixels of each class in each image, for rare class sampling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager
from tqdm.contrib.concurrent import thread_map

from ..cache import cache_root, keep_array, read_array
from ..cores import usable_cores
from ..errors import UserError
from .reading import read_label, value_table


def class_statistics(
    dicts: Sequence[dict[str, Any]],
    metadata: Metadata,
    num_classes: int,
    cache: str | os.PathLike | None = None,
    jobs: int | None = None,
) -> np.ndarray:
    """Count the pixels of each class in each label map.

    With a ``cache``, counts are reused for label files of the same content in any folder, with the
    same meaning of label values. With several processes, one should call this first.

    Args:
        dicts: dataset dicts with ``sem_seg_file_name``.
        metadata: metadata of their dataset, see :func:`~.reading.read_label`.
        num_classes: labels 0..num_classes-1 are counted: for K known classes, K excludes pixels
            labelled OOD, and K + 1 counts them in the last column.
        cache: folder for the counts, such as :func:`statistics_cache`; None = no cache.
        jobs: number of threads; None = number of CPU cores, at most 8.

    Returns:
        (len(dicts), num_classes) int64 numbers of pixels; row i belongs to ``dicts[i]``.

    Raises:
        UserError: a dict has no label, or a label cannot be read or has undeclared values.
    """
    bare = next((d for d in dicts if "sem_seg_file_name" not in d), None)
    if bare is not None:
        raise UserError(f"dataset '{metadata.name}': {bare['file_name']} has no label to count")
    paths = [str(record["sem_seg_file_name"]) for record in dicts]
    jobs = jobs or min(8, usable_cores())
    if cache is None:
        return _count(paths, metadata, jobs)[:, :num_classes]
    digests = np.array(_digests(paths, metadata, jobs))
    # Stored in the order of the digests, as the order of files differs between file systems.
    order = np.argsort(digests)
    colours = repr(metadata.get("label_colours", "")).encode()
    key = value_table(metadata).tobytes() + colours + b"".join(digests[order].tolist())
    file = Path(cache) / f"{hashlib.sha256(key).hexdigest()[:32]}.npz"
    kept = read_array(file, len(paths))
    if kept is None:
        kept = _count([paths[i] for i in order], metadata, jobs)
        keep_array(file, kept, "class statistics are")
    counts = np.empty_like(kept)
    counts[order] = kept
    return counts[:, :num_classes]


def statistics_cache() -> Path:
    """Folder below :func:`~tdos_d2.cache.cache_root` that caches the counts between runs."""
    return cache_root() / "class_statistics"


def _count(paths: Sequence[str], metadata: Metadata, jobs: int) -> np.ndarray:
    """(len(paths), 256) int64: pixels of each label, also of void."""

    def count(path: str) -> np.ndarray:
        return np.bincount(read_label(path, metadata).ravel(), minlength=256)

    title = f"Counting classes of {metadata.name}"
    rows = thread_map(count, paths, max_workers=jobs, desc=title, unit="file")
    return np.array(rows, np.int64).reshape(len(paths), 256)


def _digests(paths: Sequence[str], metadata: Metadata, jobs: int) -> list[bytes]:
    """Hash of the content of each file, in hexadecimal digits."""

    def digest(path: str) -> bytes:
        try:
            with PathManager.open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest().encode()
        except OSError as error:
            raise UserError(f"cannot read label {path}: {error.strerror or error}") from error

    title = f"Checking labels of {metadata.name}"
    return thread_map(digest, paths, max_workers=jobs, desc=title, unit="file")
