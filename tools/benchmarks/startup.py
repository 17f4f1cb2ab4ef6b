"""``benchmark.py startup``: how long everything takes before it begins.

  import      torch and detectron2.engine, and what tdos_d2 adds, each time in a new process
  --help      of every script and installed command: the whole process, as a shell sees it

The files are in the disk's cache. Medians, with the smallest and the largest value.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tdos_commands import options

from .common import hardware, median_and_spread

ROOT = Path(__file__).resolve().parents[2]
# Prints the seconds for the first modules, and for the last one after them.
IMPORT = """
import sys, time, warnings
from importlib import import_module
warnings.simplefilter("ignore")
*first, last = sys.argv[1:]
start = time.perf_counter()
for name in first:
    import_module(name)
middle = time.perf_counter()
import_module(last)
print(middle - start, time.perf_counter() - middle)
"""
# As in the scripts that pip writes.
CALL = "import sys; from {module} import {attr}; sys.argv[0] = {name!r}; sys.exit({attr}())"


def add_command(commands: Any) -> None:
    """Add ``startup`` to the parser's commands."""
    command = commands.add_parser(
        "startup",
        help="time of imports and of --help",
        description=__doc__,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--repeat", type=options.whole(1), default=5, metavar="N", help="runs each (default: 5)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    from tdos_d2.evaluation.tables import format_rows

    print(f"{hardware('torch', 'detectron2')}\n")
    modules = ("torch", "detectron2.engine", "tdos_d2")
    base, added = import_seconds(modules, args.repeat)
    rows = [
        _row("import torch, detectron2.engine", base, None),
        _row("import tdos_d2, after these", added, 0.5),
    ]
    for name, words in help_commands().items():
        rows.append(_row(f"{name} --help", command_seconds(words, args.repeat), 1.0))
    print(f"seconds, median of {args.repeat} (smallest to largest)\n")
    print(format_rows(rows, "table"))


def import_seconds(modules: Sequence[str], repeat: int) -> tuple[list[float], list[float]]:
    """Seconds in new processes for all modules but the last one, and for the last one."""
    command = [sys.executable, "-c", IMPORT, *modules]
    lines = [_output(command).split() for _ in range(repeat + 1)][1:]  # the first fills the cache
    return [float(first) for first, _ in lines], [float(last) for _, last in lines]


def help_commands() -> dict[str, list[str]]:
    """Name -> words of the command line, of all scripts and of what pip installed."""
    scripts = [ROOT / "train_net.py", *sorted((ROOT / "tools").glob("*.py"))]
    scripts += sorted((ROOT / "datasets").glob("[!_]*.py"))
    found = {s.relative_to(ROOT).as_posix(): [sys.executable, str(s), "--help"] for s in scripts}
    for entry in sorted(entry_points(group="console_scripts")):
        if entry.name.startswith("tdos-"):
            call = CALL.format(module=entry.module, attr=entry.attr, name=entry.name)
            found[entry.name] = [sys.executable, "-c", call, "--help"]
    return found


def command_seconds(words: Sequence[str], repeat: int) -> list[float]:
    """Seconds that each run of a command takes, after one that does not count.

    Raises:
        RuntimeError: it failed.
    """
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        _output(words)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


def _row(what: str, seconds: Sequence[float], goal: float | None) -> dict[str, str]:
    return {
        "what": what,
        "seconds": median_and_spread(seconds),
        "goal": "" if goal is None else f"<= {goal:g}",
    }
