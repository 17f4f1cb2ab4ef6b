"""The fixed part of a demo scene: camera, light, sky, ground, buildings, hedges and fences."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from ..augmentation import overlap
from .sprites import Colour, Pen, box, fill, fixed_point, foliage, hsv, known_colour

CLASSES = (
    "road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky", "person",
    "car",
)  # fmt: skip
ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, SKY, PERSON, CAR = range(len(CLASSES))
OOD = len(CLASSES)

NEAR, FAR = 2.0, 120.0  # metres that are drawn


@dataclass
class Camera:
    """Pinhole camera over a flat street; X to the right, Y up, Z ahead, in metres."""

    focal: float
    centre: tuple[float, float]
    height: float
    bend: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in metres to pixels (..., 2); the street bends sideways with Z."""
        x, y, z = np.moveaxis(points, -1, 0)
        column = self.centre[0] + self.focal * (x / z + self.bend * z)
        return np.stack([column, self.centre[1] + self.focal * (self.height - y) / z], -1)

    def depth(self, row: float) -> float:
        """Distance of the ground at an image row below the horizon."""
        return self.focal * self.height / max(row - self.centre[1], 1e-3)


@dataclass
class Light:
    """Time of day and weather."""

    gain: Colour  # colour of the light, per channel
    side: float  # -1..1: where it comes from, positive = right
    shadow: float  # depth of shadows, 0..1
    top: Colour  # sky overhead
    horizon: Colour  # sky at the horizon
    clouds: float  # 0..1


@dataclass
class Layout:
    """Cross section of the street in metres, the camera at X = 0."""

    road: tuple[float, float]
    edge: tuple[float, float]  # outer borders of the sidewalks
    crossing: tuple[float, float]  # Z range of a cross street; empty where both are equal


class Canvas:
    """Image (H, W, 3) uint8 and label (H, W) uint8 that are painted together, far things first."""

    def __init__(self, height: int, width: int, camera: Camera, light: Light) -> None:
        self.image = np.zeros((height, width, 3), np.uint8)
        self.label = np.full((height, width), SKY, np.uint8)
        self.camera = camera
        self.light = light
        self.painted_ood = 0  # pixels of OOD objects, hidden later or not

    def polygon(self, points: np.ndarray, colour: Colour, label: int | None = None) -> None:
        """Fill a polygon (n, 2) in pixels or (n, 3) in metres; without ``label`` only the image."""
        self.polygons(np.asarray(points)[None], colour, label)

    def polygons(self, points: np.ndarray, colour: Colour, label: int | None = None) -> None:
        """Fill many polygons (m, n, 2 or 3) that do not overlap."""
        if points.shape[-1] == 3:
            points = self.camera.project(points)
        fixed = fixed_point(points)
        fill(self.image, fixed, colour)
        if label is not None:
            fill(self.label, fixed, label)

    def paste(self, pen: Pen, x: float, foot: float, label: int) -> None:
        """Put an object on the canvas: its middle at column ``x``, its ground at row ``foot``."""
        h, w = pen.mask.shape
        outer, inner = overlap(self.label.shape, (h, w), round(foot) - h, round(x - w / 2))
        inside = pen.mask[inner] > 0
        self.image[outer][inside] = pen.image[inner][inside]
        self.label[outer][inside] = label
        if label == OOD:
            self.painted_ood += np.count_nonzero(inside)

    def shadow(self, outline: np.ndarray, strength: float = 1.0) -> None:
        """Darken the ground within a polygon (n, 2) in pixels, with a soft rim."""
        height, width = self.label.shape
        margin = max(2, round(0.06 * float(np.ptp(outline[:, 0]))))
        low = np.maximum(np.floor(outline.min(0)) - margin, 0).astype(int)
        high = np.minimum(np.ceil(outline.max(0)) + margin, (width, height)).astype(int)
        if (low >= high).any():
            return
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        fill(mask, [fixed_point(outline - low)], 255)
        mask = cv2.blur(mask, (margin, margin))
        depth = (0.3 + 0.5 * self.light.shadow) * strength / 255
        area = self.image[low[1] : high[1], low[0] : high[0]]
        area[:] = area * (1 - np.float32(depth) * mask[..., None])


