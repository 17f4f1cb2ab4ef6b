"""What the benchmarks share: time, hardware and versions, medians with their spread."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdos_commands import usable_cores


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads that a call takes, and its result.

    Other programs on the machine change them less than the time on the clock.
    """
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a new process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1, warnings.simplefilter, ("ignore",)) as pool:
        return pool.apply(function, arguments)


def peak_memory() -> float:
    """GiB that this process has held at most, or on a GPU what torch has."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**3
    unit = 1024**3 if sys.platform == "darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def median_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (smallest to largest)`` of repeated measurements."""
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})"


def hardware(*modules: str) -> str:
    """Processor and cores that may be used; then the versions of Python and of some modules.

    It imports the modules, so that their import is not part of what is timed afterwards.
    """
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if "model name" in x), model)
    found = (f"{name} {importlib.import_module(name).__version__}" for name in modules)
    versions = ", ".join([f"Python {platform.python_version()}", *found])
    return f"{model}, {usable_cores()} cores\n{versions}"
