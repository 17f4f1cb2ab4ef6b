"""The cache folder, for results that can be computed again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from .files import atomic_write
from .untrusted import load_arrays

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """``$TDOS_CACHE``, or else ``$XDG_CACHE_HOME/tdos_d2`` or ``~/.cache/tdos_d2``."""
    base = os.getenv("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.getenv("TDOS_CACHE") or os.path.join(base, "tdos_d2")).expanduser()


def read_array(path: Path, rows: int) -> np.ndarray | None:
    """The array that :func:`keep_array` wrote; None if there is no usable file."""
    if not path.is_file():
        return None
    try:
        with load_arrays(path) as archive:
            array = archive["array"]
    except Exception as error:  # NumPy raises many types for truncated or foreign files
        logger.warning("%s cannot be read (%s): made again", path, type(error).__name__)
        return None
    return array if len(array) == rows else None


def keep_array(path: Path, array: np.ndarray, what: str) -> None:
    """Write ``path`` (.npz), completely or not at all; a failure is only logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez_compressed(file, array=array)
    except OSError as error:
        logger.warning("%s not kept: cannot write to %s (%s)", what, path.parent, error.strerror)
