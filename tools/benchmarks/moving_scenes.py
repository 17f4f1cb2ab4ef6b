"""Drawn street scenes that a camera drives through, with known OOD objects and a noisy score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from tdos_d2.data.demo_scenes.ood_objects import OOD_KINDS
from tdos_d2.data.demo_scenes.scenes import render_scene
from tdos_d2.data.demo_scenes.street import OOD

SIZE, _WORLD = (270, 480), (540, 960)  # of frames and of what is drawn once: (H, W)
RATE = 25.0
_ZOOM = (0.8, 0.5)  # share of the world that is in view, in the first and the last frame
_SWAY, _SPEED = 12.0, 3.0  # of the camera and of the object that crosses: pixels of the world
# Of the score, in the units of an object's mean score above the street's: what looks odd in the
# scene stays with it; noise is new in every frame; the score of an object drifts and drops out.
_SIGNAL, _CLUTTER, _NOISE, _DRIFT, _DROPOUT = 2.0, 0.3, 0.5, 0.4, 0.15


@dataclass(frozen=True)
class MovingFrame:
    """A frame, its score and what is in it.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        score: (H, W) float32.
        objects: (H, W) int: the number of the OOD object, 0 where none is.
    """

    image: np.ndarray
    score: np.ndarray
    objects: np.ndarray


def moving_scene(seed: int, number: int, frames: int) -> Iterator[MovingFrame]:
    """A drive of ``frames`` frames: objects that stand, and one or more that cross the street."""
    rng = np.random.default_rng([seed, number])
    kinds = list(OOD_KINDS)
    street, standing = _draw(rng, kinds[number % len(kinds)])
    source, crossing = _draw(rng, kinds[(number + 3) % len(kinds)])
    crossing[crossing > 0] += standing.max()
    clutter = _field(rng, _WORLD, 12.0) * _CLUTTER
    drift = np.zeros(int(crossing.max()) + 1)
    for i in range(frames):
        image, objects = street.copy(), standing.copy()
        shift = np.float32([[1, 0, _SPEED * (i - frames / 2)], [0, 1, 0]])
        moved = _warp(crossing, shift, _WORLD)
        image[moved > 0] = cv2.warpAffine(source, shift, _WORLD[::-1])[moved > 0]
        objects[moved > 0] = moved[moved > 0]
        view = _view(i / max(1, frames - 1), 2 * np.pi * i / RATE)
        objects = _warp(objects, view, SIZE)
        drift = 0.9 * drift + np.sqrt(1 - 0.9**2) * _DRIFT * rng.standard_normal(len(drift))
        seen = np.where(rng.random(len(drift)) < _DROPOUT, 0.3, 1.0) * (_SIGNAL + drift)
        seen[0] = 0.0
        score = cv2.GaussianBlur(seen[objects].astype(np.float32), (0, 0), 1.0)
        score += cv2.warpAffine(clutter, view, SIZE[::-1], borderMode=cv2.BORDER_REFLECT)
        score += _field(rng, SIZE, 5.0) * _NOISE
        frame = cv2.warpAffine(
            image, view, SIZE[::-1], flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
        )
        yield MovingFrame(frame, score, objects)


def _draw(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A scene (BGR) and its OOD objects by number."""
    image, label = render_scene(rng, _WORLD, kind)
    ood = (label == OOD).astype(np.uint8)
    near = cv2.dilate(ood, np.ones((15, 15), np.uint8))  # sails, hull and rails are one object
    objects = cv2.connectedComponents(near)[1] * ood
    areas = np.bincount(objects.ravel())
    large = np.flatnonzero(areas >= 0.0008 * objects.size)[1:]  # not the street, no fragments
    number = np.zeros(len(areas), np.int32)
    number[large] = np.arange(1, len(large) + 1)
    return np.ascontiguousarray(image[..., ::-1]), number[objects]


def _view(progress: float, phase: float) -> np.ndarray:
    """From the world to the frame: the camera comes nearer and sways."""
    height, width = _WORLD
    share = _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * progress
    scale = SIZE[1] / (share * width)
    x = width / 2 + _SWAY * np.sin(phase)
    y = height * 0.6 + _SWAY / 3 * np.sin(2.3 * phase)
    return np.float32(
        [[scale, 0, SIZE[1] / 2 - scale * x], [0, scale, SIZE[0] / 2 - scale * y]]
    )


def _warp(objects: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = objects.astype(np.uint8)
    return cv2.warpAffine(small, matrix, size[::-1], flags=cv2.INTER_NEAREST).astype(np.int32)


def _field(rng: np.random.Generator, size: tuple[int, int], smooth: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1."""
    field = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), smooth)
    return (field - field.mean()) / field.std()
