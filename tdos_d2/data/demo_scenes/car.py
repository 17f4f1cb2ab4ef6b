"""Cars of the demo scenes that stand or drive along the street, drawn as solid bodies."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from .sprites import CIRCLE, Colour, box, hsv, known_colour
from .street import CAR, Canvas

_TYRE = np.array([20.0, 20, 22])


class Car:
    """A car with random shape and paint whose near end is at (X, Z), seen from behind or in front.

    Sizes are in metres; ``belt`` is the height at which the windows begin.
    """

    def __init__(self, rng: Generator, x: float, z: float) -> None:
        self.x, self.z = x, z
        self.half, self.length = rng.uniform(0.82, 0.95), rng.uniform(3.6, 4.7)
        self.belt, self.roof = rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.9)
        self.slope = rng.uniform(0.15, 0.8)
        self.paint = known_colour(rng)
        self.glass = hsv(0.58, 0.25, rng.uniform(0.1, 0.45))
        self.front = rng.random() < 0.35
        end = z + self.length
        # Where the cabin begins and ends: the bonnet is on the near or on the far side.
        self.cabin = (z + 0.9, end) if self.front else (z + 0.02, end - 1.0)

    def draw(self, canvas: Canvas) -> None:
        """Paint the car and its shadow."""
        z, half, flank = self.z, self.half, self.x - np.sign(self.x) * self.half
        wide = half + 0.1
        shadow = box(self.x - wide, z - 0.2, self.x + wide, z + self.length + 0.2)
        canvas.shadow(canvas.camera.project(np.insert(shadow, 1, 0, axis=1)), 1.3)
        for wheel in (z + 0.75, z + self.length - 0.8):
            ring = 0.33 * CIRCLE + (0.33, wheel)
            canvas.polygon(np.insert(ring, 0, flank, axis=1), _TYRE, CAR)
        for side in (-1, 1):
            outer, inner = self.x + side * half, self.x + side * (half - 0.24)
            canvas.polygon(self._face(outer, inner, 0.0, 0.4), _TYRE, CAR)
        lit = 1 - 0.2 * np.sign(self.x) * canvas.light.side
        body = self._solid(canvas, (0.25, self.belt), 0.03, (z, z + self.length), 0.0)
        canvas.polygon(body, self.paint * 0.75 * lit, CAR)
        top = self._solid(canvas, (self.belt, self.roof), 0.16, self.cabin, self.slope)
        canvas.polygon(top, self.paint * 0.95, CAR)
        self._draw_windows(canvas, flank)
        self._draw_end(canvas)

    def _draw_windows(self, canvas: Canvas, flank: float) -> None:
        near, far = self.cabin
        belt, high, slope = self.belt, self.roof - 0.1, self.slope
        upper = flank + np.sign(self.x) * 0.13
        window = [(flank, belt, near + 0.3), (flank, belt, far - 0.4)]
        window += [(upper, high, far - slope - 0.2), (upper, high, near + slope + 0.1)]
        canvas.polygon(np.array(window), self.glass)
        low, top = self.half - 0.1, self.half - 0.26
        pane = [(-low, belt, near), (low, belt, near)]
        pane += [(top, high, near + slope), (-top, high, near + slope)]
        canvas.polygon(np.add(pane, (self.x, 0, 0)), self.glass * 1.2)

    def _draw_end(self, canvas: Canvas) -> None:
        """The end that faces the camera, with bumper, lamps and number plate."""
        left, right = self.x - self.half, self.x + self.half
        canvas.polygon(self._face(left, right, 0.25, self.belt), self.paint, CAR)
        canvas.polygon(self._face(left, right, 0.25, 0.42), self.paint * 0.5)
        lamp: Colour = np.array([245.0, 240, 210]) if self.front else np.array([200.0, 25, 25])
        for x in (left + 0.04, right - 0.34):
            canvas.polygon(self._face(x, x + 0.3, self.belt - 0.3, self.belt - 0.1), lamp)
        plate = self._face(self.x - 0.25, self.x + 0.25, 0.48, 0.6)
        canvas.polygon(plate, np.array([225.0, 225, 215]))

    def _face(self, x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        """Upright rectangle in the plane of the near end, (4, 3) in metres."""
        return np.insert(box(x0, y0, x1, y1), 2, self.z, axis=1)

    def _solid(
        self, canvas: Canvas, y: tuple[float, float], inset: float, z: tuple[float, float],
        slope: float,
    ) -> np.ndarray:
        """Outline (n, 2) in pixels of a box whose top is narrower and shorter than its bottom."""
        corners = [(s * self.half, y[0], d) for s in (-1, 1) for d in z]
        ends = (z[0] + slope, z[1] - slope)
        corners += [(s * (self.half - inset), y[1], d) for s in (-1, 1) for d in ends]
        pixels = canvas.camera.project(np.add(corners, (self.x, 0, 0)))
        return cv2.convexHull(pixels.astype(np.float32))[:, 0]
