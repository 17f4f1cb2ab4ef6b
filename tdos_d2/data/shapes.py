"""Drawn outliers: generic shapes with generic textures, a source of objects that needs no data.

The shapes do not imitate real objects. They vary in outline (smooth blobs, polygons, rounded boxes,
bars, compositions), colour (every hue, greys, browns, nearly black) and contrast: plain, muted and
vivid textures are equally frequent, so that neither a strong nor a weak texture distinguishes
unknown from known objects.
"""

from __future__ import annotations

import cv2
import numpy as np

FloatArray = np.ndarray

TEXTURES = ("plain", "muted", "vivid")
_SUBPIXEL_BITS = 4


class ShapeSource:
    """Draws one random object per call; see the module's docstring."""

    def sample(self, rng: np.random.Generator, max_side: int) -> tuple[np.ndarray, FloatArray]:
        """Draw an object.

        Args:
            rng: the only source of randomness.
            max_side: larger side of the patch in pixels, at least 3.

        Returns:
            patch (h, w, 3) uint8, textured up to its borders, and mask (h, w) float32 in 0..1
            (fractions only at the outline), with max(h, w) == ``max_side``.
        """
        parts, (h, w) = _fit(_random_parts(rng), max_side)
        style = TEXTURES[rng.integers(len(TEXTURES))]
        patch = self.texture(rng, (h, w), style)
        mask = np.zeros((h, w), np.uint8)
        for number, part in enumerate(parts):
            inside = _fill(part, (h, w))
            if number and rng.random() < 0.6:
                patch[inside > 127] = self.texture(rng, (h, w), style)[inside > 127]
            mask = np.maximum(mask, inside)
        lit = patch * _side_light(rng, mask)[..., None]
        return np.clip(lit, 0, 255).astype(np.uint8), mask.astype(np.float32) / 255

    def texture(self, rng: np.random.Generator, size: tuple[int, int], style: str) -> FloatArray:
        """The texture of a part of an object; arguments and result of :func:`random_texture`."""
        return random_texture(rng, size, style)


def random_colour(rng: np.random.Generator, style: str) -> FloatArray:
    """A colour (3,) float32 in 0..255 of one of ``TEXTURES``: "plain" covers the other two."""
    if style == "plain":
        style = "muted" if rng.random() < 0.5 else "vivid"
    hue = rng.random()
    if style == "vivid":
        return _hsv(hue, rng.uniform(0.55, 1.0), rng.uniform(0.45, 1.0))
    family = rng.integers(4)
    if family == 0:  # grey, including black and white
        return _hsv(hue, rng.uniform(0.0, 0.08), rng.uniform(0.05, 0.95))
    if family == 1:  # brown and beige
        return _hsv(rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.65), rng.uniform(0.15, 0.75))
    if family == 2:  # dark
        return _hsv(hue, rng.uniform(0.1, 0.6), rng.uniform(0.05, 0.25))
    return _hsv(hue, rng.uniform(0.1, 0.4), rng.uniform(0.25, 0.85))


def random_texture(rng: np.random.Generator, size: tuple[int, int], style: str) -> FloatArray:
    """A texture (h, w, 3) float32 in 0..255; ``style`` is one of ``TEXTURES``."""
    h, w = size
    first = random_colour(rng, style)
    if style == "plain":
        return np.broadcast_to(first, (h, w, 3)).copy()
    second = random_colour(rng, style)
    if style == "muted":  # low contrast: the second colour is similar to the first
        second = first + (second - first) * rng.uniform(0.1, 0.4)
    share = PATTERNS[rng.integers(len(PATTERNS))](rng, h, w)[..., None]
    return first * (1 - share) + second * share


def _hsv(hue: float, saturation: float, value: float) -> FloatArray:
    sector = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)


# --- patterns: (h, w) float32 in 0..1 -------------------------------------------------------


