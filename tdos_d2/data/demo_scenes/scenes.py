"""Drawn street scenes: training and test images that need no download.

``render_scene`` combines a street (``street``), known objects (``sprites``, ``car``) and, on
request, OOD objects (``ood_objects``). Known objects have their typical colours, which OOD objects
may share, so that colour alone does not tell them apart. Scenes are drawn at twice their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
from numpy.random import Generator

from . import sprites, street
from .car import Car
from .ood_objects import OOD_KINDS, OODKind
from .sprites import Pen, hsv
from .street import Canvas, Layout

_SUPERSAMPLING = 2
_TRIES = 200
# Least share of the OOD pixels painted that nothing hides.
_VISIBLE = 0.85
# Roughness of the classes' surfaces (OOD last, as rough as a car or a person): deviation in grey
# levels of fine and of coarse noise.
_FINE = np.array([5, 5, 4, 6, 3, 2, 15, 0, 4, 3, 4], np.float32)
_COARSE = np.array([5, 5, 4, 4, 2, 1, 12, 1, 3, 3, 3], np.float32)

# An object of the scene: its distance in metres and what paints it.
_Item = tuple[float, Callable[[], None]]


def render_scene(
    rng: Generator, size: tuple[int, int] = (96, 192), ood_kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    Args:
        rng: the only source of randomness.
        size: (H, W) in pixels, both at least 32.
        ood_kind: key of ``ood_objects.OOD_KINDS`` to put on the street; None = known objects only.

    Returns:
        image (H, W, 3) uint8 in RGB and label (H, W) uint8: 0..9 as in ``street.CLASSES``,
        10 = OOD. With ``ood_kind`` the share of label 10 lies in that kind's ``share``.

    Raises:
        RuntimeError: the objects do not fit an unusual size.
    """
    kind = None if ood_kind is None else OOD_KINDS[ood_kind]
    for _ in range(_TRIES):
        image, label, visible = _draw(rng, size, kind)
        share = float((label == street.OOD).mean())
        # Cars and people in front may hide too much of the object: then another scene is drawn.
        if kind is None or (kind.share[0] <= share <= kind.share[1] and visible >= _VISIBLE):
            return image, label
    raise RuntimeError(f"no room for kind '{ood_kind}' in scenes of size {size}")


