"""Imports of the scripts in datasets/, and a root for their miniature sets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "datasets"))


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def contents():
    return tree


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder that $DETECTRON2_DATASETS names."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    return folder
