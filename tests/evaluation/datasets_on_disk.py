"""Datasets of label files only: evaluators read no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

# Metadata with the label values 0, 1 and 255, and no component too small to count.
OOD_METADATA = {
    "evaluator_type": "ood",
    "ignore_label": 255,
    "id_values": (0,),
    "ood_values": (1,),
    "ignore_values": (255,),
    "protocol": "anomaly",
    "min_pred": 1,
    "min_gt": 1,
}


def register(name: str, folder: Path, labels: list[np.ndarray], **metadata) -> list[dict]:
    """Write labels as PNG files and register the set."""
    dicts = []
    for i, label in enumerate(labels):
        path = folder / f"{name}_{i}.png"
        Image.fromarray(label.astype(np.uint8)).save(path)
        height, width = label.shape
        dicts.append(
            {
                "file_name": str(folder / f"{name}_{i}.jpg"),
                "sem_seg_file_name": str(path),
                "image_id": str(i),
                "height": height,
                "width": width,
            }
        )
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**metadata)
    return dicts


def unregister(name: str) -> None:
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
