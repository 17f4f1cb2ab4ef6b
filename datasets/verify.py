#!/usr/bin/env python
"""Check datasets on disk: every file is read, and compared with what its publishers say.

Prints, for each set, frames found and expected, image sizes, values of the label files with their
share of all pixels, labels without anomaly, and what is wrong: files that are missing, unmatched or
unreadable, label values that are not declared, other sizes or numbers of frames.

Without names, all built-in sets that are below the root are checked. The exit status is 1 where
anything differs from what is expected.

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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdos_d2.data.verify.report import Report

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from _common import options  # noqa: E402

_PROBLEMS_SHOWN = 10  # of a set; the JSON file has all


def run(args: argparse.Namespace) -> int:
    """Check and report. Returns the exit status."""
    from tdos_d2.data import MissingDatasetError, data_root, register_from_file
    from tdos_d2.data.verify.report import EXPECTED, verify_dataset
    from tdos_d2.errors import UserError
    from tdos_d2.files import atomic_write, check_output

    if args.json is not None:
        check_output(args.json, "--json")
    own = register_from_file(args.register) if args.register else []
    reports, missing = [], []
    for name in args.names or [*EXPECTED, *own]:
        try:
            reports.append(verify_dataset(name, args.jobs))
        except MissingDatasetError as error:
            if args.names or name in own:
                raise
            missing.append((name, error))
    if not reports:
        raise UserError(f"no dataset below {data_root()}: --root names the folder that has them")
    print(_table(reports))
    for report in reports:
        _print_problems(report)
    if missing:
        print(f"not on disk: {', '.join(name for name, _ in missing)}")
    if args.json:
        content = json.dumps([report.to_json() for report in reports], indent=2, allow_nan=False)
        with atomic_write(args.json) as file:
            file.write(f"{content}\n".encode())
    return int(any(report.problems for report in reports))


def _table(reports: Sequence[Report]) -> str:
    from tabulate import tabulate

    rows = [
        {
            "dataset": report.name,
            "frames": report.frames,
            "expected": "?" if report.expected_frames is None else report.expected_frames,
            "sizes": "\n".join(f"{size} ({n})" for size, n in report.sizes.items()),
            "label values, % of pixels": _values(report),
            "no anomaly": "-" if report.without_anomaly is None else report.without_anomaly,
            "problems": len(report.problems) or "none",
        }
        for report in reports
    ]
    return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)


def _values(report: Report) -> str:
    """One line per meaning: "known 0-10 92.20"."""
    from tdos_d2.data.verify.report import ranges

    if not report.has_labels:
        return "no labels"
    lines = []
    for role in dict.fromkeys(report.roles.values()):
        values = [value for value, meaning in report.roles.items() if meaning == role]
        pixels = sum(report.values[value] for value in values)
        lines.append(f"{role} {ranges(values)}: {report.percent(pixels):.2f}")
    if report.masked:
        lines.append(f"region mask: {report.percent(report.masked):.2f}")
    return "\n".join(lines)


def _print_problems(report: Report) -> None:
    for problem in report.problems[:_PROBLEMS_SHOWN]:
        print(f"{report.name}: {problem}")
    more = len(report.problems) - _PROBLEMS_SHOWN
    if more > 0:
        print(f"{report.name}: ... and {more} more (--json writes all)")


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(description=__doc__)
    parser.add_argument("names", nargs="*", help="datasets (default: the built-in ones there are)")
    parser.add_argument(
        "--root", type=options.path_text,
        help="folder of the datasets (default: $DETECTRON2_DATASETS)",
    )
    parser.add_argument(
        "--register", type=options.path_text, metavar="YAML", help="list of sets of your own"
    )
    parser.add_argument(
        "--json", type=options.path, metavar="FILE", help="write the reports as JSON"
    )
    parser.add_argument(
        "--jobs", type=options.whole(1), help="number of threads (default: CPU cores)"
    )
    return parser


def main() -> None:
    args = _parser().parse_args()
    if args.root is not None:
        # Detectron2 reads it when it is imported, which is therefore done later.
        os.environ["DETECTRON2_DATASETS"] = args.root
    from tdos_d2.engine import exit_with_one_line

    exit_with_one_line(lambda: sys.exit(run(args)))


if __name__ == "__main__":
    main()
