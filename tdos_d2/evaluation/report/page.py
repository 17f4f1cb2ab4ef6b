"""Report of an evaluation: a self-contained HTML file, and its figures as PNG files."""

from __future__ import annotations

import base64
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import UserError
from ...files import atomic_write
from ...templates import page_environment
from ...visualization import drawing
from ..component_metrics import PROTOCOLS
from ..tables import cell_text, column_names
from . import figures
from .sections import Section

_ENVIRONMENT = page_environment(Path(__file__).parent)
_ENVIRONMENT.filters |= {
    "base64": lambda data: base64.b64encode(data).decode("ascii"),
    "cell": cell_text,
    "columns": column_names,
}
_TEMPLATE = _ENVIRONMENT.get_template("page.html")
_FIGURES = {"pr": figures.pr_curve, "roc": figures.roc_curve, "histogram": figures.histogram}


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
        folder: folder to write to; created if missing.
        subject: what was evaluated.
        tables: rows of each table of metrics, see ``format_rows``.
        sections: one per OOD dataset.
        unlabelled: number of frames of the datasets without public labels.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = _TEMPLATE.render(
            subject=subject,
            made=", ".join([f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}", *_versions()]),
            tables=tables,
            parts=[_draw(section, folder) for section in sections],
            unlabelled=unlabelled or {},
            protocols={sizes: name for name, sizes in PROTOCOLS.items()},
            drawing=drawing,
        )
        path = folder / "index.html"
        with atomic_write(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise UserError(f"cannot write report {folder}: {error.strerror}") from error
    return path


def _versions() -> list[str]:
    """Versions of the packages in use that affect the results."""
    modules = {name: sys.modules.get(name) for name in ("numpy", "torch", "detectron2")}
    used = [f"{name} {module.__version__}" for name, module in modules.items() if module]
    return [f"tdos_d2 {__version__}", f"Python {platform.python_version()}", *used]


def _draw(section: Section, folder: Path) -> dict[str, Any]:
    """Write the figures of a dataset to ``folder``; returns its variables for the page."""
    anchor = re.sub(r"[^\w.-]", "_", section.dataset)  # for file names and links
    # Without OOD or without known pixels there are no curves.
    kinds = _FIGURES if section.curves else ("histogram",)
    drawn = {kind: _FIGURES[kind](section) for kind in kinds}
    for kind, png in drawn.items():
        with atomic_write(folder / f"{anchor}_{kind}.png") as file:
            file.write(png)
    return {
        "anchor": anchor,
        "section": section,
        "figures": drawn,
        "scale": figures.scale(section),
    }
