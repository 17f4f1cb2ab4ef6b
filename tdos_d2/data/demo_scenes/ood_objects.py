"""Objects of no known class in the demo's scenes, each drawn by its own code.

They have nothing in common with the drawn training outliers (``tdos_d2.data.shapes``), which are
bodies with generic textures: these have legs, staves, cushions or rungs, in the colours of their
kind. Kinds, natural heights and shares of pixels (``OOD_KINDS``) were fixed before any model was
trained on the scenes and must not be tuned. At least 85 % of their painted pixels stay visible.
The street around them was made easier later, judged by demo_val and demo_ood_dev.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from .sprites import Colour, Pen, any_colour, box, disc, hsv, limb, smooth


@dataclass(frozen=True)
class OODKind:
    """How an OOD kind is drawn and placed."""

    draw: Callable[[Generator, float], Pen]
    metres: tuple[float, float]  # natural height
    most: int  # objects per scene
    share: tuple[float, float] = (0.015, 0.06)  # of the scene's pixels that show them


def _coat(rng: Generator) -> Colour:
    """Fur: black, white, grey, tan, chestnut or dark brown."""
    tones = [(0.08, 0.1, 0.12), (0.1, 0.06, 0.92), (0.1, 0.05, 0.5), (0.09, 0.45, 0.72)]
    tones += [(0.05, 0.65, 0.5), (0.06, 0.55, 0.28)]
    hue, saturation, value = tones[rng.integers(len(tones))]
    return hsv(hue, saturation, np.clip(value * rng.uniform(0.8, 1.2), 0.05, 1))


def _patches(rng: Generator, pen: Pen, coat: Colour, area: np.ndarray) -> None:
    """Irregular patches of another fur within ``area`` = (x0, y0, x1, y1)."""
    other = _coat(rng)
    if np.abs(other - coat).max() < 60:
        other = np.full(3, 235.0 if coat.mean() < 128 else 40.0)
    x0, y0, x1, y1 = area
    for _ in range(int(rng.integers(2, 6))):
        centre = rng.uniform((x0, y0), (x1, y1))
        angle = np.linspace(0, 2 * np.pi, 7, endpoint=False)
        radius = rng.uniform(0.05, 0.15, 7)
        ring = np.stack([np.cos(angle) * radius * 1.3, np.sin(angle) * radius], 1)
        pen.detail(smooth(centre + ring), other)


def _legs(
    rng: Generator, pen: Pen, hips: tuple[float, float], top: float, width: float, coat: Colour,
    near: bool,
) -> None:
    """The pair of legs on the near or the far side, from ``top`` down to the ground."""
    tone, shift = (0.95, 0.0) if near else (0.6, 0.09)
    for x in hips:
        knee = (x + shift + rng.uniform(-0.04, 0.04), (top + 1) / 2 + 0.03)
        foot = (x + shift + rng.uniform(-0.07, 0.07), 0.97)
        pen.draw(limb((x + shift, top), knee, width * 1.5, width), coat * tone)
        pen.draw(limb(knee, foot, width, width * 0.8), coat * tone)
        pen.draw(box(foot[0] - width * 0.5, 0.95, foot[0] + width * 0.7, 1.0), coat * 0.35)


def _cow(rng: Generator, height: float) -> Pen:
    pen, coat = Pen(height, 1.75), _coat(rng)
    _legs(rng, pen, (0.35, 1.05), 0.6, 0.09, coat, near=False)
    pen.draw(limb((0.22, 0.22), (0.12, 0.65), 0.04, 0.05), coat * 0.7)
    body = [(0.18, 0.2), (0.6, 0.13), (1.2, 0.1), (1.36, 0.25), (1.28, 0.58), (1.0, 0.7)]
    pen.draw(smooth([*body, (0.6, 0.73), (0.22, 0.62)]), coat)
    _patches(rng, pen, coat, np.array([0.3, 0.2, 1.2, 0.6]))
    pen.draw(disc(0.5, 0.71, 0.1, 0.06), np.array([215.0, 160, 150]))
    _legs(rng, pen, (0.3, 1.12), 0.6, 0.09, coat, near=True)
    pen.draw(smooth([(1.1, 0.12), (1.35, 0.05), (1.5, 0.1), (1.4, 0.4), (1.2, 0.5)]), coat * 0.95)
    pen.draw(smooth([(1.32, 0.05), (1.5, 0.03), (1.7, 0.33), (1.6, 0.42), (1.42, 0.28)]), coat)
    pen.draw(disc(1.645, 0.37, 0.06, 0.05, 0.8), np.array([200.0, 150, 140]))
    for x in (1.36, 1.48):
        pen.draw(limb((x, 0.07), (x + 0.03, 0.0), 0.035, 0.01), np.array([225.0, 215, 190]))
    pen.draw(disc(1.3, 0.12, 0.08, 0.03, 0.4), coat * 0.6)
    return pen


def _horse(rng: Generator, height: float) -> Pen:
    pen, coat = Pen(height, 1.3), _coat(rng)
    mane = coat * 0.4 if rng.random() < 0.6 else 255 - 0.4 * (255 - coat)
    _legs(rng, pen, (0.28, 0.76), 0.62, 0.06, coat, near=False)
    pen.draw(smooth([(0.2, 0.33), (0.06, 0.4), (0.02, 0.75), (0.1, 0.78), (0.16, 0.5)]), mane)
    body = [(0.15, 0.36), (0.32, 0.31), (0.6, 0.36), (0.85, 0.32), (0.95, 0.45), (0.85, 0.63)]
    pen.draw(smooth([*body, (0.55, 0.66), (0.3, 0.62), (0.16, 0.55)]), coat)
    if rng.random() < 0.3:
        _patches(rng, pen, coat, np.array([0.25, 0.38, 0.8, 0.58]))
    _legs(rng, pen, (0.24, 0.83), 0.58, 0.065, coat, near=True)
    pen.draw(smooth([(0.72, 0.36), (0.92, 0.08), (1.05, 0.08), (1.02, 0.3), (0.95, 0.55)]), coat)
    pen.draw(smooth([(0.7, 0.36), (0.88, 0.06), (0.96, 0.04), (0.86, 0.32)]), mane)
    head = smooth([(0.92, 0.05), (1.06, 0.06), (1.27, 0.25), (1.2, 0.33), (1.0, 0.22)])
    pen.draw(head, coat * 0.95)
    pen.draw(limb((0.97, 0.08), (0.98, 0.0), 0.05, 0.01), coat * 0.7)
    return pen


def _dog(rng: Generator, height: float) -> Pen:
    pen, coat = Pen(height, 1.5), _coat(rng)
    _legs(rng, pen, (0.36, 0.92), 0.62, 0.08, coat, near=False)
    curl = rng.uniform(0.0, 0.25)
    pen.draw(limb((0.32, 0.42), (0.08, curl + 0.08), 0.1, 0.04), coat * 0.85)
    body = [(0.25, 0.4), (0.6, 0.36), (1.0, 0.34), (1.12, 0.5), (1.0, 0.74), (0.7, 0.64)]
    pen.draw(smooth([*body, (0.35, 0.66), (0.24, 0.55)]), coat)
    if rng.random() < 0.5:
        _patches(rng, pen, coat, np.array([0.35, 0.42, 0.95, 0.6]))
    _legs(rng, pen, (0.32, 0.98), 0.6, 0.09, coat, near=True)
    pen.draw(smooth([(0.9, 0.4), (1.02, 0.12), (1.22, 0.14), (1.15, 0.5)]), coat)
    pen.draw(disc(1.14, 0.2, 0.15, 0.13), coat)
    pen.draw(smooth([(1.15, 0.14), (1.42, 0.2), (1.45, 0.28), (1.2, 0.32)]), coat * 0.9)
    pen.draw(disc(1.44, 0.22, 0.035, 0.03), np.array([20.0, 18, 18]))
    pen.draw(smooth([(1.0, 0.06), (1.1, 0.1), (1.08, 0.33), (0.98, 0.32)]), coat * 0.55)
    return pen


def animal(rng: Generator, height: float) -> Pen:
    """Cow, horse or dog from the side."""
    return (_cow, _horse, _dog)[rng.integers(3)](rng, height)


def sofa(rng: Generator, height: float) -> Pen:
    """Two- or three-seater from the front, sometimes with stripes or loose cushions."""
    aspect = rng.uniform(1.9, 2.5)
    pen, cloth = Pen(height, aspect), any_colour(rng)
    arm, seats = 0.26, 2 if aspect < 2.2 else 3
    for x in (0.12, aspect - 0.18):
        pen.draw(box(x, 0.88, x + 0.06, 1.0), hsv(0.07, 0.5, 0.25))
    high = aspect - 0.1
    back = [(0.1, 0.12), (0.3, 0), (high - 0.2, 0), (high, 0.12), (high, 0.7), (0.1, 0.7)]
    pen.draw(smooth(back, 1), cloth * 0.8)
    if rng.random() < 0.4:
        stripe = any_colour(rng)
        for x in np.arange(0.2, aspect - 0.2, rng.uniform(0.14, 0.24)):
            pen.detail(box(x, 0.0, x + 0.05, 0.6), stripe)
    width = (aspect - 2 * arm) / seats
    pen.draw(box(arm, 0.72, aspect - arm, 0.92), cloth * 0.6)
    for i in range(seats):
        x0, x1 = arm + i * width + 0.015, arm + (i + 1) * width - 0.015
        pen.detail(box(x0 - 0.01, 0.1, x0 + 0.01, 0.5), cloth * 0.5)
        pen.draw(smooth(box(x0, 0.5, x1, 0.74), 1), cloth * 1.1)
    for x in (0.0, aspect - arm):
        pen.draw(smooth([(x, 0.32), (x + arm, 0.32), (x + arm, 0.92), (x, 0.92)], 1), cloth * 0.9)
        pen.detail(disc(x + arm / 2, 0.42, 0.09, 0.07), cloth * 1.15)
    if rng.random() < 0.5:
        x = rng.uniform(arm, aspect - arm - 0.35)
        pen.draw(smooth(box(x, 0.25, x + 0.32, 0.55), 1), any_colour(rng))
    return pen


def barrel(rng: Generator, height: float) -> Pen:
    """Wooden barrel with hoops or steel drum with ribs; the body is round, lit from one side."""
    pen = Pen(height, 0.74)
    wooden = rng.random() < 0.4
    bulge = 0.06 if wooden else 0.0
    if wooden:
        paint, band = hsv(rng.uniform(0.05, 0.1), 0.6, rng.uniform(0.3, 0.65)), hsv(0, 0, 0.22)
    else:
        hue = rng.choice([0.0, 0.05, 0.13, 0.33, 0.58, 0.62])
        paint = hsv(hue, rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.85))
        band = paint * 0.65 if rng.random() < 0.6 else hsv(0, 0, 0.9)
    left, right = 0.06, 0.68
    side = [(right, 0.1), (right + bulge, 0.5), (right, 0.9)]
    side += [(0.55, 0.97), (0.37, 1.0), (0.19, 0.97)]
    pen.draw(smooth([(left, 0.1), *side, (left, 0.9), (left - bulge, 0.5)], 1), paint)
    # Cylinder: brightest off the middle, dark towards both edges.
    bright = rng.uniform(0.25, 0.5)
    for x in np.linspace(left - bulge, right + bulge, 9)[:-1]:
        distance = abs(x + 0.04 - bright) / 0.45
        pen.detail(box(x, 0.0, x + 0.09, 1.0), paint * (1.2 - 0.75 * distance))
    x = np.linspace(0, 0.74, 9)
    for y in (0.2, 0.36, 0.66, 0.82) if wooden else (0.34, 0.64):  # hoops sag in the middle
        rim = np.stack([x, y + 0.08 * (1 - ((x - 0.37) / 0.37) ** 2)], 1)
        pen.detail(np.concatenate([rim, np.add(rim[::-1], (0, 0.045))]), band)
    if not wooden and rng.random() < 0.3:
        pen.detail(box(0.25, 0.42, 0.48, 0.58), np.array([235.0, 225, 120]))
    pen.draw(disc(0.37, 0.09, 0.31, 0.085), paint * 0.6)
    pen.detail(disc(0.37, 0.1, 0.26, 0.06), paint * (0.4 if wooden else 0.9))
    return pen


def ladder(rng: Generator, height: float) -> Pen:
    """Stepladder: two rails, rungs, and the thin legs behind."""
    spread = rng.uniform(0.3, 0.45)
    pen = Pen(height, spread + 0.35)
    metal = hsv(rng.choice([0.1, 0.58, 0.0]), rng.uniform(0, 0.5), rng.uniform(0.5, 0.85))
    rail = rng.uniform(0.03, 0.045)
    for x in (0.2, spread + 0.05):
        pen.draw(limb((x, 0.02), (x + 0.26, 1.0), rail * 0.8, rail * 0.8), metal * 0.6)
    left, right = ((0.16, 0.0), (0.03, 1.0)), ((spread, 0.0), (spread + 0.12, 1.0))
    for share in np.linspace(0.06, 0.9, int(rng.integers(6, 9))):
        y0, y1 = (np.array(low) + (np.array(high) - low) * share for low, high in (left, right))
        pen.draw(limb(tuple(y0), tuple(y1), rail, rail), metal * 0.85)
    for low, high in (left, right):
        pen.draw(limb(low, high, rail, rail), metal)
    return pen


def tyre(rng: Generator, height: float) -> Pen:
    """Tyre without a rim, upright and turned a little; dark, the street shows through it."""
    turn = rng.uniform(0.6, 1.0)
    pen = Pen(height, turn + 0.2)
    rubber = np.full(3, rng.uniform(18, 48))
    pen.draw(disc(turn / 2 + 0.18, 0.5, turn / 2, 0.5), rubber * 0.7)
    pen.draw(disc(turn / 2, 0.5, turn / 2, 0.5), rubber)
    for radius, tone in ((0.4, 1.6), (0.36, 1.1), (0.26, 0.5)):
        pen.detail(disc(turn / 2, 0.5, radius * turn, radius), rubber * tone)
    pen.cut(disc(turn / 2 + 0.02, 0.5, 0.22 * turn, 0.24))
    return pen


def suitcase(rng: Generator, height: float) -> Pen:
    """Trolley case with its handle out."""
    pen, shell = Pen(height, 0.62), any_colour(rng)
    for x in (0.14, 0.44):
        pen.draw(box(x, 0.02, x + 0.03, 0.3), np.array([90.0, 92, 95]))
    pen.draw(box(0.13, 0.0, 0.48, 0.05), np.array([40.0, 40, 42]))
    corners = [(0.06, 0.24), (0.56, 0.24), (0.62, 0.3), (0.62, 0.9), (0.56, 0.96)]
    pen.draw([*corners, (0.06, 0.96), (0.0, 0.9), (0.0, 0.3)], shell)
    for x in np.linspace(0.1, 0.48, 4):
        pen.detail(box(x, 0.3, x + 0.025, 0.92), shell * 0.7)
    pen.detail(box(0.0, 0.56, 0.62, 0.6), shell * 0.45)
    for x in (0.1, 0.45):
        pen.draw(disc(x + 0.03, 0.96, 0.04, 0.04), np.array([25.0, 25, 25]))
    return pen


def tent(rng: Generator, height: float) -> Pen:
    """Dome or ridge tent with an open entrance."""
    pen, cloth = Pen(height, 1.8), any_colour(rng)
    dome = [(0.0, 1.0), (0.15, 0.45), (0.6, 0.02), (1.2, 0.02), (1.65, 0.45), (1.8, 1.0)]
    ridge = [(0.0, 1.0), (0.55, 0.0), (1.35, 0.04), (1.8, 1.0)]
    pen.draw(smooth(dome, 1) if rng.random() < 0.5 else ridge, cloth * 0.8)
    pen.detail([(0.0, 1.0), (0.62, 0.0), (1.15, 1.0)], cloth * 1.1)
    pen.detail([(0.35, 1.0), (0.62, 0.3), (0.85, 1.0)], cloth * 0.25)
    pen.detail(limb((0.62, 0.0), (1.15, 1.0), 0.03, 0.03), any_colour(rng))
    return pen


def boulder(rng: Generator, height: float) -> Pen:
    """Rock with flat faces, lighter on top."""
    aspect = rng.uniform(1.0, 1.5)
    pen = Pen(height, aspect)
    stone = hsv(rng.uniform(0.04, 0.15), rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.65))
    angle = np.linspace(np.pi, 2 * np.pi, 8)
    arc = np.stack([aspect / 2 * (1 + np.cos(angle)), 0.85 + 0.85 * np.sin(angle)], 1)
    arc += rng.uniform(-0.05, 0.05, arc.shape)
    rim = np.concatenate([arc, [(0.92 * aspect, 1.0), (0.08 * aspect, 1.0)]])
    pen.draw(rim, stone * 0.6)
    middle = np.array([aspect * rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.5)])
    for first, second in pairwise(rim[:-1]):
        pen.detail([first, second, middle], stone * rng.uniform(0.75, 1.35))
    return pen


def boat(rng: Generator, height: float) -> Pen:
    """Sailing dinghy on dry land."""
    pen, hull, sail = Pen(height, 1.15), any_colour(rng), any_colour(rng)
    pen.draw(box(0.52, 0.0, 0.56, 0.75), hsv(0.08, 0.5, 0.4))
    pen.draw([(0.58, 0.04), (1.05, 0.66), (0.58, 0.66)], sail)
    pen.draw([(0.5, 0.1), (0.5, 0.66), (0.16, 0.66)], 255 - 0.7 * (255 - sail))
    pen.draw(smooth([(0.0, 0.72), (1.15, 0.7), (1.0, 0.98), (0.2, 1.0)], 1), hull)
    pen.detail([(0.0, 0.72), (1.15, 0.7), (1.12, 0.78), (0.04, 0.79)], 255 - 0.5 * (255 - hull))
    return pen


def umbrella(rng: Generator, height: float) -> Pen:
    """Open parasol whose panels take turns in two colours."""
    pen, colours = Pen(height, 1.3), (any_colour(rng), any_colour(rng))
    pen.draw(box(0.63, 0.1, 0.67, 0.97), hsv(0.08, 0.4, 0.35))
    pen.draw(box(0.53, 0.94, 0.77, 1.0), np.array([70.0, 70, 72]))
    edge = np.linspace(0.0, 1.3, 7)
    for i in range(6):
        low = 0.5 - 0.06 * np.sin(np.pi * edge[i : i + 2] / 1.3)
        knee = 0.65 + (edge[i : i + 2] - 0.65) * 0.75
        panel = [(0.65, 0.02), (knee[1], 0.2), (edge[i + 1], low[1])]
        pen.draw([*panel, (edge[i], low[0]), (knee[0], 0.2)], colours[i % 2])
    return pen


_HARD = (0.005, 0.04)  # thin things
OOD_KINDS: dict[str, OODKind] = {
    "animal": OODKind(animal, (0.7, 1.7), 2),
    "sofa": OODKind(sofa, (0.8, 1.05), 1),
    "barrel": OODKind(barrel, (0.85, 1.15), 3),
    "ladder": OODKind(ladder, (1.7, 2.6), 1, _HARD),
    "tyre": OODKind(tyre, (0.65, 1.0), 2, _HARD),
    "suitcase": OODKind(suitcase, (0.7, 1.0), 2),
    "tent": OODKind(tent, (1.2, 1.7), 1),
    "boulder": OODKind(boulder, (0.7, 1.3), 2),
    "boat": OODKind(boat, (1.3, 2.2), 1),
    "umbrella": OODKind(umbrella, (1.0, 1.6), 2),
}
