"""Pictures of labels and scores, drawn from arrays without a model or a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..labels import OOD, VOID
from .captions import legend_strip, scale_strip, write_texts

VOID_COLOUR = (128, 128, 128)
# Different from all class colours of Cityscapes and CamVid.
OOD_COLOUR = (0, 255, 255)
PREDICTED_COLOUR = (255, 128, 0)
# Okabe and Ito's colours, safe for the colour-blind.
_SAFE_COLOURS = np.array([
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66),
    (86, 180, 233), (60, 60, 60),
], np.uint8)  # fmt: skip
# Smallest share of the picture at which a region is named.
_NAMED_SHARE = 0.01


def heat_map(score: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colours of a score, dark to bright in a perceptually uniform map (inferno).

    Args:
        score: (H, W) finite scores.
        low: score of the darkest colour; None = the 1st percentile.
        high: score of the brightest; None = the maximum.

    Returns:
        (H, W, 3) RGB uint8.
    """
    low = float(np.percentile(score, 1)) if low is None else low
    high = float(score.max()) if high is None else high
    scaled = np.clip((score - low) / max(high - low, 1e-12), 0, 1)
    colours = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)


def palette(num_classes: int, given: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """(K, 3) uint8 RGB of K classes: the colours ``given``, if there are K of them.

    Otherwise colours that are safe for the colour-blind (up to 8), or K hues of three brightnesses.
    """
    if given is not None and len(given) == num_classes:
        return np.array(given, np.uint8)
    if num_classes <= len(_SAFE_COLOURS):
        return _SAFE_COLOURS[:num_classes]
    hues = np.arange(num_classes) * 179 // num_classes
    values = np.resize([240, 170, 110], num_classes)
    hsv = np.stack([hues, np.full(num_classes, 170), values], axis=1)
    return cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]


def colourise(label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) class numbers -> (H, W, 3) RGB uint8; numbers without a colour are grey."""
    picture = np.full((*label.shape, 3), VOID_COLOUR, np.uint8)
    known = label < len(colours)
    picture[known] = colours[label[known]]
    return picture


def overlay(image: np.ndarray, label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """An image tinted with the colours of its labels; OOD objects are outlined, not tinted.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0..K-1 known, K OOD, 255 void (tinted grey).
        colours: (K, 3) RGB of the known classes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _outline(_tint(image, label, colours), label == len(colours))


def score_picture(
    image: np.ndarray,
    score: np.ndarray,
    score_range: tuple[float, float],
    label: str,
    *,
    threshold: float | None = None,
    regions: np.ndarray | None = None,
    tags: Sequence[tuple[Sequence[int], str]] = (),
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """A score over its image, with its scale, outlined objects and their tags.

    The image is grey, so that only the score has colours; large scores are more opaque.

    Args:
        image: (H, W, 3) uint8 RGB.
        score: (H, W), larger = more anomalous.
        score_range: scores of the darkest and the brightest colour.
        label: name of the score, for the scale.
        threshold: threshold to mark on the scale.
        regions: (H, W), i in object number i, from 1; None: no objects.
        tags: box (x0, y0, x1, y1) of the objects 1, 2 ... and the text to write over each.
        valid: (H, W) bool, False where the score does not count: hatched in grey.

    Returns:
        (H + h, W, 3) uint8 RGB, the scale below the image.
    """
    low, high = score_range
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    share = np.clip((score - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)[..., None]
    cover = 0.2 + 0.6 * share
    picture = ((1 - cover) * grey + cover * heat_map(score, low, high)).astype(np.uint8)
    picture = _hatch(picture, valid)
    if regions is not None:
        picture = _outline(picture, regions > 0)
    texts = [(text, *_top(regions, i, box)) for i, (box, text) in enumerate(tags, start=1)]
    picture = write_texts(picture, texts, anchor="md")
    return np.concatenate([picture, score_scale(image.shape[1], score_range, label, threshold)])


def score_scale(
    width: int, score_range: tuple[float, float], label: str, threshold: float | None = None
) -> np.ndarray:
    """The colour scale of :func:`heat_map`; see :func:`captions.scale_strip`."""
    ramp = heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None], 0.0, 1.0)[0]
    mark = None if threshold is None else (threshold, f"OOD from {threshold:.3g}")
    return scale_strip(width, ramp, score_range, label, mark)


