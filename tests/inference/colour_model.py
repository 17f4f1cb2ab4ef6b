"""A tiny model whose image encoder sees nothing but colours."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.modeling import build_model

from tdos_d2.engine import TDOSCheckpointer

# Red, green and blue are what these words say.
COLOURS = {"sofa": (255, 0, 0), "deer": (0, 255, 0), "road": (0, 0, 255)}
NAMES = ["road", "traffic sign", "car", "sofa", "deer", "ood"]


def save_checkpoint(cfg, folder):
    """Save a random model; gives the config that loads it."""
    torch.manual_seed(0)
    TDOSCheckpointer(build_model(cfg), str(folder)).save("model")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return cfg


def see_colours(model, monkeypatch):
    """Make the dense embedding of a cell that of the word whose colour it has."""
    forward = model.backbone.forward
    words = torch.eye(64)[[NAMES.index(word) for word in COLOURS]]

    def coloured(images):
        features = forward(images)
        grid = features["dense"].shape[-2:]
        colour = torch.nn.functional.adaptive_avg_pool2d(images, grid).argmax(1)
        return {**features, "dense": words[colour].permute(0, 3, 1, 2)}

    monkeypatch.setattr(model.backbone, "forward", coloured)


def painted(height: int, width: int, left: str, right: str) -> np.ndarray:
    """A BGR image of two halves."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = COLOURS[left][::-1]
    image[:, width // 2 :] = COLOURS[right][::-1]
    return image