def _draw(
    rng: Generator, size: tuple[int, int], kind: OODKind | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Image, label, and the visible share of the OOD pixels (1 where there are none)."""
    height, width = (_SUPERSAMPLING * side for side in size)
    camera, light = street.random_camera(rng, height, width), street.random_light(rng)
    layout = street.random_layout(rng)
    canvas = Canvas(height, width, camera, light)
    street.draw_sky(rng, canvas)
    street.draw_ground(rng, canvas, layout)
    _draw_cast_shadows(rng, canvas, layout)
    street.draw_sides(rng, canvas, layout)
    items = [*_cars(rng, canvas, layout), *_people(rng, canvas, layout)]
    items += [*_trees(rng, canvas, layout), *_posts(rng, canvas, layout)]
    if kind is not None:
        items += _outliers(rng, canvas, layout, kind)
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()
    visible = np.count_nonzero(canvas.label == street.OOD) / max(canvas.painted_ood, 1)
    label = cv2.resize(canvas.label, size[::-1], interpolation=cv2.INTER_NEAREST)
    return _expose(rng, canvas, size), label, visible if kind is not None else 1.0


def _expose(rng: Generator, canvas: Canvas, size: tuple[int, int]) -> np.ndarray:
    """What the camera sees: surface noise, light, blur, sensor noise; (H, W, 3) uint8."""
    height, width = canvas.label.shape
    fine = rng.standard_normal((height, width), dtype=np.float32)
    coarse = street.grain(rng, height, width, max(2, height // 24))
    noise = fine * _FINE[canvas.label] + coarse * _COARSE[canvas.label]
    image = cv2.resize(
        canvas.image + noise[..., None], size[::-1], interpolation=cv2.INTER_AREA
    ) * canvas.light.gain.astype(np.float32)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6))
    image = 255 * (np.clip(image, 0, 255) / 255) ** np.float32(rng.uniform(0.9, 1.1))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 4))
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_cast_shadows(rng: Generator, canvas: Canvas, layout: Layout) -> None:
    """On clear days the houses of one side throw their shadow over part of the street."""
    if canvas.light.shadow < 0.6 or rng.random() < 0.4:
        return
    x = layout.edge[0] if canvas.light.side < 0 else layout.edge[1]
    reach = -np.sign(x) * rng.uniform(2, 8)
    for _ in range(int(rng.integers(1, 4))):
        z, length = rng.uniform(3, 30), rng.uniform(3, 15)
        corners = [(x, 0, z), (x + reach, 0, z + 1)]
        corners += [(x + reach, 0, z + 1 + length), (x, 0, z + length)]
        canvas.shadow(canvas.camera.project(np.array(corners)), 0.6)


def _standing(
    rng: Generator, canvas: Canvas, draw: Callable[[Generator, float], Pen], metres: float,
    x: float, z: float, label: int,
) -> _Item:
    """An upright object, ``metres`` high, that stands at (X, Z), with its shadow on the ground."""

    def paint() -> None:
        column, foot = canvas.camera.project(np.array([x, 0.0, z]))
        pen = draw(rng, metres * canvas.camera.focal / z)
        if rng.random() < 0.5:
            pen.mirror()
        pen.shade(canvas.light.side)
        width = pen.mask.shape[1]
        lean = -canvas.light.side * canvas.light.shadow * 0.5 * width
        spot = sprites.disc(column + lean, foot - 0.02 * width, 0.6 * width, 0.12 * width)
        # The shadows of a row of trees lie on one another.
        canvas.shadow(spot, 0.5 if label in (street.VEGETATION, street.POLE) else 1.0)
        canvas.paste(pen, column, foot, label)

    return z, paint


def _cars(rng: Generator, canvas: Canvas, layout: Layout) -> Iterator[_Item]:
    left, right = layout.road
    spots: list[tuple[float, float]] = []
    for x in (left + 1.1, right - 1.1):
        if rng.random() < 0.6:  # parked at the kerb
            start, step = rng.uniform(5, 14), rng.uniform(5.5, 9)
            spots += [(x, z) for z in np.arange(start, 35, step) if rng.random() < 0.65]
    for _ in range(int(rng.integers(0, 4))):  # driving
        spots.append((rng.uniform(left + 3, max(right - 3, left + 3.1)), rng.uniform(7, 30)))
    taken: list[tuple[float, float]] = []
    for x, z in spots:
        if all(abs(x - a) > 2.2 or abs(z - b) > 5.2 for a, b in taken):
            taken.append((x, z))
            yield z, partial(Car(rng, x, z).draw, canvas)
    if layout.crossing[1] > layout.crossing[0] or rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 3))):  # crossing our way
            z = rng.uniform(*layout.crossing) if layout.crossing[1] > layout.crossing[0] else 20.0
            x = rng.uniform(2 * layout.edge[0], 2 * layout.edge[1])
            tall = rng.uniform(1.4, 1.7)
            yield _standing(rng, canvas, sprites.car_side, tall, x, z, street.CAR)


def _people(rng: Generator, canvas: Canvas, layout: Layout) -> Iterator[_Item]:
    for _ in range(int(rng.integers(2, 7))):
        z = rng.uniform(4, 10)
        if rng.random() < 0.2:
            x = rng.uniform(*layout.road)
        else:
            side = int(rng.integers(2))
            x = rng.uniform(*sorted((layout.road[side], layout.edge[side])))
        tall = rng.uniform(1.25, 1.95)
        yield _standing(rng, canvas, sprites.person, tall, x, z, street.PERSON)


def _trees(rng: Generator, canvas: Canvas, layout: Layout) -> Iterator[_Item]:
    for side in (0, 1):
        if rng.random() < 0.4:
            continue
        inside = rng.random() < 0.5  # on the sidewalk, or beyond it
        x = layout.edge[side] + (0.7 if inside else -0.5) * (1 - 2 * side)
        tall = rng.uniform(1.5, 8)
        for z in np.arange(rng.uniform(7, 16), 45, rng.uniform(6, 14)):
            if rng.random() < 0.75:
                height = tall * rng.uniform(0.8, 1.2)
                yield _standing(rng, canvas, sprites.tree, height, x, z, street.VEGETATION)


def _posts(rng: Generator, canvas: Canvas, layout: Layout) -> Iterator[_Item]:
    """Lamp posts in a row and traffic signs on their masts."""
    for side in (0, 1):
        x = layout.road[side] - (0.5 if side == 0 else -0.5)
        tall, thick = rng.uniform(4.5, 9), rng.uniform(0.32, 0.45)
        step = rng.uniform(9, 20)
        if rng.random() < 0.75:
            for z in np.arange(rng.uniform(6, 12), 22, step):
                draw = partial(sprites.pole, aspect=thick / tall)
                yield _standing(rng, canvas, draw, tall, x, z, street.POLE)
        for _ in range(int(rng.integers(0, 3))):
            z, up = rng.uniform(5, 13), rng.uniform(2.0, 3.2)
            beside = x + rng.uniform(-0.3, 0.3)
            yield z, partial(_draw_sign, rng, canvas, beside, z, up)


def _draw_sign(rng: Generator, canvas: Canvas, x: float, z: float, up: float) -> None:
    pixels = canvas.camera.focal / z
    column, foot = canvas.camera.project(np.array([x, 0.0, z]))
    half = 0.11 * pixels
    mast = sprites.box(column - half, foot - (up + 0.4) * pixels, column + half, foot)
    canvas.polygon(mast, hsv(0, 0, rng.uniform(0.6, 0.75)), street.POLE)
    for i in range(1 + (rng.random() < 0.25)):
        face = sprites.sign(rng, rng.uniform(1.0, 1.4) * pixels)
        canvas.paste(face, column, foot - (up - i) * pixels, street.SIGN)


def _outliers(rng: Generator, canvas: Canvas, layout: Layout, kind: OODKind) -> Iterator[_Item]:
    """OOD objects on the street, at the distance that gives them their share of the image."""
    height, width = canvas.label.shape
    camera, (low, high) = canvas.camera, kind.share
    number = int(rng.integers(1, kind.most + 1))
    area = rng.uniform(1.1 * low, 0.9 * high) * height * width / number
    for _ in range(number):
        pen = kind.draw(rng, 64.0)
        filled = np.count_nonzero(pen.mask) / pen.mask.shape[0] ** 2  # in squares of the height
        pixels, metres = np.sqrt(area / filled), rng.uniform(*kind.metres)
        z = max(metres * camera.focal / pixels, camera.depth(0.985 * height))
        # Its image lies in the picture: so do its X, and it stands on sidewalk or road.
        margin = 0.3 * pixels * pen.mask.shape[1] / pen.mask.shape[0]
        bounds = (np.array([margin, width - margin]) - camera.centre[0]) / camera.focal
        edges = (bounds - camera.bend * z) * z
        x0, x1 = max(edges[0], layout.edge[0]), min(edges[1], layout.edge[1])
        x = rng.uniform(min(x0, x1), max(x0, x1))
        yield _standing(rng, canvas, kind.draw, metres, x, z, street.OOD)