def random_camera(rng: Generator, height: int, width: int) -> Camera:
    """Vanishing point, field of view (50 to 85 degrees), height and bend of the street vary."""
    focal = width / (2 * np.tan(np.radians(rng.uniform(50, 85)) / 2))
    centre = (width * rng.uniform(0.36, 0.64), height * rng.uniform(0.34, 0.46))
    return Camera(focal, centre, rng.uniform(1.3, 2.0), rng.uniform(-0.002, 0.002))


def random_light(rng: Generator) -> Light:
    """Clear day, overcast, or dusk."""
    mood, side = rng.random(), rng.uniform(-1, 1)
    tint = 1 + rng.uniform(-0.05, 0.05, 3)
    if mood < 0.65:
        hue = rng.uniform(0.54, 0.62)
        top, horizon = hsv(hue, rng.uniform(0.35, 0.7), rng.uniform(0.6, 0.9)), hsv(hue, 0.12, 0.95)
        return Light(rng.uniform(0.9, 1.1) * tint, side, 0.8, top, horizon, rng.uniform(0, 0.7))
    if mood < 0.95:
        top = hsv(0.6, rng.uniform(0, 0.15), rng.uniform(0.55, 0.85))
        return Light(rng.uniform(0.8, 1.0) * tint, side * 0.3, 0.2, top, top * 1.1, 0.3)
    top = hsv(rng.uniform(0.6, 0.75), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6))
    horizon = hsv(rng.uniform(0.02, 0.12), rng.uniform(0.3, 0.6), rng.uniform(0.75, 1.0))
    warm = np.array([1.05, 0.9, 0.8]) * rng.uniform(0.75, 0.95)
    return Light(warm * tint, side, 0.5, top, horizon, rng.uniform(0, 0.6))


def random_layout(rng: Generator) -> Layout:
    """Two to four lanes, the camera in one of them, sidewalks of 2 to 4.5 m."""
    lanes, lane = int(rng.integers(2, 5)), rng.uniform(2.9, 3.6)
    # Right-hand and left-hand traffic.
    ego = int(rng.integers(lanes))
    left = -lane * (ego + rng.uniform(0.4, 0.6))
    right = left + lane * lanes
    edge = (left - rng.uniform(2.0, 4.5), right + rng.uniform(2.0, 4.5))
    start = rng.uniform(14, 45)
    length = rng.uniform(8, 14) if rng.random() < 0.4 else 0.0
    return Layout((left, right), edge, (start, start + length))


