#!/usr/bin/env python
"""Train and evaluate several configs with several seeds each; a table of means and spreads.

    python tools/ablation.py configs/camvid/ablation/*.yaml --seeds 1 2 3 --output output/ablation

Every config and seed is a run of train_net.py in OUTPUT/<config>/seed<n>. A run that has finished
is not run again, one that was cut off resumes: the same command carries on. OUTPUT/results.md has
one row per config: mean and standard deviation (n - 1) over the seeds of each metric.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("camvid_val/sem_seg/mIoU", "camvid_ood/ood/AP", "camvid_ood/ood/FPR95")


def run() -> None:
    """Run what is missing, then write the table."""
    args = _parser().parse_args()
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output

    check_output(args.output, "--output", folder=True)
    missing = [path for path in args.configs if not path.is_file()]
    if missing:
        raise UserError(f"config file {missing[0]} does not exist")
    if len({path.stem for path in args.configs}) < len(args.configs):
        raise UserError("two configs have one file name: their runs would share a folder")
    runs = [(path, seed) for seed in args.seeds for path in args.configs]
    for number, (config, seed) in enumerate(runs, start=1):
        folder = args.output / config.stem / f"seed{seed}"
        if not (folder / "minutes.json").is_file():
            print(f"[{number}/{len(runs)}] {config.stem}, seed {seed} -> {folder}", flush=True)
            _train(config, seed, folder, args.opts)
    table = markdown_table(args.configs, args.seeds, args.output, args.metrics)
    (args.output / "results.md").write_text(table)
    print(table)


def _train(config: Path, seed: int, folder: Path, opts: Sequence[str]) -> None:
    """One run of train_net.py, its output in ``folder``/console.txt."""
    from tdos_d2.errors import UserError

    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), "--resume"]
    command += ["SEED", str(seed), "OUTPUT_DIR", str(folder), *opts]
    start = time()
    with (folder / "console.txt").open("w") as console:
        status = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT).returncode
    if status:
        lines = (folder / "console.txt").read_text().strip().splitlines() or ["no output"]
        raise UserError(f"{config.stem}, seed {seed}: {lines[-1]} (see {folder}/console.txt)")
    minutes = {"minutes": (time() - start) / 60, "processors": os.cpu_count()}
    (folder / "minutes.json").write_text(json.dumps(minutes, allow_nan=False))


def markdown_table(
    configs: Sequence[Path], seeds: Sequence[int], output: Path, metrics: Sequence[str]
) -> str:
    """The results of all runs.

    Args:
        configs: one row each, named by file name.
        seeds: the runs of a row.
        output: where :func:`run` put them.
        metrics: columns, "<dataset>/<task>/<metric>" of results.json.

    Returns:
        Markdown; "mean ± standard deviation" where there are at least two seeds.
    """
    lines = ["| config | " + " | ".join(metrics) + " | minutes |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for config in configs:
        folders = [output / config.stem / f"seed{seed}" for seed in seeds]
        results = [json.loads((folder / "results.json").read_text()) for folder in folders]
        times = [json.loads((folder / "minutes.json").read_text()) for folder in folders]
        minutes = [each["minutes"] for each in times]
        columns = [[_look_up(result, metric) for result in results] for metric in metrics]
        cells = [_mean_and_spread(column) for column in [*columns, minutes]]
        lines.append(f"| {config.stem} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _look_up(results: Mapping[str, Any], metric: str) -> float:
    from tdos_d2.errors import UserError

    value: Any = results
    for key in metric.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"results.json has no {metric}")
        value = value[key]
    return math.nan if value is None else float(value)  # null: not defined on this set


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=options.path, help="config files, one row each")
    parser.add_argument(
        "--seeds", nargs="+", type=options.seed, default=[1, 2, 3], help="default: 1 2 3"
    )
    parser.add_argument("--output", type=options.path, default=Path("output/ablation"))
    parser.add_argument(
        "--metrics", nargs="+", default=list(METRICS), metavar="DATASET/TASK/METRIC",
        help=f"columns (default: {' '.join(METRICS)})",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="for all runs"
    )
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
