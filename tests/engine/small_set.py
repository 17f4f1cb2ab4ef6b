"""A training set of five small frames, for tests and for the processes that they start."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

CLASSES = ["road", "traffic sign", "car"]


def register(name: str, folder: Path, frames: int = 5) -> None:
    """Register ``frames`` frames of 64x96 with three classes; write what is missing."""
    rng = np.random.default_rng(0)
    dicts = []
    for i in range(frames):
        image, label = folder / f"{i}.png", folder / f"{i}_label.png"
        pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
        if not label.exists():
            cv2.imwrite(str(image), pixels)
            values = np.repeat(np.arange(3, dtype=np.uint8), 32)[None].repeat(64, 0)
            cv2.imwrite(str(label), values)
        files = {"file_name": str(image), "sem_seg_file_name": str(label), "image_id": str(i)}
        dicts.append({**files, "height": 64, "width": 96})
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg"
    )
