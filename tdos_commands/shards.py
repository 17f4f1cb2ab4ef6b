"""Prediction in shards: options for job arrays, and for several processes on one machine."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import options, threads_are_users, usable_cores

_GPUS = Path("/proc/driver/nvidia/gpus")
_CODE = "import sys; sys.path.insert(0, {!r}); from tdos_commands.predict import main; main()"


def add_shard_options(add: Callable[..., object]) -> None:
    """Add ``--shard`` and ``--processes`` to a parser."""
    add("--shard", type=shard_option, metavar="I/N",
        help="for job arrays: predict every N-th input from the I-th on (1 to N), into\n"
        "DIR/shard-I-of-N; the last one to end joins the tables to DIR/predictions.jsonl;\n"
        "events and --select are of each shard alone")
    add("--processes", type=options.whole(1), default=1, metavar="N",
        help="N shards side by side, each on a GPU as far as there are any, else on its\n"
        "share of the cores (default: 1)")  # fmt: skip


def shard_option(text: str) -> tuple[int, int]:
    """Type of ``--shard``: "I/N" with 1 <= I <= N."""
    part, _, count = text.partition("/")
    if part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count):
        return int(part), int(count)
    raise argparse.ArgumentTypeError(f"I/N is needed, such as 1/8 to 8/8, not '{text}'")


def run_shards(argv: Sequence[str], count: int) -> int:
    """Run a prediction in ``count`` processes, one shard each.

    Args:
        argv: its command line, without the program; the added ``--shard`` overrides
            ``--processes`` in it.
        count: number of processes.

    Returns:
        The largest exit status.
    """
    names = sys.stdin.buffer.read() if "-" in argv else b""
    devices = _devices()
    environment = dict(os.environ)
    if not threads_are_users():
        environment["OMP_NUM_THREADS"] = str(max(usable_cores() // count, 1))
    code = _CODE.format(str(Path(__file__).resolve().parents[1]))
    running = []
    for i in range(count):
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
        # --shard comes first, as --opts takes all words that follow it.
        command = [sys.executable, "-c", code, "--shard", f"{i + 1}/{count}", *argv]
        # A file, as a pipe's buffer is small: each process would wait until the previous one read.
        with tempfile.TemporaryFile() as lines:
            lines.write(names)
            lines.seek(0)
            running.append(subprocess.Popen(command, stdin=lines, env=environment))
    try:
        statuses = [process.wait() for process in running]
    except KeyboardInterrupt:  # the terminal has interrupted the processes as well
        statuses = [process.wait() for process in running]
    return max(status if status >= 0 else 128 - status for status in statuses)


def _devices() -> list[str]:
    """Identifiers of the visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(i) for i in range(len(list(_GPUS.iterdir())))] if _GPUS.is_dir() else []
