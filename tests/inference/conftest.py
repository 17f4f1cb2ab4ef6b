"""Configs of tiny models with a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from colour_model import NAMES, save_checkpoint


@pytest.fixture
def trained_cfg(tiny_cfg, tmp_path):
    """Names a checkpoint, slides windows, resizes; the class names are the checkpoint's."""
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 72
    cfg = save_checkpoint(tiny_cfg, tmp_path)
    cfg.MODEL.TDOS.CLASS_NAMES = []
    return cfg


@pytest.fixture
def fixed_cfg(tiny_cfg, tmp_path):
    """The words of NAMES are orthogonal vectors, in a file."""
    path = tmp_path / "words.npz"
    np.savez(path, names=np.array(NAMES), embeddings=3 * np.eye(64, dtype=np.float32)[:6])
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = str(path)
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    return save_checkpoint(tiny_cfg, tmp_path)
