"""Figures of a report, as PNG files."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np

from ...visualization.drawing import score_scale
from .sections import Section

_LINES = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#777777")
_CHANCE = {"color": "#999999", "ls": ":", "lw": 1, "label": "chance"}
_UNIT_SQUARE = {"xlim": (-0.01, 1.01), "ylim": (-0.01, 1.02)}


def scale(section: Section) -> bytes:
    """The colour scale of the score, the same for all frames."""
    display = section.display
    threshold = display.threshold if section.curves else None
    strip = score_scale(600, (display.low, display.high), display.score, threshold)
    return cv2.imencode(".png", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))[1].tobytes()


def pr_curve(section: Section) -> bytes:
    """The precision-recall curve of each score; the dot marks the best F1."""
    figure, axes = _axes(xlabel="recall", ylabel="precision", **_UNIT_SQUARE)
    for name, (curve, metrics) in section.curves.items():
        # Step rule: between two points, precision is that of the point with higher recall.
        recall = np.concatenate([[0], curve.recall])
        precision = np.concatenate([curve.precision[:1], curve.precision])
        dot = {"marker": "o", "ms": 5, "markevery": [curve.best + 1]}
        label = f"{name}: AP {metrics.ap:.2f}"
        axes.plot(recall, precision, drawstyle="steps-pre", label=label, **dot)
    known, ood = section.counts["known"], section.counts["OOD"]
    axes.axhline(ood / (known + ood), **_CHANCE)
    return _png(figure, axes)


def roc_curve(section: Section) -> bytes:
    """The ROC curve of each score; the dot marks the first point with TPR >= 95 %."""
    labels = {"xlabel": "false positive rate", "ylabel": "true positive rate"}
    figure, axes = _axes(**labels, **_UNIT_SQUARE)
    for name, (curve, metrics) in section.curves.items():
        fpr, tpr = (np.concatenate([[0], x]) for x in (curve.fpr, curve.recall))
        dot = {"marker": "o", "ms": 5, "markevery": [curve.at_95 + 1]}
        label = f"{name}: AUROC {metrics.auroc:.2f}, FPR95 {metrics.fpr95:.2f}"
        axes.plot(fpr, tpr, label=label, **dot)
    axes.plot([0, 1], [0, 1], **_CHANCE)
    return _png(figure, axes, "lower right")


def histogram(section: Section) -> bytes:
    """The scores of known and of OOD pixels."""
    figure, axes = _axes(xlabel=section.display.score, ylabel="share of the class's pixels")
    rows = zip(("known", "OOD"), ("#4477aa", "#ee7733"), section.histogram.counts, strict=True)
    for name, colour, counts in rows:
        if counts.any():
            share, edges = counts / counts.sum(), section.histogram.edges
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(share, edges, color=colour, label=name)
    if section.curves:
        axes.axvline(section.display.threshold, color="#222222", ls="--", lw=1, label="threshold")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-5)
    return _png(figure, axes)


def _axes(**properties: Any) -> tuple[Any, Any]:
    """A figure and its axes, with properties for matplotlib's ``Axes.set``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.set(axisbelow=True, **properties)
    axes.set_prop_cycle(color=_LINES)
    axes.grid(color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any, axes: Any, legend: str = "best") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if axes.get_legend_handles_labels()[0]:  # none if all pixels are void
        axes.legend(fontsize=8, loc=legend)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
