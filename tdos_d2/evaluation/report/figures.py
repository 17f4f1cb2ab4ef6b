"""Figures of a report, as PNG files."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np

from ...visualization.captions import scale_strip
from ...visualization.drawing import heat_map
from .sections import Section

_KNOWN, _OOD, _MARK = "#4477aa", "#ee7733", "#222222"
_LINES = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#777777")


def scale(section: Section) -> bytes:
    """PNG of the scores that colours stand for, the same in all frames."""
    display = section.display
    mark = (display.threshold, f"OOD from {display.threshold:.3g}") if section.curves else None
    ramp = heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None], 0.0, 1.0)[0]
    strip = scale_strip(600, ramp, (display.low, display.high), display.score, mark)
    return cv2.imencode(".png", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))[1].tobytes()


def pr_curve(section: Section) -> bytes:
    """PNG of precision over recall, a line for each score; the dot is the best F1."""
    figure, axes = _axes("recall", "precision")
    lines = zip(section.curves.items(), _LINES * len(section.curves), strict=False)
    for (name, (curve, metrics)), colour in lines:
        # Between two points precision is that of the point with more recall: the step rule.
        recall = np.concatenate([[0], curve.recall])
        precision = np.concatenate([curve.precision[:1], curve.precision])
        label = f"{name}: AP {metrics.ap:.2f}"
        axes.plot(recall, precision, color=colour, drawstyle="steps-pre", label=label)
        axes.plot(curve.recall[curve.best], curve.precision[curve.best], "o", color=colour, ms=5)
    known, ood = section.counts["known"], section.counts["OOD"]
    axes.axhline(ood / (known + ood), color="#999999", ls=":", lw=1, label="chance")
    axes.legend(fontsize=8, loc="best")
    return _png(figure)


def roc_curve(section: Section) -> bytes:
    """PNG of the ROC, a line for each score; the dot is the first point with TPR >= 95 %."""
    figure, axes = _axes("false positive rate", "true positive rate")
    lines = zip(section.curves.items(), _LINES * len(section.curves), strict=False)
    for (name, (curve, metrics)), colour in lines:
        label = f"{name}: AUROC {metrics.auroc:.2f}, FPR95 {metrics.fpr95:.2f}"
        fpr, tpr = (np.concatenate([[0], x]) for x in (curve.fpr, curve.recall))
        axes.plot(fpr, tpr, color=colour, label=label)
        axes.plot(curve.fpr[curve.at_95], curve.recall[curve.at_95], "o", color=colour, ms=5)
    axes.plot([0, 1], [0, 1], color="#999999", ls=":", lw=1, label="chance")
    axes.legend(fontsize=8, loc="lower right")
    return _png(figure)


def histogram(section: Section) -> bytes:
    """PNG of the scores of known and of OOD pixels."""
    figure, axes = _axes(section.display.score, "share of the class's pixels", unit=False)
    edges = section.histogram.edges
    rows = zip(("known", "OOD"), (_KNOWN, _OOD), section.histogram.counts, strict=True)
    for name, colour, counts in rows:
        if counts.any():
            share = counts / counts.sum()
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(share, edges, color=colour, label=name)
    if section.curves:
        axes.axvline(section.display.threshold, color=_MARK, ls="--", lw=1, label="threshold")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-5)
    axes.legend(fontsize=8, loc="best")
    return _png(figure)


def _axes(x: str, y: str, unit: bool = True) -> tuple[Any, Any]:
    """A figure and its axes, of the unit square if ``unit``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if unit:
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
    return figure, axes


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
