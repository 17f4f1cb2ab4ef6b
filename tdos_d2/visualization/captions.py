"""Text in pictures: scale, legend, names of regions. Font size follows the picture's width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)


def font_size(width: int) -> int:
    """Font size in pixels for a picture of this width."""
    return max(11, round(width / 75))


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic letters."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def scale_strip(
    width: int,
    colours: np.ndarray,
    score_range: tuple[float, float],
    label: str,
    mark: tuple[float, str] | None = None,
) -> np.ndarray:
    """The colour scale of a score.

    Args:
        width: width of the picture in pixels.
        colours: (n, 3) uint8 RGB from the lowest to the highest score.
        score_range: lowest and highest score.
        label: name of the score.
        mark: a score to mark, and the text beside the mark.

    Returns:
        (h, width, 3) uint8 RGB.
    """
    size = font_size(width)
    letters, pad, bar = font(size), size // 2, round(1.2 * size)
    strip = Image.new("RGB", (width, round(4.6 * size) + pad), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    low, high = score_range
    high = max(high, low + 1e-12)  # also for a constant score
    left, right, top = 2 * size, width - 2 * size, round(1.7 * size)
    ramp = colours[np.arange(right - left) * len(colours) // (right - left)]
    strip.paste(Image.fromarray(np.repeat(ramp[None], bar, axis=0)), (left, top))
    for value in np.linspace(low, high, 5):
        x = left + (value - low) / (high - low) * (right - left)
        draw.line([(x, top + bar), (x, top + bar + size // 4)], _INK, max(1, size // 12))
        draw.text((x, top + bar + size // 3), f"{value:.3g}", _INK, letters, anchor="ma")
    draw.text((left, size // 4), label, _INK, letters)
    if mark is not None:
        value, text = mark
        x = left + float(np.clip((value - low) / (high - low), 0, 1)) * (right - left)
        line = max(2, size // 6)
        draw.line([(x, top - size // 3), (x, top + bar)], _BACKGROUND, line + 2)
        draw.line([(x, top - size // 3), (x, top + bar)], _INK, line)
        room = draw.textlength(text, letters) / 2
        first = left + draw.textlength(label, letters) + size + room
        x = min(max(x, first), width - room - pad)
        draw.text((x, size // 4), text, _INK, letters, anchor="ma")
    return np.array(strip)


def legend_strip(width: int, names: Sequence[str], colours: np.ndarray) -> np.ndarray:
    """Names beside their colours, in as many rows as needed.

    Args:
        width: width of the picture in pixels.
        names: n names.
        colours: (n, 3) RGB.

    Returns:
        (h, width, 3) uint8 RGB.
    """
    size = font_size(width)
    letters, row = font(size), round(1.7 * size)
    strip = Image.new("RGB", (width, row * (len(names) + 1)), _BACKGROUND)
    draw, x, y = ImageDraw.Draw(strip), size, size // 2
    for name, colour in zip(names, colours, strict=True):
        needed = round(1.4 * size + letters.getlength(name) + 1.4 * size)
        if x > size and x + needed > width:
            x, y = size, y + row
        draw.rectangle([x, y, x + size, y + size], tuple(int(c) for c in colour), _INK)
        draw.text((x + 1.4 * size, y + size / 2), name, _INK, letters, anchor="lm")
        x += needed
    return np.array(strip)[: y + row]


def write_texts(
    picture: np.ndarray, texts: Iterable[tuple[str, float, float]], anchor: str
) -> np.ndarray:
    """White text with a dark rim, shifted so that all of it is inside the picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        texts: text and the x, y of its anchor.
        anchor: of all texts, as in Pillow.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = picture.shape[:2]
    size = font_size(width)
    letters, rim = font(size), max(1, size // 8)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for text, x, y in texts:
        box = draw.textbbox((x, y), text, letters, anchor=anchor, stroke_width=rim)
        x += max(0, -box[0]) - max(0, box[2] - width)
        y += max(0, -box[1]) - max(0, box[3] - height)
        draw.text((x, y), text, "white", letters, anchor, stroke_width=rim, stroke_fill=_INK)
    return np.array(canvas)
