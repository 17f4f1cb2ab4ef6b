"""Selection of frames to label: those with high scores that differ from each other."""

from __future__ import annotations

from array import array
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

_SHARE = 0.01  # of a frame's pixels
_DIMENSIONS = 64
_GRID = 4


def score_mass(score: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Mean of the highest hundredth of a frame's scores, at least one.

    Args:
        score: (H, W), finite.
        valid: (H, W) bool, the pixels that count; None = all.
    """
    values = score.ravel() if valid is None else score[valid]
    if not values.size:
        return -np.inf
    number = max(1, round(_SHARE * values.size))
    return float(np.partition(values, -number)[-number:].mean(dtype=np.float64))


class EncoderFeatures:
    """Pooled encoder features, (D,) per forward pass.

    Args:
        model: a model with a ``backbone`` that returns maps by name; others have no features.
    """

    def __init__(self, model: nn.Module) -> None:
        self._pooled: list[Tensor] = []
        self._inside = False
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, nn.Module):
            # The backbone also processes crops of objects, but not through the model's forward.
            model.register_forward_pre_hook(self._start)
            model.register_forward_hook(self._stop)
            backbone.register_forward_hook(self._collect)

    def take(self) -> np.ndarray | None:
        """Mean over windows and positions of the latest image's last map; None without maps."""
        return torch.cat(self._pooled).mean(dim=0).numpy() if self._pooled else None

    def _start(self, *_: Any) -> None:
        self._pooled.clear()
        self._inside = True

    def _stop(self, *_: Any) -> None:
        self._inside = False

    def _collect(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        maps = [x for x in output.values() if x.ndim == 4] if isinstance(output, dict) else []
        if self._inside and maps:
            self._pooled.append(maps[-1].float().mean(dim=(2, 3)).cpu())


def small_picture(image: np.ndarray) -> np.ndarray:
    """(48,) float32: mean colours of an (H, W, 3) uint8 image in a grid of 4x4 cells."""
    small = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel() - 127.5


class FrameChooser:
    """Chooses frames with high scores that differ from each other; keeps 132 bytes per frame.

    The first choice is the frame with the largest score mass, each further one that with the
    largest product of

    - its score mass, scaled to 0 for the lowest frame and 1 for the first choice, and
    - the distance of its descriptor to the nearest one chosen before (farthest-point traversal).

    So a second frame of one event comes after the first frame of other events with similar scores.
    Descriptors have unit length; those of more than 64 numbers are projected to 64 at random, which
    preserves distances to within about ten percent.
    """

    def __init__(self) -> None:
        self._mass = array("f")
        self._descriptors = bytearray()  # float16
        self._dimensions = 0
        self._projection: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._mass)

    def add(self, mass: float, descriptor: np.ndarray) -> None:
        """Add a frame with its score mass and (D,) descriptor, the same D for all frames."""
        if not self._dimensions:
            self._dimensions = min(len(descriptor), _DIMENSIONS)
            if len(descriptor) > _DIMENSIONS:
                rng = np.random.default_rng(0)
                self._projection = rng.normal(size=(len(descriptor), _DIMENSIONS))
        if self._projection is not None:
            descriptor = descriptor @ self._projection
        unit = descriptor / max(float(np.linalg.norm(descriptor)), 1e-12)
        self._mass.append(mass)
        self._descriptors += unit.astype(np.float16).tobytes()

    def truncate(self, length: int) -> None:
        """Discard all but the first ``length`` frames."""
        del self._mass[length:]
        del self._descriptors[2 * self._dimensions * length :]

    def choose(self, number: int) -> list[int]:
        """Indices (order of ``add``, from 0) of at most ``number`` frames, best first."""
        if not len(self):
            return []
        mass = np.array(self._mass, np.float64)
        points = np.frombuffer(bytes(self._descriptors), np.float16).reshape(len(mass), -1)
        points = points.astype(np.float32)
        spread = np.ptp(mass)
        weight = (mass - mass.min()) / spread if spread else np.ones_like(mass)
        chosen = [int(mass.argmax())]
        distance = np.full(len(mass), np.inf)
        while len(chosen) < min(number, len(mass)):
            to_last = np.linalg.norm(points - points[chosen[-1]], axis=1)
            distance = np.minimum(distance, to_last)
            worth = weight * distance
            worth[chosen] = -1
            chosen.append(int(worth.argmax()))
        return chosen
