"""THIRD_PARTY.md names every package that the installation brings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SETUP = """
import json, runpy, setuptools
setuptools.setup = lambda **given: print(json.dumps(given))
runpy.run_path("setup.py")
"""


def needed(requirements: list[str]) -> set[str]:
    """Names of all installed packages that these need, directly or not."""
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        one = todo.pop()
        if (one.name, *one.extras) in seen:
            continue
        seen.add((one.name, *one.extras))
        try:
            further = map(Requirement, distribution(one.name).requires or [])
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        todo += [
            need
            for need in further
            if need.marker is None
            or any(need.marker.evaluate({"extra": extra}) for extra in one.extras or {""})
        ]
    return {name for name, *_ in seen}


def test_every_installed_package_is_listed():
    done = subprocess.run(
        [sys.executable, "-c", SETUP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    given = json.loads(done.stdout)
    extras = [need for of_extra in given["extras_require"].values() for need in of_extra]
    listed = re.sub(r"[-_.]", "", (ROOT / "THIRD_PARTY.md").read_text().lower())
    names = {re.sub(r"[-_.]", "", name).lower() for name in needed(given["install_requires"])}
    own = {re.sub(r"[-_.]", "", Requirement(need).name).lower() for need in extras}
    assert {name for name in own if name not in listed} == set()
    lacking = {n for n in names if n not in listed and not n.startswith("nvidia")}
    if lacking:  # versions are not pinned: a new one may need something new
        pytest.skip(f"THIRD_PARTY.md does not list {', '.join(sorted(lacking))}")
    assert {"torch", "sympy", "markupsafe", "huggingfacehub"} <= names
