"""A report on an evaluation: one HTML file that holds all it shows, and its figures as PNG."""

from __future__ import annotations

import base64
import io
import math
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ... import __version__
from ...errors import UserError
from ...visualization.captions import scale_strip
from ...visualization.drawing import OOD_COLOUR, PREDICTED_COLOUR, VOID_COLOUR, heat_map
from ..component_metrics import PROTOCOLS
from ..tables import format_rows
from .sections import Section, ShownFrame

_KNOWN, _OOD, _MARK = "#4477aa", "#ee7733", "#222222"
_LINES = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#777777")
_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 }
main { max-width: 1200px; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.7rem; margin: 0 }
h2 { margin: 2.5rem 0 .3rem; padding-top: 1rem; border-top: 1px solid #ccc }
h3 { margin: 1.8rem 0 .3rem }
p { max-width: 56rem; margin: .4rem 0 }
.note, figcaption { color: #555; font-size: .88rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
thead th { border-bottom: 2px solid #888 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: .8rem 0 }
dt { color: #555 }
dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1rem 0 }
figcaption { overflow-wrap: anywhere; margin-bottom: .2rem }
.row { display: grid; gap: 1rem }
.three { grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)) }
.two { grid-template-columns: 1fr 1fr; align-items: start }
img { width: 100%; height: auto; display: block }
nav a { margin-right: 1rem }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .4em 0 1em }
.swatch:first-child { margin-left: 0 }
"""
_ABOUT = (
    "Percent. Metrics of OOD sets are over all labelled pixels of the set, never a mean over "
    "frames: AP by the step rule, FPR95 at the first point with a recall of at least 95 %. sIoU, "
    "PPV and mF1 are over components, at the threshold of the best pixel F1 on the same frames."
)


def prepare_folder(folder: str | Path) -> None:
    """Make a folder for results, before the work whose results it is for.

    Raises:
        UserError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make folder {folder}: {error.strerror}") from error


