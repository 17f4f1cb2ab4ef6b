#!/usr/bin/env python
"""Train and evaluate several configs with several seeds each; tables of means and differences.

Every config and seed is a run of train_net.py in OUTPUT/<config>/seed<n>, evaluated on the config's
own test sets: development sets, as long as anything is chosen by them. With --evaluate, the trained
models are then evaluated on further sets, in OUTPUT/<config>/seed<n>/test: once, at the end; again
only where a set is named that is not there yet. A run that has finished is not run again, one that
was cut off resumes: the same command carries on, and commands side by side may share OUTPUT if they
share no run.

OUTPUT/results.md has one row per config: mean and standard deviation (n - 1) of each metric over
the seeds; and of each config the differences to the one named before it, in pairs of the same seed:
mean and deviation and, of OOD metrics, the 95 % interval of the mean over drawn sets of frames.

Example:
    python tools/ablation.py configs/camvid/ablation/{no_negatives,negatives,words}.yaml \\
        --evaluate camvid_ood road_anomaly --metrics camvid_val/sem_seg/mIoU camvid_ood/ood/AP
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
from itertools import pairwise
from pathlib import Path
from time import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

ROOT = Path(__file__).resolve().parent.parent
TEST = "test"  # below a run's folder
METRICS = ("camvid_val/sem_seg/mIoU", "camvid_val_pasted/ood/AP", "camvid_val_pasted/ood/FPR95")


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
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds names a seed twice: one run would count as two")
    runs = [(path, seed) for seed in args.seeds for path in args.configs]
    for number, (config, seed) in enumerate(runs, start=1):
        folder = args.output / config.stem / f"seed{seed}"
        _check_settings(config, folder, args.opts)
        if not (folder / "minutes.json").is_file():
            print(f"[{number}/{len(runs)}] {config.stem}, seed {seed} -> {folder}", flush=True)
            start, resumes = time(), (folder / "last_checkpoint").is_file()
            _run(config, seed, folder, ["--resume"], args.opts)
            # How long it took before it was cut off is not known.
            minutes = None if resumes else (time() - start) / 60
            kept = {"minutes": minutes, "processors": os.cpu_count()}
            (folder / "minutes.json").write_text(json.dumps(kept, allow_nan=False))
    for config, seed in runs if args.evaluate else ():
        folder = args.output / config.stem / f"seed{seed}"
        file = folder / TEST / "results.json"
        there = json.loads(file.read_text()) if file.is_file() else {}
        if not there.keys() >= set(args.evaluate):
            names = tuple(dict.fromkeys([*there, *args.evaluate]))  # one file holds all results
            print(f"{config.stem}, seed {seed} on {', '.join(names)}", flush=True)
            weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
            sets = ["DATASETS.TEST", repr(names), "TEST.FRAME_COUNTS", "True"]
            sets += ["TEST.MISSING", "error"]  # whatever the config does without a set of its own
            _run(config, seed, folder / TEST, ["--eval-only"], [*args.opts, *weights, *sets])
    tables = [markdown_table(args.configs, args.seeds, args.output, args.metrics)]
    if len(args.configs) > 1:
        tables.append(differences_table(args.configs, args.seeds, args.output, args.metrics))
    (args.output / "results.md").write_text("\n".join(tables))
    print("\n".join(tables))


def _check_settings(config: Path, folder: Path, opts: Sequence[str]) -> None:
    """Write the config of a run beside it, or compare it with that of an earlier call.

    Raises:
        UserError: they differ, so the run is of other settings; or the run has finished without a
            config beside it.
    """
    from tdos_d2.errors import UserError
    from tdos_d2.files import atomic_write
    from tdos_d2.loading.config_files import load_config

    kept, now = folder / "settings.yaml", load_config(str(config), list(opts)).dump()
    if not kept.is_file():
        if (folder / "minutes.json").is_file():
            raise UserError(f"{folder} has a finished run but no {kept.name}: of which config?")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            file.write(now.encode())
    elif kept.read_text() != now:
        raise UserError(f"{folder} is a run of another config or --opts than now: see {kept}")


def _run(
    config: Path, seed: int, folder: Path, flags: Sequence[str], opts: Sequence[str]
) -> None:
    """One run of train_net.py, its output in ``folder``/console.txt."""
    from tdos_d2.errors import UserError

    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), *flags]
    command += [*opts, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    with (folder / "console.txt").open("w") as console:
        status = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT).returncode
    if status:
        lines = (folder / "console.txt").read_text().strip().splitlines() or ["no output"]
        raise UserError(f"{config.stem}, seed {seed}: {lines[-1]} (see {folder}/console.txt)")


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
        Markdown; "mean ± standard deviation" where there are at least two seeds, "nan" minutes
        where a run was cut off and resumed.
    """
    lines = ["| config | " + " | ".join(metrics) + " | minutes |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for config in configs:
        folders = [output / config.stem / f"seed{seed}" for seed in seeds]
        times = [json.loads((folder / "minutes.json").read_text()) for folder in folders]
        minutes = [math.nan if each["minutes"] is None else each["minutes"] for each in times]
        columns = [_values(folders, metric) for metric in metrics]
        cells = [_mean_and_spread(column) for column in [*columns, minutes]]
        lines.append(f"| {config.stem} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences_table(
    configs: Sequence[Path], seeds: Sequence[int], output: Path, metrics: Sequence[str]
) -> str:
    """Each config minus the one before it; arguments as in :func:`markdown_table`.

    Returns:
        Markdown; "mean ± standard deviation [low, high]" over pairs of the same seed.
    """
    lines = ["| difference | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for before, config in pairwise(configs):
        sides = [[output / c.stem / f"seed{seed}" for seed in seeds] for c in (before, config)]
        cells = []
        for metric in metrics:
            first, second = (_values(folders, metric) for folders in sides)
            own = [b - a for a, b in zip(first, second, strict=True)]
            cells.append(f"{_mean_and_spread(own, '+')}{_interval(*sides, metric)}")
        lines.append(f"| {config.stem} - {before.stem} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(first: Sequence[Path], second: Sequence[Path], metric: str) -> str:
    """The interval over frames, where the counts of the frames were kept; else ""."""
    from tdos_d2.evaluation.comparison import FOLDER, load_pairs, paired_differences

    dataset, task, name = metric.split("/")
    file = Path(TEST, FOLDER, f"{dataset}.{task}.npz")
    sides = [[run / file for run in runs] for runs in (first, second)]
    if not all(path.is_file() for side in sides for path in side):
        return ""
    found = paired_differences(load_pairs(*sides)).get(name)
    return f" [{found.low:+.1f}, {found.high:+.1f}]" if found else ""


def _values(runs: Sequence[Path], metric: str) -> list[float]:
    """A metric of each run, which may have been evaluated twice, on different sets."""
    values = []
    for run in runs:
        files = [run / "results.json", run / TEST / "results.json"]
        results = [json.loads(file.read_text()) for file in files if file.is_file()]
        values.append(_look_up({k: v for each in results for k, v in each.items()}, metric))
    return values


def _look_up(results: Mapping[str, Any], metric: str) -> float:
    from tdos_d2.errors import UserError

    value: Any = results
    for key in metric.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"results.json has no {metric}")
        value = value[key]
    return math.nan if value is None else float(value)  # null: not defined on this set


def _mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.1f}"
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return mean
    return f"{mean} ± {statistics.stdev(values):.1f}"


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=options.path, help="config files, one row each")
    parser.add_argument(
        "--seeds", nargs="+", type=options.seed, default=[1, 2, 3], help="default: 1 2 3"
    )
    parser.add_argument("--output", type=options.path, default=Path("output/ablation"))
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="DATASET",
        help="test sets for the end, when nothing is chosen any more",
    )
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
