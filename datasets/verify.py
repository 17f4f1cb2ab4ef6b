#!/usr/bin/env python
"""Check datasets: read every file and compare the content with what the publishers state.

Prints, for each dataset, the number of frames found and expected, image sizes, label values with
their share of all pixels, the number of labels without anomaly, and all problems: missing,
unmatched or unreadable files, undeclared label values, unexpected image sizes or frame numbers.

Without names, all built-in datasets below the root are checked. The exit status is 1 if there is a
problem.

Examples:
    python datasets/verify.py
    python datasets/verify.py road_anomaly camvid_ood --root /data
    python datasets/verify.py my_road --register my_sets.yaml --json report.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdos_d2.data.verify.report import DatasetReport

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

_PROBLEMS_SHOWN = 10  # per dataset; the JSON file has all


def main() -> None:
    """Read the command line, check the datasets and print the result."""
    parser = options.Parser(description=__doc__)
    parser.add_argument("names", nargs="*", help="datasets (default: all built-in ones on disk)")
    parser.add_argument(
        "--root",
        type=options.path_text,
        help="folder of the datasets (default: $DETECTRON2_DATASETS)",
    )
    parser.add_argument(
        "--register", type=options.path_text, metavar="YAML", help="file with custom datasets"
    )
    parser.add_argument(
        "--json", type=options.path, metavar="FILE", help="write the reports as JSON"
    )
    parser.add_argument(
        "--jobs", type=options.whole(1), help="number of threads (default: CPU cores)"
    )
    args = parser.parse_args()
    if args.root is not None:
        os.environ["DETECTRON2_DATASETS"] = args.root  # Detectron2 reads it when it is imported
    exit_with_one_line(lambda: sys.exit(check_datasets(args)))


def check_datasets(args: argparse.Namespace) -> int:
    """Check and print. Returns the exit status."""
    from tabulate import tabulate

    from tdos_d2.data import MissingDatasetError, data_root, register_from_file
    from tdos_d2.data.verify.quick import check_registered
    from tdos_d2.data.verify.report import EXPECTED_CONTENT, verify_dataset
    from tdos_d2.errors import UserError
    from tdos_d2.files import atomic_write, check_output

    if args.json is not None:
        check_output(args.json, "--json")
    custom = register_from_file(args.register) if args.register else []
    for name in args.names:  # before the first is read, which takes minutes
        check_registered(name)
    reports, missing = [], []
    for name in args.names or [*EXPECTED_CONTENT, *custom]:
        try:
            reports.append(verify_dataset(name, args.jobs))
        except MissingDatasetError:
            if args.names or name in custom:
                raise
            missing.append(name)
    if not reports:
        raise UserError(f"no dataset below {data_root()}: --root names the folder that has them")
    rows = [_table_row(report) for report in reports]
    print(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True))
    for report in reports:
        for problem in report.problems[:_PROBLEMS_SHOWN]:
            print(f"{report.name}: {problem}")
        more = len(report.problems) - _PROBLEMS_SHOWN
        if more > 0:
            print(f"{report.name}: ... and {more} more (--json writes all)")
    if missing:
        print(f"not on disk: {', '.join(missing)}")
    if args.json:
        content = json.dumps([report.to_json() for report in reports], indent=2, allow_nan=False)
        with atomic_write(args.json) as file:
            file.write(f"{content}\n".encode())
    return int(any(report.problems for report in reports))


def _table_row(report: DatasetReport) -> dict[str, Any]:
    return {
        "dataset": report.name,
        "frames": report.frames,
        "expected": "?" if report.expected_frames is None else report.expected_frames,
        "sizes": "\n".join(f"{size} ({n})" for size, n in report.sizes.items()),
        "label values, % of pixels": _label_values(report),
        "no anomaly": "-" if report.without_anomaly is None else report.without_anomaly,
        "problems": len(report.problems) or "none",
    }


def _label_values(report: DatasetReport) -> str:
    """One line per meaning, such as "known 0-10: 92.20"."""
    from tdos_d2.data.verify.report import format_ranges

    if not report.has_labels:
        return "no labels"
    lines = []
    for role in dict.fromkeys(report.roles.values()):
        values = [value for value, meaning in report.roles.items() if meaning == role]
        pixels = sum(report.values[value] for value in values)
        lines.append(f"{role} {format_ranges(values)}: {report.percent(pixels):.2f}")
    if report.masked:
        lines.append(f"region mask: {report.percent(report.masked):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