def write_report(
    folder: str | Path,
    subject: str,
    tables: Sequence[Sequence[Mapping[str, Any]]],
    sections: Sequence[Section],
    unlabelled: Mapping[str, int] | None = None,
) -> Path:
    """Write ``index.html`` and ``<data set>_{pr,roc,histogram}.png``.

    The page needs no other file and no network.

    Args:
        folder: where to write; made if it is not there.
        subject: what was evaluated.
        tables: rows of each table of metrics.
        sections: one per OOD set.
        unlabelled: number of frames of sets without public labels.

    Returns:
        The page.

    Raises:
        UserError: nothing can be written there.
    """
    prepare_folder(folder)
    folder = Path(folder)
    try:
        parts = [_section(section, folder) for section in sections]
        path = folder / "index.html"
        path.write_text(_page(subject, tables, sections, parts, unlabelled or {}), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write report {folder}: {error.strerror}") from error
    return path


def _page(
    subject: str,
    tables: Sequence[Sequence[Mapping[str, Any]]],
    sections: Sequence[Section],
    parts: Sequence[str],
    unlabelled: Mapping[str, int],
) -> str:
    made = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, {', '.join(_versions())}"
    table = "".join(
        # Intervals stay in one line.
        f'<div class="wide">{format_rows(rows, "html").replace(", ", ",&nbsp;")}</div>'
        for rows in tables
    )
    links = "".join(
        f'<a href="#{_anchor(section)}">{escape(section.dataset)}</a>' for section in sections
    )
    missing = "".join(
        f"<p>{escape(name)}: {number:,} frames without public labels, so no metrics.</p>"
        for name, number in unlabelled.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Icons are asked for unless there is one.
        '<link rel="icon" href="data:,">\n'
        f"<title>OOD evaluation: {escape(subject)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>OOD evaluation</h1>\n<p>{escape(subject)}</p>\n"
        f'<p class="note">{escape(made)}</p>\n{table}\n<p class="note">{_ABOUT}</p>\n{missing}\n'
        f"<nav>{links if len(sections) > 1 else ''}</nav>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _versions() -> list[str]:
    """Of what the results depend on, as far as it is in use."""
    modules = {name: sys.modules.get(name) for name in ("numpy", "torch", "detectron2")}
    used = [f"{name} {module.__version__}" for name, module in modules.items() if module]
    return [f"tdos_d2 {__version__}", f"Python {platform.python_version()}", *used]


def _section(section: Section, folder: Path) -> str:
    figures = {"histogram": (_histogram(section), "Scores of known and of OOD pixels")}
    if section.curves:
        figures = {
            "pr": (_pr_curve(section), "Precision and recall; the dot is the best F1"),
            "roc": (_roc_curve(section), "ROC; the dot is the first point with TPR >= 95 %"),
            **figures,
        }
    shown = []
    for kind, (png, title) in figures.items():
        (folder / f"{_anchor(section)}_{kind}.png").write_bytes(png)
        text = f"{title}, {section.dataset}"
        shown.append(
            f"<figure>{_image(png, text)}<figcaption>{escape(title)}</figcaption></figure>"
        )
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _facts(section).items()
    )
    return (
        f'<section id="{_anchor(section)}">\n<h2>{escape(section.dataset)}</h2>\n<dl>{facts}</dl>\n'
        f'<div class="row three">{"".join(shown)}</div>\n'
        '<p class="note">A bar is the share of the pixels of its class; the outermost bars also '
        "hold what lies beyond. Bars below 0.001 % are not shown.</p>\n"
        f"{_frames(section)}</section>"
    )


def _facts(section: Section) -> dict[str, str]:
    counts, look = section.counts, section.look
    labelled = counts["known"] + counts["OOD"]
    every = labelled + counts["void"]
    protocol = {sizes: name for name, sizes in PROTOCOLS.items()}.get(
        section.sizes, "the set's own"
    )
    facts = {
        "frames": f"{section.frames:,}",
        "pixels": f"{labelled:,} labelled, {_percent(counts['OOD'], labelled)} of them OOD; "
        f"{_percent(counts['void'], every)} of all pixels are void",
        "score": look.score,
        "components": f"of at least {section.sizes[0]} predicted and {section.sizes[1]} true "
        f"pixels (protocol: {protocol})",
    }
    if not section.curves:
        lacking = " or ".join(name for name in ("known", "OOD") if not counts[name])
        return {**facts, "metrics": f"none: the labels have no {lacking} pixel"}
    rule = ">" if look.strict else ">="
    return {
        **facts,
        "threshold": f"score {rule} {look.threshold:.6g}, the best pixel F1 on these frames",
        "exactness": f"pixel metrics are exact to {section.pixels.bound:.4f} points",
    }


def _frames(section: Section) -> str:
    if not section.ranked:
        return '<p class="note">No frame has both OOD and known pixels: none is best or worst.</p>'
    text = f"By the AP of the frame's own curve, of {section.ranked:,} frames"
    if section.ranked < section.frames:
        text += f" with OOD and known pixels ({section.frames - section.ranked:,} have not both)"
    parts = [f'<p class="note">{text}.</p>', _legend(section)]
    for title, frames in (("Worst frames", section.worst), ("Best frames", section.best)):
        if frames:
            parts += [f"<h3>{title}</h3>", *map(_frame, frames)]
    return "\n".join(parts)


def _legend(section: Section) -> str:
    """What the colours of detections (left) and scores (right) are."""
    swatches = "".join(
        f'<span class="swatch" style="background: rgb{colour}"></span>{text} '
        for colour, text in (
            (PREDICTED_COLOUR, "predicted OOD"),
            (OOD_COLOUR, "labelled OOD (outlined)"),
            (VOID_COLOUR, "void (hatched)"),
        )
    )
    look = section.look
    mark = (look.threshold, f"OOD from {look.threshold:.3g}") if section.curves else None
    ramp = heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None], 0.0, 1.0)[0]
    strip = scale_strip(600, ramp, (look.low, look.high), look.score, mark)
    png = cv2.imencode(".png", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))[1].tobytes()
    scale = _image(png, f"scale of {look.score}, the same in all frames")
    return f'<div class="row two"><p>{swatches}</p>{scale}</div>'


def _frame(frame: ShownFrame) -> str:
    row = frame.metrics
    share = _percent(row["OOD"], row["OOD"] + row["known"])
    numbers = ", ".join(
        f"{text} {'-' if math.isnan(row[key]) else f'{row[key]:.2f}'}"
        for key, text in (
            ("AP", "AP"),
            ("FPR95", "FPR95"),
            ("F1_at_threshold", "F1 at the threshold"),
            ("sIoU", "sIoU"),
        )
    )
    components = f"{row['true_components']} true and {row['predicted_components']} predicted"
    caption = f"<b>{escape(frame.name)}</b>: {numbers}; {components} components, {share} OOD"
    pictures = _image(frame.detections, f"detections in {frame.name}", "jpeg") + _image(
        frame.score, f"score of {frame.name}", "jpeg"
    )
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="row two">{pictures}</div></figure>'
    )


def _image(data: bytes, text: str, kind: str = "png") -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(text)}">'


def _anchor(section: Section) -> str:
    """The name of a data set as it can be in file names and links."""
    return re.sub(r"[^\w.-]", "_", section.dataset)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "-"


def _pr_curve(section: Section) -> bytes:
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


def _roc_curve(section: Section) -> bytes:
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


def _histogram(section: Section) -> bytes:
    figure, axes = _axes(section.look.score, "share of the class's pixels", unit=False)
    edges = section.histogram.edges
    rows = zip(("known", "OOD"), (_KNOWN, _OOD), section.histogram.counts, strict=True)
    for name, colour, counts in rows:
        if counts.any():
            share = counts / counts.sum()
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(share, edges, color=colour, label=name)
    if section.curves:
        axes.axvline(section.look.threshold, color=_MARK, ls="--", lw=1, label="threshold")
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
