"""Tiny datasets on disk, registered with Detectron2."""

from __future__ import annotations

import numpy as np
import pytest
from datasets_on_disk import register, unregister


@pytest.fixture
def make_dataset(tmp_path):
    """``make_dataset(name, labels, **metadata)`` registers a set; returns its dataset dicts."""
    names = []

    def make(name: str, labels: list[np.ndarray], **metadata) -> list[dict]:
        names.append(name)
        return register(name, tmp_path, labels, **metadata)

    yield make
    for name in names:
        unregister(name)
