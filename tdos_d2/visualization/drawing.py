"""Pictures of labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..labels import OOD, VOID
from .captions import legend_strip, scale_strip, write_texts

VOID_COLOUR = (128, 128, 128)
# Unlike any of Cityscapes' or CamVid's class colours.
OOD_COLOUR = (0, 255, 255)
PREDICTED_COLOUR = (255, 128, 0)
# Okabe and Ito's colours, which people with all kinds of colour vision can tell apart.
_SAFE_COLOURS = np.array([
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66),
    (86, 180, 233), (60, 60, 60),
], np.uint8)  # fmt: skip
# Share of a picture from which on a region is worth its name.
_NAMED_SHARE = 0.01


@dataclass
class Panel:
    """One scene of a contact sheet.

    Attributes:
        title: text over the row.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8, 0..K-1 known, K OOD, 255 void.
        prediction: (H, W) uint8, 0..K-1.
        score: (H, W) float, larger = more anomalous.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    score: np.ndarray


def heat_map(
    score: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
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


def palette(metadata: Any, num_classes: int) -> np.ndarray:
    """(K, 3) RGB: the dataset's own colours, or some where it has not K of them.

    These are safe for the colour-blind for up to 8 classes, else hues of three brightnesses.
    """
    colours = metadata.get("stuff_colors", None)
    if colours is not None and len(colours) == num_classes:
        return np.array(colours, np.uint8)
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
    """An image under its labels: tinted with the class colours, OOD objects outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0..K-1 known, K OOD, 255 void.
        colours: (K, 3) RGB of the known classes.

    Returns:
        (H, W, 3) uint8 RGB. Void is greyed; the inside of an OOD object is the image's.
    """
    ood = label == len(colours)
    picture = np.where(ood[..., None], image, image // 2 + colourise(label, colours) // 2)
    contours, _ = cv2.findContours(ood.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    picture = np.ascontiguousarray(picture)
    cv2.drawContours(picture, contours, -1, OOD_COLOUR, max(1, min(label.shape) // 128))
    return picture


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

    The image is grey, so that all colour is the score's; the larger the score, the more it covers.

    Args:
        image: (H, W, 3) uint8 RGB.
        score: (H, W), larger = more anomalous.
        score_range: scores of the darkest and the brightest colour.
        label: name of the score, for the scale.
        threshold: marked on the scale.
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
    picture = (1 - cover) * grey + cover * heat_map(score, low, high)
    picture = np.ascontiguousarray(picture.astype(np.uint8))
    if valid is not None:
        picture = _hatch(picture, valid)
    if regions is not None:
        _outline(picture, regions > 0)
    tops = [_top(regions, i, box) for i, (box, _) in enumerate(tags, start=1)]
    texts = [(text, *top) for (_, text), top in zip(tags, tops, strict=True)]
    picture = write_texts(picture, texts, anchor="md")
    ramp = heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None], 0.0, 1.0)[0]
    mark = None if threshold is None else (threshold, f"OOD from {threshold:.3g}")
    strip = scale_strip(image.shape[1], ramp, score_range, label, mark)
    return np.concatenate([picture, strip])


def detection_picture(image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What was found and what was not: predicted OOD tinted, labelled OOD outlined, with a legend.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0 known, 1 OOD, 255 void: hatched in grey.
        predicted: (H, W) bool.

    Returns:
        (H + h, W, 3) uint8 RGB, the legend below the image.
    """
    tinted = (image * 0.35 + np.array(PREDICTED_COLOUR) * 0.65).astype(np.uint8)
    picture = np.where(predicted[..., None], tinted, image)
    picture = np.ascontiguousarray(_hatch(picture, label != VOID))
    _outline(picture, label == OOD)
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
    """An image under its labels, with a legend; names in large regions spare comparing colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W), 0..K-1 known, K OOD.
        class_names: names of the K known classes.
        colours: (K, 3) RGB of the known classes.
        valid: (H, W) bool, False where labels do not count: hatched in grey.

    Returns:
        (H + h, W, 3) uint8 RGB, the legend below the image. OOD objects are outlined.
    """
    ood = label == len(colours)
    picture = np.where(ood[..., None], image, image // 2 + colourise(label, colours) // 2)
    seams = np.zeros(label.shape, bool)
    seams[:, 1:] |= label[:, 1:] != label[:, :-1]
    seams[1:] |= label[1:] != label[:-1]
    picture[seams] //= 2
    if valid is not None:
        picture = _hatch(picture, valid)
    picture = np.ascontiguousarray(picture)
    _outline(picture, ood)
    picture = write_texts(picture, _region_names(label, class_names, valid), anchor="mm")
    entries = [*class_names, "OOD"]
    strip = legend_strip(image.shape[1], entries, np.concatenate([colours, [OOD_COLOUR]]))
    return np.concatenate([picture, strip])


def _top(regions: np.ndarray, number: int, box: Sequence[int]) -> tuple[float, float]:
    """x, y of the middle of an object's uppermost row."""
    x0, y0, x1, _ = box
    columns = np.flatnonzero(regions[y0, x0:x1] == number)
    return float(x0 + columns.mean()), float(y0)


def _outline(picture: np.ndarray, mask: np.ndarray) -> None:
    """Outline regions in place: bright on a dark rim, so that it shows on any ground."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(min(mask.shape) / 360))
    cv2.drawContours(picture, contours, -1, (0, 0, 0), 3 * line)
    cv2.drawContours(picture, contours, -1, OOD_COLOUR, line)


def _hatch(picture: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The picture, grey with stripes where it is not valid."""
    period = max(8, min(valid.shape) // 40)
    y, x = np.indices(valid.shape, sparse=True)
    stripes = np.where((x + y) % period < period // 3, 90, 130).astype(np.uint8)
    return np.where(valid[..., None], picture, stripes[..., None])


def _region_names(
    label: np.ndarray, names: Sequence[str], valid: np.ndarray | None
) -> list[tuple[str, float, float]]:
    """Name, x and y of the largest region of each class, if it is large: where it is thickest."""
    step = max(1, label.shape[1] // 480)
    small = label[::step, ::step]
    inside = np.ones(small.shape, bool) if valid is None else valid[::step, ::step]
    found = []
    for i, name in enumerate(names):
        mask = ((small == i) & inside).astype(np.uint8)
        if mask.sum() < _NAMED_SHARE * mask.size:
            continue
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        if stats[largest, cv2.CC_STAT_AREA] < _NAMED_SHARE * mask.size:
            continue
        # A frame of zeros: what lies beyond the border is not part of the region.
        part = np.pad((parts == largest).astype(np.uint8), 1)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        found.append((name, float(x * step), float(y * step)))
    return found


def sample_sheet(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray]],
    path: str | Path,
    *,
    class_names: Sequence[str],
    colours: np.ndarray,
) -> None:
    """Write a PNG with training samples, two in a row, each as image and :func:`overlay`.

    Args:
        samples: title, image (H, W, 3) uint8 RGB and label (H, W), 0..K-1 known, K OOD, 255 void.
        path: the file to write.
        class_names: names of the K known classes.
        colours: (K, 3) RGB of the known classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = (len(samples) + 1) // 2
    height, width = np.max([label.shape for *_, label in samples], axis=0)
    row = 3.5 * height / width + 0.22
    figure = Figure(figsize=(14.4, row * rows + 1.0), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for (title, image, label), (left, right) in zip(samples, axes.reshape(-1, 2), strict=False):
        left.imshow(image, interpolation="nearest")
        left.set_title(title, fontsize=9, pad=2)
        right.imshow(overlay(image, label, colours), interpolation="nearest")
    _legend(figure, class_names, colours)
    FigureCanvasAgg(figure).print_png(str(path))


def contact_sheet(
    panels: Sequence[Panel],
    path: str | Path,
    *,
    class_names: Sequence[str],
    colours: np.ndarray,
    score_label: str,
    score_range: tuple[float, float],
) -> None:
    """Write a PNG with image, truth, prediction and score of several scenes, scale and legend.

    Args:
        panels: the scenes, one row each.
        path: the file to write.
        class_names: names of the K known classes.
        colours: (K, 3) RGB of the known classes.
        score_label: what the scale says.
        score_range: scores of the darkest and the brightest colour, the same in all rows.
    """
    # The object API: no global state, no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    with_ood = np.concatenate([colours, [OOD_COLOUR]]).astype(np.uint8)
    height, width = panels[0].image.shape[:2]
    row = 3.4 * height / width + 0.22
    figure = Figure(figsize=(14.4, row * len(panels) + 1.0), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), 4, squeeze=False)
    for panel, row_axes in zip(panels, axes, strict=True):
        pictures = {
            panel.title: panel.image,
            "truth": colourise(panel.truth, with_ood),
            "prediction (known classes)": colourise(panel.prediction, colours),
            "OOD score": heat_map(panel.score, *score_range),
        }
        for axis, (title, picture) in zip(row_axes, pictures.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9, pad=2)
            axis.set_axis_off()
    scale = ScalarMappable(Normalize(*score_range), cmap="inferno")
    figure.colorbar(scale, ax=axes, label=score_label, fraction=0.015, pad=0.01)
    _legend(figure, class_names, colours)
    FigureCanvasAgg(figure).print_png(str(path))


def shrink(picture: np.ndarray, width: int) -> np.ndarray:
    """An (H, W, 3) uint8 picture at most ``width`` pixels wide, its shape kept."""
    height, current = picture.shape[:2]
    if current <= width:
        return picture
    size = (width, max(1, round(height * width / current)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def frame_pictures(
    image: np.ndarray, label: np.ndarray, output: Mapping[str, np.ndarray], metadata: Any
) -> list[np.ndarray]:
    """Image, truth, prediction and score of one evaluated frame, each (H, W, 3) RGB uint8.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 as :func:`tdos_d2.data.read_label` gives it for this dataset.
        output: ``sem_seg`` (K, H, W) and, where the model has one, ``ood_score`` (H, W).
        metadata: of the dataset.
    """
    sem_seg = output["sem_seg"]
    score = output.get("ood_score", -sem_seg.max(axis=0))
    colours = palette(metadata, len(sem_seg))
    is_ood = metadata.evaluator_type == "ood"
    truth_colours = np.array([(0, 0, 0), OOD_COLOUR], np.uint8) if is_ood else colours
    return [
        image,
        colourise(label, truth_colours),
        colourise(sem_seg.argmax(axis=0), colours),
        heat_map(score),
    ]


def _legend(figure: Any, class_names: Sequence[str], colours: np.ndarray) -> None:
    """Names and colours below the axes of a matplotlib figure."""
    from matplotlib.patches import Patch

    entries = {**dict(zip(class_names, colours, strict=True)), "OOD": np.array(OOD_COLOUR)}
    handles = [Patch(color=colour / 255, label=name) for name, colour in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=11, fontsize=9, frameon=False)
