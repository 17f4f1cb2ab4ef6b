"""Common parts of all tools' options: paths with ``~``, numbers in a range, errors in one line."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).parents[1]


class Parser(argparse.ArgumentParser):
    """A parser that reads -1e-3 as a number and reports errors in one line (exit status 2).

    Where KEY VALUE pairs are the last arguments, ``--opts`` may stand before them, as it must in
    the commands whose other options take several words.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        # Up to Python 3.13, argparse reads -1e-3 as an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, without the ``--opts`` before positional KEY VALUE pairs."""
        words = list(sys.argv[1:] if args is None else args)
        pairs = [each for each in self._actions if each.dest == "opts"]
        if pairs and not pairs[0].option_strings and "--opts" in words:
            words.remove("--opts")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, which is often longer than a screen."""
        if re.match(r"unrecognized arguments: [A-Z0-9_]+\.[A-Z0-9_.]+", message):
            message += ": KEY VALUE pairs come last, after --opts"
        self.exit(2, f"error: {message} (--help tells of all options)\n")


def path(text: str) -> Path:
    """Type of options that name a file or folder."""
    return Path(os.path.expanduser(text))


def path_text(text: str) -> str:
    """As :func:`path`, for values that may be a path or something else."""
    return os.path.expanduser(text)


def config_file(text: str) -> str:
    """Type of ``--config-file``: a file, or the name of a config that ships with tdos_d2.

    ``tdos_d2.loading.find_config`` finds the same files, but only once torch has been loaded.
    """
    name = os.path.expanduser(text)
    folder = next(f for f in (_ROOT / "tdos_d2" / "configs", _ROOT / "configs") if f.is_dir())
    if not name or os.path.isfile(name) or (folder / name.removeprefix("configs/")).is_file():
        return name
    shipped = [f"configs/{each.relative_to(folder).as_posix()}" for each in folder.rglob("*.yaml")]
    close = get_close_matches(name, shipped, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise argparse.ArgumentTypeError(f"config file {name} does not exist{hint}")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Type of options that are integers of at least ``least``."""
    return _number(int, "a whole number", least, most)


def number(least: float | None = None, most: float | None = None) -> Callable[[str], float]:
    """Type of options that are finite numbers."""
    return _number(float, "a number", least, most)


def _number(
    kind: Callable[[str], Any], what: str, least: float | None, most: float | None
) -> Callable[[str], Any]:
    pairs = (("from", least), ("to", most))
    limits = [f"{word} {limit}" for word, limit in pairs if limit is not None]
    low, high = (-math.inf if least is None else least), (math.inf if most is None else most)

    def convert(text: str) -> Any:
        try:
            value = kind(text)
            if math.isfinite(value) and low <= value <= high:
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{' '.join([what, *limits])} is needed, not '{text}'")

    return convert


seed = whole(0, 2**32 - 1)


def image_size(text: str) -> tuple[int, int]:
    """Type of options that are ``WxH``: (W, H)."""
    width, _, height = text.partition("x")
    try:
        size = int(width), int(height)
        if min(size) > 0:
            return size
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"a size as 2048x1024 is needed, not '{text}'")