def detection_picture(image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Predicted OOD pixels tinted, labelled OOD objects outlined, with a legend.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0 known, 1 OOD, 255 void: hatched in grey.
        predicted: (H, W) bool.

    Returns:
        (H + h, W, 3) uint8 RGB, the legend below the image.
    """
    tinted = (image * 0.35 + np.array(PREDICTED_COLOUR) * 0.65).astype(np.uint8)
    picture = np.where(predicted[..., None], tinted, image)
    picture = _outline(_hatch(picture, label != VOID), label == OOD)
    entries = ["predicted OOD", "labelled OOD", "void"]
    colours = np.array([PREDICTED_COLOUR, OOD_COLOUR, VOID_COLOUR], np.uint8)
    return np.concatenate([picture, legend_strip(image.shape[1], entries, colours)])


def segmentation_picture(
    image: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    colours: np.ndarray,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """An image tinted with its labels, with a legend and the names of large regions.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0..K-1 known, K OOD.
        class_names: names of the K known classes.
        colours: (K, 3) RGB of the known classes.
        valid: (H, W) bool, False where labels do not count: hatched in grey.

    Returns:
        (H + h, W, 3) uint8 RGB, the legend below the image. OOD objects are outlined.
    """
    picture = _tint(image, label, colours)
    left = np.diff(label, axis=1, prepend=label[:, :1])
    above = np.diff(label, axis=0, prepend=label[:1])
    picture[(left | above) != 0] //= 2  # borders between classes
    picture = _outline(_hatch(picture, valid), label == len(colours))
    picture = write_texts(picture, _region_names(label, class_names, valid), anchor="mm")
    entries = [*class_names, "OOD"]
    strip = legend_strip(image.shape[1], entries, np.concatenate([colours, [OOD_COLOUR]]))
    return np.concatenate([picture, strip])


def _top(regions: np.ndarray, number: int, box: Sequence[int]) -> tuple[float, float]:
    """x, y of the middle of an object's uppermost row."""
    x0, y0, x1, _ = box
    columns = np.flatnonzero(regions[y0, x0:x1] == number)
    return float(x0 + columns.mean()), float(y0)


def _tint(image: np.ndarray, label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Half image, half class colours; pixels of label K are those of the image."""
    ood = label == len(colours)
    return np.where(ood[..., None], image, image // 2 + colourise(label, colours) // 2)


def _outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with regions outlined, with a dark rim that is visible on any background."""
    picture = picture.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(min(mask.shape) / 360))
    cv2.drawContours(picture, contours, -1, (0, 0, 0), 3 * line)
    return cv2.drawContours(picture, contours, -1, OOD_COLOUR, line)


def _hatch(picture: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """The picture with grey stripes where it is not valid."""
    if valid is None:
        return picture
    period = max(8, min(valid.shape) // 40)
    y, x = np.indices(valid.shape, sparse=True)
    stripes = np.where((x + y) % period < period // 3, 90, 130).astype(np.uint8)
    return np.where(valid[..., None], picture, stripes[..., None])


def _region_names(
    label: np.ndarray, names: Sequence[str], valid: np.ndarray | None
) -> list[tuple[str, float, float]]:
    """Name and position (x, y) of the largest region of each class, if large enough, at its
    thickest part."""
    step = max(1, label.shape[1] // 480)
    small = label[::step, ::step]
    inside = np.ones(small.shape, bool) if valid is None else valid[::step, ::step]
    found = []
    for i, name in enumerate(names):
        mask = ((small == i) & inside).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
        areas = stats[:, cv2.CC_STAT_AREA]
        areas[0] = 0  # the background
        if areas.max() < _NAMED_SHARE * mask.size:
            continue
        # A border of zeros, as pixels outside the picture are not part of the region.
        part = np.pad((parts == areas.argmax()).astype(np.uint8), 1)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        found.append((name, float(x * step), float(y * step)))
    return found


def contact_sheet(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
    path: str | Path,
    *,
    class_names: Sequence[str],
    colours: np.ndarray,
    scale: tuple[str, float, float] | None = None,
) -> None:
    """Write a PNG with rows of titled pictures and a legend of the classes.

    Args:
        rows: title and picture (H, W, 3) uint8 RGB of each; the first row must be the longest.
        path: the file to write.
        class_names: names of the K known classes.
        colours: (K, 3) RGB of the known classes.
        scale: label, lowest and highest score for a scale of :func:`heat_map`; None: no scale.
    """
    # The object API, which needs neither global state nor a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sizes = [picture.shape[:2] for row in rows for _, picture in row]
    height, width = np.max(sizes, axis=0)
    columns = len(rows[0])
    inches = (14.0 / columns * height / width + 0.22) * len(rows) + 1.0
    figure = Figure(figsize=(14.4, inches), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, row_axes in zip(rows, axes, strict=True):
        for (title, picture), axis in zip(row, row_axes, strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9, pad=2)
    if scale is not None:
        label, low, high = scale
        mappable = ScalarMappable(Normalize(low, high), cmap="inferno")
        figure.colorbar(mappable, ax=axes, label=label, fraction=0.015, pad=0.01)
    entries = zip([*class_names, "OOD"], np.concatenate([colours, [OOD_COLOUR]]) / 255, strict=True)
    handles = [Patch(color=colour, label=name) for name, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=11, fontsize=9, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def shrink(picture: np.ndarray, width: int) -> np.ndarray:
    """An (H, W, 3) uint8 picture, shrunk to at most ``width`` pixels with the same aspect ratio."""
    height, current = picture.shape[:2]
    if current <= width:
        return picture
    size = (width, max(1, round(height * width / current)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
