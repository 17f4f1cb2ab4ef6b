"""Tables of results as text, JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

FORMATS = ("table", "json", "csv", "markdown", "latex")
_TABULATE = {"table": "simple", "markdown": "github", "latex": "latex_booktabs"}


def format_rows(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Format rows as a table.

    Args:
        rows: values by column; the table has the columns of all rows, in order of appearance.
        form: one of ``FORMATS``. JSON and CSV have all digits, the others two decimals; NaN is null
            in JSON, "nan" in CSV, "-" in the others. LaTeX needs the package booktabs.
    """
    columns = column_names(rows)
    if form == "json":
        return to_json(rows)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    cells = [[cell_text(row.get(column, "")) for column in columns] for row in rows]
    texts = {column for row in rows for column, value in row.items() if isinstance(value, str)}
    align = ["left" if column in texts else "right" for column in columns]
    return tabulate(cells, columns, _TABULATE[form], disable_numparse=True, colalign=align)


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all ``rows``, in order of appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def cell_text(value: Any) -> str:
    """A value in a table for readers: floats with two decimals, NaN as "-"."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}"
    return str(value)


def results_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[dict]]:
    """Rows grouped by their metrics: one table for OOD datasets, one for segmentation.

    Args:
        results: ``{dataset: {task: {metric: value}}}``. Metrics with "-" in their name, which
            are Detectron2's per-class metrics, are left out.
    """
    groups: dict[tuple[str, ...], list[dict]] = {}
    for name, tasks in results.items():
        for task, metrics in tasks.items():
            shown = {metric: value for metric, value in metrics.items() if "-" not in metric}
            row = {"dataset": name, "task": task, **shown}
            groups.setdefault(tuple(shown), []).append(row)
    return list(groups.values())


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON that every parser reads: NaN and infinity become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
