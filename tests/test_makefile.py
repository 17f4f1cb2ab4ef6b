"""The Makefile's set-up step, with stand-ins for python: nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ["setup.py", "pyproject.toml", "tools/install_detectron2.py"]
# Notes its arguments, and does what a test asks for in FAIL (a word in the arguments).
VENV_PYTHON = """#!/bin/sh
echo "$*" >> calls
case "$*" in *"$FAIL"*) echo pip-reason >&2; exit 1;; esac
"""
PYTHON = """#!/bin/sh
case "$*" in "-m venv .venv") mkdir -p .venv/bin; cp venv-python .venv/bin/python;; esac
case "$*" in *"$FAIL"*) exit 1;; esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    for path in ["Makefile", *INPUTS]:
        shutil.copy(ROOT / path, tmp_path / path)
    for path, text in [("venv-python", VENV_PYTHON), ("python", PYTHON)]:
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    return tmp_path


def make(folder: Path, *args: str, fail: str = "nothing") -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    command = ["make", "PYTHON=./python", *args]
    env["FAIL"] = fail
    (folder / "calls").write_text("")
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What is on stderr, but for make's own last line."""
    assert done.returncode != 0
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


def test_first_call_installs_and_the_second_does_not(folder: Path) -> None:
    assert make(folder, "demo").returncode == 0
    pip = [call for call in calls(folder) if "install -q" in call]
    assert pip and all(call.endswith("-e .[test]") for call in pip)
    assert calls(folder)[-2:] == ["tools/install_detectron2.py", "tools/demo.py"]
    assert make(folder, "test").returncode == 0
    options = "-n logical --maxprocesses 4 --dist worksteal"
    assert calls(folder) == ["-m ruff check", f"-m pytest {options}"]


@pytest.mark.parametrize("path", INPUTS)
def test_only_a_changed_input_installs_again(folder: Path, path: str) -> None:
    make(folder, "install")
    os.utime(folder / path, (4e9, 4e9))
    make(folder, "install")
    assert not any("install -q" in call for call in calls(folder))
    (folder / path).write_text((folder / path).read_text() + "\n# changed\n")
    os.utime(folder / path, (4e9, 4e9))
    make(folder, "install")
    assert any("install -q" in call for call in calls(folder))


@pytest.mark.parametrize(
    "fail, words", [("version_info", "3.10"), ("ensurepip", "python3-venv"), ("-m venv", "failed")]
)
def test_python_that_does_not_serve(folder: Path, fail: str, words: str) -> None:
    (line,) = errors(make(folder, "demo", fail=fail))
    assert line.startswith("error: ") and words in line
    assert not (folder / ".venv").exists()


def test_no_python(folder: Path) -> None:
    (line,) = errors(make(folder, "demo", "PYTHON=./nowhere"))
    assert line.startswith("error: ") and "./nowhere" in line


def test_failed_pip_ends_in_one_line_and_can_be_resumed(folder: Path) -> None:
    lines = errors(make(folder, "test", fail="install -q"))
    assert lines[-2] == "pip-reason" and lines[-1].startswith("error: ")
    assert not any("-m pytest" in call for call in calls(folder))
    assert make(folder, "test").returncode == 0
    assert any("install -q" in call for call in calls(folder))


def test_failed_detectron2_can_be_resumed(folder: Path) -> None:
    assert errors(make(folder, "demo", fail="install_detectron2")) == ["pip-reason"]
    assert make(folder, "demo").returncode == 0
    assert calls(folder)[-2:] == ["tools/install_detectron2.py", "tools/demo.py"]


def test_environment_without_a_working_python(folder: Path) -> None:
    (folder / ".venv").mkdir()
    (line,) = errors(make(folder, "install"))
    assert "make clean" in line and (folder / ".venv").exists()


def test_help_names_every_target(folder: Path) -> None:
    text = make(folder, "help").stdout
    assert all(f"make {target} " in text for target in ["demo", "test", "lint", "install", "clean"])
    assert make(folder).stdout == text


def test_clean_leaves_results(folder: Path) -> None:
    make(folder, "install")
    (folder / "output").mkdir()
    assert make(folder, "clean").returncode == 0
    assert (folder / "output").exists() and not (folder / ".venv").exists()
