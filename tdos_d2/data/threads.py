"""One function on many files at a time, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    jobs: int | None,
    title: str,
    *,
    unit: str = "file",
    leave: bool = True,
) -> list[_R]:
    """``function`` of each item, in order. After an error or Ctrl-C the rest is not begun.

    Args:
        function: reads or decodes files; that happens outside of Python's lock, so threads do.
        items: what it is called with.
        jobs: number of threads; None = number of CPU cores.
        title: of the progress bar.
        unit: what the bar counts.
        leave: whether the bar stays on the screen.
    """
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        try:
            return list(tqdm(pool.map(function, items), title, len(items), unit=unit, leave=leave))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
