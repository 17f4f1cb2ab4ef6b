"""Drawing tools of the demo scenes, and the known objects that are drawn flat.

An object is drawn on a ``Pen``: a small picture with a mask, in units of the object's height (x
from 0 to ``aspect``, y from 0 at the top to 1 at the ground). Colours are RGB in 0..255.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator

Colour = np.ndarray
Points = Sequence[tuple[float, float]] | np.ndarray

_SUBPIXEL_BITS = 4
# Beyond this, OpenCV's fixed-point coordinates could overflow.
_FAR = 8000.0

_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def fixed_point(points: Points) -> np.ndarray:
    """Pixel coordinates (..., n, 2) as the int32 fixed-point numbers that ``fill`` takes."""
    array = np.asarray(points, np.float64).clip(-_FAR, _FAR)
    return (array * 2**_SUBPIXEL_BITS).round().astype(np.int32)


def fill(
    image: np.ndarray, polygons: Sequence[np.ndarray] | np.ndarray, colour: Colour | int
) -> None:
    """Fill polygons in fixed-point coordinates; they must not overlap one another."""
    value = np.clip(np.atleast_1d(colour), 0, 255).tolist()
    cv2.fillPoly(image, polygons, value, cv2.LINE_8, _SUBPIXEL_BITS)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 of hue (in turns), saturation and value in 0..1."""
    return 255.0 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def any_colour(rng: Generator) -> Colour:
    """Paint or cloth: every hue, weak and strong, and often black, grey, white or brown."""
    kind = rng.random()
    if kind < 0.35:
        return hsv(rng.random(), rng.uniform(0, 0.12), rng.choice([0.12, 0.3, 0.5, 0.7, 0.92]))
    if kind < 0.5:
        return hsv(rng.uniform(0.03, 0.12), rng.uniform(0.25, 0.7), rng.uniform(0.2, 0.8))
    return hsv(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.25, 0.95))


def known_colour(rng: Generator) -> Colour:
    """What cars, clothes and shop fronts mostly are: white to black, blue, seldom dark red."""
    mood = rng.random()
    if mood < 0.65:
        return hsv(rng.random(), rng.uniform(0, 0.1), rng.choice([0.12, 0.3, 0.5, 0.7, 0.92]))
    if mood < 0.9:
        return hsv(rng.uniform(0.57, 0.66), rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.6))
    return hsv(rng.uniform(0.96, 1.0), rng.uniform(0.6, 0.85), rng.uniform(0.3, 0.6))


