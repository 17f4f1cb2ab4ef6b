#!/usr/bin/env python
"""Compare runs that were evaluated on the same frames: differences, with intervals over frames.

A run is an OUTPUT_DIR of train_net.py with TEST.FRAME_COUNTS True. Several on each side are paired
in their order, as runs with the same seed. A 95 % interval that has no zero in it says that other
frames of this kind would give a difference of the same sign; other seeds might not, which the
deviation over the pairs tells.

Examples:
    python tools/compare_runs.py --first output/a --second output/b
    python tools/compare_runs.py --first output/a/seed{1,2,3} --second output/b/seed{1,2,3}
    python tools/compare_runs.py --first output/a --second output/a --task ood_max_logit ood
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

METRICS = ("AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1")
FORMATS = ("table", "json", "csv", "markdown", "latex")


def run() -> None:
    """Print the table."""
    args = _parser().parse_args()
    from tdos_d2.errors import UserError
    from tdos_d2.evaluation.tables import format_rows

    if len(args.first) != len(args.second):
        raise UserError(
            f"--first has {len(args.first)} runs, --second {len(args.second)}: they make no pairs"
        )
    if len(set(zip(args.first, args.second, strict=True))) < len(args.first):
        raise UserError("a pair of runs is named twice: it would count as two")
    tasks = args.task * 2 if len(args.task) == 1 else args.task
    if len(tasks) != 2:
        raise UserError("--task takes one score for both sides, or one for each")
    rows = [row for name in _datasets(args.first, tasks[0]) for row in _rows(args, name, tasks)]
    print(format_rows(rows, args.format))


def _datasets(runs: Sequence[Path], task: str) -> list[str]:
    from tdos_d2.errors import UserError
    from tdos_d2.evaluation.comparison import FOLDER

    ending = f".{task}.npz"
    files = (runs[0] / FOLDER).glob(f"*{ending}")
    names = sorted(path.name.removesuffix(ending) for path in files)
    if not names:
        raise UserError(
            f"{runs[0] / FOLDER} has no counts of '{task}': evaluate with TEST.FRAME_COUNTS True"
        )
    return names


def _rows(args: argparse.Namespace, dataset: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    from tdos_d2.evaluation.comparison import FOLDER, load_pairs, paired_differences

    sides = [
        [run / FOLDER / f"{dataset}.{task}.npz" for run in runs]
        for runs, task in zip((args.first, args.second), tasks, strict=True)
    ]
    found = paired_differences(load_pairs(*sides), number=args.bootstrap, seed=args.seed)
    return [
        {"dataset": dataset, "metric": name, **found[name]._asdict()} for name in args.metrics
    ]


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    for side in ("first", "second"):
        parser.add_argument(
            f"--{side}", nargs="+", required=True, type=options.path, metavar="RUN",
            help=f"the {side} of each pair; a difference is the second minus the first",
        )
    parser.add_argument(
        "--task", nargs="+", default=["ood"],
        help="score to compare, as in results.json, or two: of the first and the second runs "
        "(default: ood, the main one)",
    )
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["AP", "FPR95"])
    parser.add_argument(
        "--bootstrap", type=options.whole(1), default=1000, metavar="N",
        help="drawn sets of frames (default: 1000)",
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of the draws (default: 0)")
    parser.add_argument("--format", choices=FORMATS, default="table")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
