"""Pictures of labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

VOID_COLOUR = (128, 128, 128)
# Unlike any of Cityscapes' or CamVid's class colours.
OOD_COLOUR = (0, 255, 255)


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
    """(K, 3) RGB: the data set's own colours, or evenly spread hues where it has not K of them."""
    colours = metadata.get("stuff_colors", None)
    if colours is not None and len(colours) == num_classes:
        return np.array(colours, np.uint8)
    hues = np.arange(num_classes) * 179 // max(num_classes, 1)
    hsv = np.stack([hues, np.full(num_classes, 160), np.full(num_classes, 220)], axis=1)
    return cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]


def colourise(label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W) class numbers -> (H, W, 3) RGB uint8; numbers without a colour are grey."""
    picture = np.full((*label.shape, 3), VOID_COLOUR, np.uint8)
    known = label < len(colours)
    picture[known] = colours[label[known]]
    return picture


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
    from matplotlib.patches import Patch

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
    entries = {**dict(zip(class_names, colours, strict=True)), "OOD": np.array(OOD_COLOUR)}
    handles = [Patch(color=colour / 255, label=name) for name, colour in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=11, fontsize=9, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def frame_pictures(
    image: np.ndarray, label: np.ndarray, output: Mapping[str, np.ndarray], metadata: Any
) -> list[np.ndarray]:
    """Image, truth, prediction and score of one evaluated frame, each (H, W, 3) RGB uint8.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 as :func:`tdos_d2.data.read_label` gives it for this data set.
        output: ``sem_seg`` (K, H, W) and, where the model has one, ``ood_score`` (H, W).
        metadata: of the data set.
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