def disc(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    """Ellipse around (cx, cy), its axes turned by ``turn`` radians, as a polygon (24, 2)."""
    cos, sin = np.cos(turn), np.sin(turn)
    return CIRCLE @ np.array([(rx * cos, rx * sin), (-ry * sin, ry * cos)]) + (cx, cy)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Upright rectangle as a polygon (4, 2)."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def limb(start: tuple[float, float], end: tuple[float, float], w0: float, w1: float) -> np.ndarray:
    """Bar from ``start`` (width w0) to ``end`` (width w1) with flat ends, as a polygon (4, 2)."""
    p, q = np.array(start), np.array(end)
    along = (q - p) / max(float(np.hypot(*(q - p))), 1e-6)
    side = np.array([-along[1], along[0]]) / 2
    return np.array([p + side * w0, q + side * w1, q - side * w1, p - side * w0])


def smooth(points: Points, rounds: int = 2) -> np.ndarray:
    """Closed outline with its corners cut (Chaikin), for soft silhouettes."""
    array = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.roll(array, -1, axis=0)
        cuts = [0.75 * array + 0.25 * following, 0.25 * array + 0.75 * following]
        array = np.stack(cuts, 1).reshape(-1, 2)
    return array


class Pen:
    """A picture in the making: ``image`` (h, w, 3) uint8 and ``mask`` (h, w) uint8 in 0 / 255."""

    def __init__(self, height: float, aspect: float) -> None:
        self.unit = max(float(height), 4.0)
        shape = (round(self.unit), max(2, round(self.unit * aspect)))
        self.image = np.zeros((*shape, 3), np.uint8)
        self.mask = np.zeros(shape, np.uint8)

    def draw(self, points: Points, colour: Colour) -> None:
        """Add a polygon to the object."""
        self.detail(points, colour)
        fill(self.mask, [fixed_point(np.asarray(points) * self.unit - 0.5)], 255)

    def detail(self, points: Points, colour: Colour) -> None:
        """Paint a polygon on the object, without changing its outline."""
        fill(self.image, [fixed_point(np.asarray(points) * self.unit - 0.5)], colour)

    def cut(self, points: Points) -> None:
        """Take a polygon away from the object."""
        fill(self.mask, [fixed_point(np.asarray(points) * self.unit - 0.5)], 0)

    def shade(self, side: float, down: float = 0.2) -> None:
        """Darken away from the light: ``side`` in -1..1 (positive: light from the right)."""
        h, w = self.mask.shape
        x = np.linspace(-1, 1, w, dtype=np.float32)[:, None]
        y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
        light = 1 + 0.25 * side * x - down * y
        self.image = np.clip(self.image * light, 0, 255).astype(np.uint8)

    def mirror(self) -> None:
        """Swap left and right."""
        self.image, self.mask = self.image[:, ::-1].copy(), self.mask[:, ::-1].copy()


def person(rng: Generator, height: float) -> Pen:
    """Pedestrian, standing or walking, in clothes of any colour."""
    pen = Pen(height, 0.46)
    middle, stride, build = 0.23, rng.uniform(0.0, 0.1), rng.uniform(0.85, 1.25)
    skin = hsv(rng.uniform(0.04, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.95))
    top, legs, shoes = known_colour(rng), known_colour(rng), known_colour(rng) * 0.5
    hip = 0.52
    for sign, tone in ((-1, 0.8), (1, 1.0)):
        foot = (middle + sign * (stride + 0.035), 0.95)
        pen.draw(limb((middle + sign * 0.035, hip), foot, 0.1 * build, 0.065), legs * tone)
        pen.draw(box(foot[0] - 0.035, 0.94, foot[0] + 0.05, 1.0), shoes)
    if rng.random() < 0.3:  # skirt or coat
        flare = 0.12 * build
        skirt = [(middle - 0.07, 0.4), (middle + 0.07, 0.4), (middle + flare, 0.7)]
        pen.draw([*skirt, (middle - flare, 0.7)], legs if rng.random() < 0.5 else top)
    wide = 0.1 * build
    torso = [(middle - wide, 0.19), (middle + wide, 0.19), (middle + 0.8 * wide, 0.56)]
    swing = rng.uniform(-0.06, 0.08)
    pen.draw(limb((middle - wide, 0.22), (middle - wide - swing, 0.5), 0.06, 0.05), top * 0.8)
    pen.draw(smooth([*torso, (middle - 0.8 * wide, 0.56)], 1), top)
    if rng.random() < 0.4:
        belt = box(middle - wide, 0.3, middle + wide, rng.uniform(0.34, 0.42))
        pen.detail(belt, known_colour(rng))
    hand = (middle + wide + swing, 0.5)
    pen.draw(limb((middle + wide, 0.22), hand, 0.06, 0.05), top * 0.9)
    pen.draw(disc(*hand, 0.025, 0.025), skin)
    pen.draw(box(middle - 0.025, 0.13, middle + 0.025, 0.21), skin * 0.9)
    pen.draw(disc(middle, 0.085, 0.055, 0.075), skin)
    hair = known_colour(rng) if rng.random() < 0.3 else skin * 0.25
    pen.draw(disc(middle, 0.05, 0.058, 0.05), hair)
    return pen


def tree(rng: Generator, height: float) -> Pen:
    """Tree or, where the trunk is short, bush; green, or in the colours of autumn."""
    aspect = rng.uniform(0.55, 0.95)
    pen = Pen(height, aspect)
    middle = aspect / 2
    trunk = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.45, 0.65), rng.uniform(0.25, 0.4))
    lean = rng.uniform(-0.05, 0.05)
    pen.draw(limb((middle + lean, 1.0), (middle, 0.4), 0.07, 0.04), trunk)
    leaf = foliage(rng)
    low = rng.uniform(0.6, 0.8)
    blobs = []
    for _ in range(int(rng.integers(10, 17))):
        r = rng.uniform(0.12, 0.22)
        x, y = rng.uniform(r, aspect - r), rng.uniform(r, low - r)
        # Crowns narrow towards the top.
        blobs.append((y, middle + (x - middle) * (0.5 + 0.5 * y / low), r))
    for y, x, r in sorted(blobs, reverse=True):
        tone = 1.15 - 0.55 * y / low + rng.uniform(-0.08, 0.08)
        pen.draw(disc(x, y, r, r * 0.8), leaf * tone)
    return pen


