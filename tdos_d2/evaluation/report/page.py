"""A report on an evaluation: one HTML file that holds all it shows, and its figures as PNG."""

from __future__ import annotations

import base64
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...errors import UserError
from ...visualization.drawing import OOD_COLOUR, PREDICTED_COLOUR, VOID_COLOUR
from ..component_metrics import PROTOCOLS
from ..tables import format_rows
from . import figures
from .sections import Section

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
_ENVIRONMENT.globals |= {
    "protocols": {sizes: name for name, sizes in PROTOCOLS.items()},
    "swatches": [
        (PREDICTED_COLOUR, "predicted OOD"),
        (OOD_COLOUR, "labelled OOD (outlined)"),
        (VOID_COLOUR, "void (hatched)"),
    ],
}
_TEMPLATE = _ENVIRONMENT.get_template("page.html")
_FIGURES = {
    "pr": (figures.pr_curve, "Precision and recall; the dot is the best F1"),
    "roc": (figures.roc_curve, "ROC; the dot is the first point with TPR >= 95 %"),
    "histogram": (figures.histogram, "Scores of known and of OOD pixels"),
}


class _Part(NamedTuple):
    """A section of the page: its link, figures as PNG with their titles, scale as PNG."""

    anchor: str
    section: Section
    figures: Sequence[tuple[bytes, str]]
    scale: bytes


def write_report(
    folder: str | Path,
    subject: str,
    tables: Sequence[Sequence[Mapping[str, Any]]],
    sections: Sequence[Section],
    unlabelled: Mapping[str, int] | None = None,
) -> Path:
    """Write ``index.html`` and ``<dataset>_{pr,roc,histogram}.png``.

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
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts = [_part(section, folder) for section in sections]
        made = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, {', '.join(_versions())}"
        page = _TEMPLATE.render(
            subject=subject,
            made=made,
            tables=[_table(rows) for rows in tables],
            parts=parts,
            unlabelled=unlabelled or {},
        )
        path = folder / "index.html"
        path.write_text(page, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write report {folder}: {error.strerror}") from error
    return path


def _table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    # tabulate has escaped it. Intervals stay in one line.
    return Markup(format_rows(rows, "html").replace(", ", ",&nbsp;"))


def _versions() -> list[str]:
    """Of what the results depend on, as far as it is in use."""
    modules = {name: sys.modules.get(name) for name in ("numpy", "torch", "detectron2")}
    used = [f"{name} {module.__version__}" for name, module in modules.items() if module]
    return [f"tdos_d2 {__version__}", f"Python {platform.python_version()}", *used]


def _part(section: Section, folder: Path) -> _Part:
    """Draw the figures of a dataset and write them into ``folder``."""
    anchor = re.sub(r"[^\w.-]", "_", section.dataset)  # as it can be in file names and links
    drawn = []
    for kind, (draw, title) in _FIGURES.items():
        if section.curves or kind == "histogram":
            drawn.append((draw(section), title))
            (folder / f"{anchor}_{kind}.png").write_bytes(drawn[-1][0])
    return _Part(anchor, section, drawn, figures.scale(section))