def grain(rng: Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise (height, width) float32 of deviation about 1; grains of ``cell`` pixels."""
    grid = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)


def draw_sky(rng: Generator, canvas: Canvas) -> None:
    """Vertical gradient with clouds, then the far end of the street."""
    height, width = canvas.label.shape
    light, horizon = canvas.light, canvas.camera.centre[1]
    rows = int(horizon) + 2
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** 1.3
    sky = light.top * (1 - share) + light.horizon * share
    unit = max(2, height // 10)
    cover = grain(rng, rows, width, 2 * unit) + 0.5 * grain(rng, rows, width, unit)
    cover = light.clouds * np.clip(cover - 0.2, 0, 1)[..., None]
    white = np.minimum(light.horizon * 1.1 + 15, 255)
    canvas.image[:rows] = np.clip(sky * (1 - cover) + white * cover, 0, 255)
    x = -0.1 * width
    while x < width:
        step, tall = rng.uniform(0.04, 0.15) * width, rng.uniform(0.02, 0.13) * height
        green = rng.random() < 0.5
        colour = 0.6 * (foliage(rng) if green else known_colour(rng)) + 0.4 * light.horizon
        top, bottom = horizon - tall, horizon + 2
        corner = 0.3 * step if green else 0.0
        shape = [(x, bottom), (x, top + corner), (x + corner, top), (x + step - corner, top)]
        shape += [(x + step, top + corner), (x + step, bottom)]
        canvas.polygon(np.array(shape), colour, VEGETATION if green else BUILDING)
        x += step * rng.uniform(0.7, 1.0)


def _strip(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    """Band of ground between two X, as a polygon (n, 3) fine enough for a bent street."""
    z = np.geomspace(z0, z1, 2 + round(5 * np.log(z1 / z0)))
    x = np.repeat([x0, x1], len(z))
    return np.stack([x, np.zeros_like(x), np.concatenate([z, z[::-1]])], 1)


def draw_ground(rng: Generator, canvas: Canvas, layout: Layout) -> None:
    """Grass, sidewalks, road, kerbs and markings."""
    near = 0.5
    height, width = canvas.label.shape
    (left, right), edge = layout.road, layout.edge
    asphalt = hsv(rng.random(), rng.uniform(0, 0.08), rng.uniform(0.27, 0.45))
    paving = hsv(rng.uniform(0.02, 0.15), rng.uniform(0, 0.2), rng.uniform(0.55, 0.8))
    grass = box(-1, canvas.camera.centre[1], width, height)
    canvas.polygon(grass, foliage(rng), VEGETATION)
    canvas.polygon(_strip(*edge, near, FAR), paving, SIDEWALK)
    for z in np.arange(3, 30, rng.uniform(1.0, 2.0)):  # joints between the slabs
        canvas.polygon(_strip(*edge, z, z + 0.06), paving * 0.82)
    canvas.polygon(_strip(left - 0.2, right + 0.2, near, FAR), paving * 1.2, SIDEWALK)
    canvas.polygon(_strip(left, right, near, FAR), asphalt, ROAD)
    if layout.crossing[1] > layout.crossing[0]:
        canvas.polygon(_strip(-200, 200, *layout.crossing), asphalt, ROAD)
    for _ in range(int(rng.integers(0, 4))):  # mended asphalt
        x, z = rng.uniform(left, right), rng.uniform(4, 25)
        tone = asphalt * rng.uniform(0.8, 1.2)
        width, length = rng.uniform(0.3, 1.5), rng.uniform(1, 6)
        canvas.polygon(_strip(x, min(x + width, right), z, z + length), tone)
    _draw_markings(rng, canvas, layout)


def _draw_markings(rng: Generator, canvas: Canvas, layout: Layout) -> None:
    left, right = layout.road
    paint = hsv(0.14, 0.6 if rng.random() < 0.15 else 0.03, rng.uniform(0.65, 0.95))
    lanes = max(2, round((right - left) / 3.3))
    dash, gap, start = rng.uniform(1.5, 4), rng.uniform(2, 6), rng.uniform(0, 4)
    end = layout.crossing[0] if layout.crossing[1] > layout.crossing[0] else FAR
    for i in range(1, lanes):
        x = left + (right - left) * i / lanes
        if rng.random() < 0.25:
            canvas.polygon(_strip(x - 0.08, x + 0.08, 1, end), paint)
            continue
        for z in np.arange(1 + start, min(end, 60) - dash, dash + gap):
            canvas.polygon(_strip(x - 0.08, x + 0.08, z, z + dash), paint)
    if rng.random() < 0.5:
        for x in (left + 0.3, right - 0.3):
            canvas.polygon(_strip(x - 0.06, x + 0.06, 1, end), paint)
    if rng.random() < 0.3:  # zebra crossing
        z = max(4.0, end - 4.5) if end < FAR else rng.uniform(6, 25)
        for x in np.arange(left + 0.4, right - 0.6, 1.0):
            canvas.polygon(_strip(x, x + 0.5, z, z + 3), paint)


def draw_sides(rng: Generator, canvas: Canvas, layout: Layout) -> None:
    """Rows of buildings, hedges and gaps on both sides, far ones first; fences before them."""
    for side, edge in ((-1, layout.edge[0]), (1, layout.edge[1])):
        built = rng.uniform(0.45, 1.0)
        pieces, z = [], NEAR
        while z < FAR:
            length = rng.uniform(6, 16) * (1 + z / 60)
            pieces.append((z, z + length))
            z += length
        for z0, z1 in reversed(pieces):
            if z0 < layout.crossing[1] and z1 > layout.crossing[0] < layout.crossing[1]:
                continue
            what = rng.random()
            if what < built:
                _draw_building(rng, canvas, side, edge + side * rng.choice([0, 0, 1.5]), z0, z1)
            elif what < built + 0.7 * (1 - built):
                _draw_hedge(rng, canvas, edge + side * 0.3, z0, z1)
            if rng.random() < 0.35:
                _draw_fence(rng, canvas, edge, z0, z1)


def _wall(x: float, y0: float, y1: float, z0: float, z1: float) -> np.ndarray:
    """Upright rectangle along the street."""
    return np.array([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)])


def _draw_building(
    rng: Generator, canvas: Canvas, side: int, x: float, z0: float, z1: float
) -> None:
    floors, storey = int(rng.integers(2, 8)), rng.uniform(2.8, 3.6)
    top = floors * storey + rng.uniform(0.4, 1.5)
    plaster = hsv(rng.random(), rng.uniform(0.0, 0.15), rng.uniform(0.5, 0.9))
    if rng.random() < 0.25:  # brick and stone
        plaster = hsv(rng.uniform(0.0, 0.12), rng.uniform(0.25, 0.6), rng.uniform(0.45, 0.8))
    # The light falls on one of the two walls.
    lit = 1 - 0.25 * side * canvas.light.side
    end = [(x, 0, z0), (x, top, z0), (x + side * 15, top, z0), (x + side * 15, 0, z0)]
    canvas.polygon(np.array(end), plaster * (1.7 - lit) * 0.85, BUILDING)
    canvas.polygon(_wall(x, 0, top, z0, z1), plaster * lit, BUILDING)
    canvas.polygon(_wall(x, top - 0.5, top, z0, z1), plaster * lit * rng.uniform(0.5, 1.2))
    step, gap = rng.uniform(1.8, 3.5), rng.uniform(0.7, 1.2)
    tall = storey * rng.uniform(0.4, 0.6)
    columns = np.arange(z0 + 0.8, z1 - step * 0.6, step)
    shop = rng.random() < 0.35
    rows = np.arange(1 if shop else 0, floors) * storey + 1.0
    if len(columns) and len(rows):
        windows = [_wall(x, y, y + tall, z, z + step - gap) for y in rows for z in columns]
        kinds = rng.random(len(windows))
        glass = hsv(rng.uniform(0.5, 0.65), rng.uniform(0.05, 0.4), rng.uniform(0.1, 0.55))
        other = known_colour(rng) if rng.random() < 0.5 else hsv(0.13, 0.4, 0.95)
        for chosen, colour in ((kinds < 0.92, glass), (kinds >= 0.92, other)):
            if chosen.any():
                canvas.polygons(np.array(windows)[chosen], colour)
    if shop:
        pane = _wall(x, 0.4, 2.3, z0 + 0.5, z1 - 0.5)
        canvas.polygon(pane, hsv(0.58, 0.2, rng.uniform(0.1, 0.4)))
        for z in columns[::2]:
            canvas.polygon(_wall(x, 0.0, 2.2, z, z + 0.9), known_colour(rng) * lit)
        canvas.polygon(_wall(x, 2.3, 3.0, z0 + 0.3, z1 - 0.3), known_colour(rng) * lit)


def _draw_hedge(rng: Generator, canvas: Canvas, x: float, z0: float, z1: float) -> None:
    tall, leaf = rng.uniform(1.2, 7), foliage(rng)
    z = np.linspace(z0, z1, 14)
    for share, tone in ((1.0, 1.0), (0.6, 0.75)):
        y = tall * share * (1 + 0.15 * rng.standard_normal(len(z)))
        crest = np.stack([np.full_like(z, x), y, z], 1)
        foot = np.array([(x, 0, z1), (x, 0, z0)])
        canvas.polygon(np.concatenate([crest, foot]), leaf * tone, VEGETATION)


def _draw_fence(rng: Generator, canvas: Canvas, x: float, z0: float, z1: float) -> None:
    """Pale boards before a dark ground; all of it is fence."""
    tall, paint = rng.uniform(1.3, 2.2), hsv(0.08, rng.uniform(0, 0.4), rng.uniform(0.6, 0.95))
    canvas.polygon(_wall(x, 0, tall, z0, z1), paint * 0.35, FENCE)
    slats = [_wall(x, 0, tall, z, z + 0.3) for z in np.arange(z0, min(z1, 45) - 0.3, 0.6)]
    if slats:
        canvas.polygons(np.array(slats), paint)
    for y in (0.25 * tall, 0.85 * tall):
        canvas.polygon(_wall(x, y, y + 0.1, z0, z1), paint * 1.1)