def _coordinates(rng: np.random.Generator, h: int, w: int) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates in a coordinate system rotated by a random angle."""
    angle = rng.uniform(0, np.pi)
    y, x = np.ogrid[:h, :w]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _period(rng: np.random.Generator, h: int, w: int) -> float:
    return max(2.5, max(h, w) * rng.uniform(0.08, 0.4))


def _gradient(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    u, _ = _coordinates(rng, h, w)
    return (u - u.min()) / max(np.ptp(u), 1.0)


def _noise(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    cells = int(rng.integers(3, 12))
    grid = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_LINEAR)


def _grain(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    return rng.random((h, w), dtype=np.float32)


def _stripes(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    u, _ = _coordinates(rng, h, w)
    return ((u / _period(rng, h, w)) % 1 < rng.uniform(0.25, 0.75)).astype(np.float32)


def _checks(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    u, v = _coordinates(rng, h, w)
    period = _period(rng, h, w)
    return ((np.floor(u / period) + np.floor(v / period)) % 2).astype(np.float32)


def _spots(rng: np.random.Generator, h: int, w: int) -> FloatArray:
    share = np.zeros((h, w), np.float32)
    radius = _period(rng, h, w) / 2
    for _ in range(int(rng.integers(4, 16))):
        centre = (int(rng.integers(w)), int(rng.integers(h)))
        cv2.circle(share, centre, max(1, round(radius * rng.uniform(0.4, 1.2))), 1.0, cv2.FILLED)
    return share


PATTERNS = (_gradient, _noise, _grain, _stripes, _checks, _spots)


# --- outlines: polygons (n, 2) float32 around the origin -------------------------------------


def _random_parts(rng: np.random.Generator) -> list[FloatArray]:
    """One to three overlapping outlines, rotated and stretched together."""
    parts = [OUTLINES[rng.integers(len(OUTLINES))](rng)]
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            outline = OUTLINES[rng.integers(len(OUTLINES))](rng)
            angle = rng.uniform(0, 2 * np.pi)
            offset = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.4, 0.8)
            parts.append(outline * rng.uniform(0.4, 0.9) + offset.astype(np.float32))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    stretch = np.array([np.exp(rng.uniform(-0.4, 0.4)), 1.0], np.float32)
    return [(part * stretch) @ turn for part in parts]


def _blob(rng: np.random.Generator) -> FloatArray:
    """Smooth closed curve: a radius with a few low-order Fourier terms."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False, dtype=np.float32)
    order = np.arange(1, 6, dtype=np.float32)[:, None]
    amplitude = rng.uniform(0, 0.45, (5, 1)) / order
    phase = rng.uniform(0, 2 * np.pi, (5, 1))
    radius = np.maximum(1 + (amplitude * np.cos(order * t + phase)).sum(0), 0.15)
    return _polar(t, radius)


def _polygon(rng: np.random.Generator) -> FloatArray:
    corners = int(rng.integers(3, 8))
    t = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * np.pi / corners)
    return _polar(t, rng.uniform(0.55, 1.0, corners))


def _rounded_box(rng: np.random.Generator, ratio: float | None = None) -> FloatArray:
    """Superellipse: from an ellipse (exponent 2) to nearly a rectangle."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    power = 2 / rng.uniform(2, 9)
    cos, sin = np.cos(t), np.sin(t)
    x, y = np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power
    ratio = rng.uniform(0.4, 1.0) if ratio is None else ratio
    return np.stack([x, y * ratio], 1).astype(np.float32)


def _bar(rng: np.random.Generator) -> FloatArray:
    """Elongated box with a bend."""
    box = _rounded_box(rng, rng.uniform(0.1, 0.3))
    box[:, 1] += rng.uniform(-0.4, 0.4) * box[:, 0] ** 2
    return box


OUTLINES = (_blob, _polygon, _rounded_box, _bar)


def _polar(angle: FloatArray, radius: FloatArray) -> FloatArray:
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]).astype(np.float32)


def _fit(parts: list[FloatArray], max_side: int) -> tuple[list[FloatArray], tuple[int, int]]:
    """Scale and shift outlines to pixels; the larger side of their box becomes ``max_side``."""
    points = np.concatenate(parts)
    low, extent = points.min(0), np.ptp(points, axis=0)
    scale = (max_side - 2) / extent.max()
    w, h = (max(3, round(float(side) * scale) + 2) for side in extent)
    return [(part - low) * scale + 0.5 for part in parts], (min(h, max_side), min(w, max_side))


def _fill(polygon: FloatArray, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    points = np.round(polygon * 2**_SUBPIXEL_BITS).astype(np.int32)
    return cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)


# --- light ------------------------------------------------------------------------------------


def _side_light(rng: np.random.Generator, mask: np.ndarray) -> FloatArray:
    """Brightness factor (h, w): light from one side on a body convex towards the viewer."""
    h, w = mask.shape
    # The surface is smooth, so a thumbnail is enough, whose cost does not depend on the size.
    small = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    height = cv2.GaussianBlur(small, (0, 0), 4, borderType=cv2.BORDER_CONSTANT)
    slope_y, slope_x = np.gradient(height)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * slope_x + np.sin(angle) * slope_y
    light = 1 + rng.uniform(0, 6) * slope
    light = np.clip(light, 0.45, 1.4).astype(np.float32)
    return cv2.resize(light, (w, h), interpolation=cv2.INTER_LINEAR)
