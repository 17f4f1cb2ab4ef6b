"""Malformed inputs, made systematically from good ones, and what a reader may do with them."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tdos_d2.errors import UserError

SECONDS = 10.0  # for one input
MEMORY = 3 * 2**30  # bytes of address space beyond what the process has


class Case(NamedTuple):
    """An input: its name, and what puts it under a path."""

    name: str
    write: Callable[[Path], object]


def _bytes(name: str, content: bytes) -> Case:
    return Case(name, lambda path: path.write_bytes(content))


def damaged(content: bytes, flips: int = 8) -> Iterator[Case]:
    """Cut off at several places, with bytes flipped, zeroed, doubled, or of something else."""
    for part in (0, 1, 8, *(len(content) * i // 8 for i in range(1, 8)), len(content) - 1):
        yield _bytes(f"cut-{part}", content[:part])
    places = random.Random(0)
    for _ in range(flips):
        place, bit = places.randrange(len(content)), places.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        yield _bytes(f"flip-{place}.{bit}", bytes(flipped))
    for place in (0, len(content) // 3, len(content) // 2):
        yield _bytes(f"ff-{place}", content[:place] + b"\xff" * 16 + content[place + 16 :])
    yield _bytes("zeros", bytes(len(content)))
    yield _bytes("text", b"this is something else\n" * 9)
    yield _bytes("front", b"\0" * 7 + content)


def no_files() -> Iterator[Case]:
    """What is under the name of a file and is none."""
    yield Case("folder", lambda path: path.mkdir())
    yield Case("nothing", lambda path: None)
    yield Case("pipe", lambda path: os.mkfifo(path))
    yield Case("device", lambda path: path.symlink_to("/dev/zero"))
    yield Case("circle", lambda path: path.symlink_to(path.name))


WRONG = (None, "x", -1, 10**40, math.nan, math.inf, True, [], {}, [[]], {"x": [None]}, "\x1b[2J")


def wrong_values(document: Any, per_key: int = 4) -> Iterator[tuple[str, Any]]:
    """A JSON or YAML document with each value replaced and each key left out, one at a time.

    Of ``WRONG`` each place gets ``per_key`` in turn, so that each value is tried somewhere.
    """
    turn = 0
    for place in _places(document, ()):
        for _ in range(per_key):
            changed = copy.deepcopy(document)
            value = WRONG[turn % len(WRONG)]
            turn += 1
            if not place:
                yield f"whole-{turn}", value
                continue
            node = changed
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
            yield f"{'.'.join(map(str, place))}-{turn}", changed
        if place:
            changed = copy.deepcopy(document)
            node = changed
            for key in place[:-1]:
                node = node[key]
            del node[place[-1]]
            yield f"{'.'.join(map(str, place))}-gone", changed


def _places(node: Any, place: tuple) -> Iterator[tuple]:
    yield place
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _places(value, (*place, key))
    elif isinstance(node, list) and node:  # one element stands for all
        yield from _places(node[0], (*place, 0))


def json_cases(document: Any, per_key: int = 4) -> Iterator[Case]:
    """Wrong values, wrong JSON."""
    for name, changed in wrong_values(document, per_key):
        yield _bytes(name, json.dumps(changed).encode())
    content = json.dumps(document).encode()
    yield from damaged(content, flips=4)
    yield _bytes("deep", b"[" * 10**5)
    yield _bytes("latin1", content[:-1] + b"\xe4}")


class Outcome(NamedTuple):
    """What a reader did with a case: ``fault`` is "" where it did as it should."""

    case: str
    refused: bool
    fault: str


def outcomes(
    cases: Iterator[Case],
    folder: Path,
    suffix: str,
    read: Callable[[Path], Any],
    fits: Callable[[Any], bool],
    *,
    named: str = "",
) -> list[Outcome]:
    """What ``read`` makes of each case.

    It should raise a UserError of one line that names the file (or fits ``named``), or return
    what ``fits`` a file of this kind, in time and memory.
    """
    folder.mkdir()
    found = []
    for number, case in enumerate(cases):
        path = folder / f"case{number}{suffix}"
        case.write(path)
        refused, fault, start = False, "", time.process_time()
        try:
            with limited_memory():
                result = read(path)
            if not fits(result):
                fault = f"gave {str(result)[:200]}"
        except UserError as error:
            refused, text = True, str(error)
            if "\n" in text or not (path.name in text or (named and re.search(named, text))):
                fault = f"said {text[:300]!r}"
        except (SystemExit, Exception) as error:
            fault = f"raised {type(error).__name__}: {str(error)[:300]}"
        if time.process_time() - start > SECONDS:
            fault += f" in {time.process_time() - start:.0f} s"
        found.append(Outcome(f"{path.name} ({case.name})", refused, fault))
    return found


@contextmanager
def limited_memory() -> Iterator[None]:
    """No more than ``MEMORY`` beyond what the process has; beyond it is MemoryError."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