def foliage(rng: Generator) -> Colour:
    """Colour of leaves."""
    if rng.random() < 0.03:  # autumn
        return hsv(rng.uniform(0.02, 0.14), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.7))
    return hsv(rng.uniform(0.2, 0.36), rng.uniform(0.4, 0.75), rng.uniform(0.25, 0.55))


def sign(rng: Generator, height: float) -> Pen:
    """Face of a traffic sign: round, triangle, square, octagon, diamond, in any two colours."""
    pen = Pen(height, 1.0)
    corners = int(rng.choice([3, 4, 4, 8, 24, 24]))
    start = {3: -np.pi / 2, 4: rng.choice([0.0, np.pi / 4]), 8: np.pi / 8, 24: 0.0}[corners]
    t = start + np.arange(corners) * 2 * np.pi / corners
    outline = np.stack([np.cos(t), np.sin(t)], 1)
    strong = hsv(rng.choice([0.0, 0.6, 0.13]), 0.85, rng.uniform(0.6, 0.95))
    light = hsv(rng.random(), rng.uniform(0, 0.15), rng.uniform(0.8, 1.0))
    rim, face = (strong, light) if rng.random() < 0.6 else (light, strong)
    pen.draw(0.5 + 0.49 * outline, rim)
    pen.detail(0.5 + 0.36 * outline, face)
    if rng.random() < 0.6:
        angle = rng.choice([0.0, np.pi / 2, np.pi / 4])
        half = 0.2 * np.array([np.cos(angle), np.sin(angle)])
        pen.detail(limb(tuple(0.5 - half), tuple(0.5 + half), 0.12, 0.12), rim * 0.7)
    return pen


def pole(rng: Generator, height: float, aspect: float) -> Pen:
    """Lamp post, mast or bollard; ``aspect`` is the thickness of the shaft over the height."""
    arm = rng.uniform(0.08, 0.25) if rng.random() < 0.6 else 0.0
    pen = Pen(height, arm + 2 * aspect)
    colour = hsv(rng.random(), rng.uniform(0, 0.1), rng.uniform(0.2, 0.4))
    pen.draw(box(0, 0, aspect, 1), colour)
    if arm:
        pen.draw(box(0, 0.0, arm, 0.7 * aspect), colour)
        pen.draw(box(0.6 * arm, 0, arm + aspect, aspect), colour * 1.2)
    pen.detail(box(0.6 * aspect, 0, aspect, 1), colour * 0.75)
    return pen


def car_side(rng: Generator, height: float) -> Pen:
    """Car seen from the side."""
    pen = Pen(height, 2.8)
    paint, glass = known_colour(rng), hsv(0.58, 0.3, rng.uniform(0.12, 0.5))
    back = rng.uniform(0.05, 0.6)  # where the roof begins: estate to saloon
    roof = [(back, 0.42), (back + 0.2, 0.03), (1.65, 0.03), (2.1, 0.42)]
    pen.draw(smooth([*roof, (2.72, 0.5), (2.78, 0.8), (0.03, 0.8), (0.03, 0.45)], 1), paint)
    split = (back + 2.0) / 2
    rear = [(back + 0.16, 0.4), (back + 0.3, 0.1), (split - 0.04, 0.1), (split - 0.04, 0.4)]
    pen.detail(rear, glass)
    pen.detail([(split + 0.04, 0.1), (1.6, 0.1), (1.9, 0.4), (split + 0.04, 0.4)], glass)
    pen.detail(box(0.03, 0.7, 2.78, 0.8), paint * 0.55)
    pen.detail(box(2.68, 0.5, 2.78, 0.58), np.array([240.0, 235, 200]))
    pen.detail(box(0.03, 0.47, 0.1, 0.58), np.array([200.0, 30, 25]))
    for x in (0.55, 2.2):
        pen.draw(disc(x, 0.78, 0.22, 0.22), np.array([22.0, 22, 24]))
        pen.detail(disc(x, 0.78, 0.11, 0.11), np.array([130.0, 132, 135]))
    return pen
