"""The wheel: built without a network, unpacked elsewhere, used from outside the checkout."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["tdos_d2", "tdos_commands"]
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", *PACKAGES, "configs"]
# What a user of the installed package does first.
USE = """
import tdos_d2
from tdos_d2.engine import load_config
import tdos_d2.ood_words.mining  # reads its rules
from tdos_d2.ood_words import load_groups
print(tdos_d2.__file__)
print(tdos_d2.get_config_file("tdos_vitb.yaml"))
print(load_config("configs/camvid/tdos_tiny.yaml").MODEL.META_ARCHITECTURE)
print(len(load_groups("cityscapes").words))
"""
# Calls each name=module:function, as the scripts do that pip writes.
HELP = """
import contextlib, importlib, sys
for script in sys.argv[1:]:
    name, target = script.split("=")
    module, function = target.split(":")
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit):
        getattr(importlib.import_module(module), function)()
print("loaded:", sorted({"torch", "detectron2"} & sys.modules.keys()))
"""



def can_build() -> bool:
    """Whether pip and something that makes wheels are there: no network is needed then."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        return False
    if importlib.util.find_spec("wheel"):
        return True
    # From its metadata: importing setuptools would change distutils for this process.
    return [int(n) for n in metadata.version("setuptools").split(".")[:2]] >= [70, 1]


pytestmark = pytest.mark.skipif(
    not can_build(),
    reason="building a wheel without a network needs pip, and setuptools >= 70.1 or wheel",
)


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content; the checkout's folder gets no build/ and no egg-info."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("tdos_d2-*.whl")
    target = folder / "installed"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    shutil.rmtree(source)
    return target


def run(installed: Path, folder: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**env, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # a guard against hanging, not a measure
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_configs_and_words_are_inside(installed, tmp_path):
    package, config, architecture, words = run(installed, tmp_path, "-c", USE).splitlines()
    assert Path(package).is_relative_to(installed)
    assert config == str(installed / "tdos_d2" / "configs" / "tdos_vitb.yaml")
    assert architecture == "TDOS" and int(words) > 1000


def test_nothing_is_lost_and_nothing_strays(installed):
    given = {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    configs = installed / "tdos_d2" / "configs"
    assert {p.relative_to(configs) for p in configs.rglob("*.yaml")} == given
    there, sources = (
        {p.relative_to(top) for name in PACKAGES for p in (top / name).rglob("*") if p.is_file()}
        for top in (installed, ROOT)
    )
    there = {p for p in there if p.parts[1] != "configs"}
    assert {p for p in there ^ sources if p.suffix != ".pyc"} == set()
    (info,) = installed.glob("tdos_d2-*.dist-info")
    assert list(info.rglob("LICENSE"))
    assert {p.name for p in installed.iterdir()} <= {*PACKAGES, info.name, "bin"}


def test_commands(installed, tmp_path):
    (info,) = installed.glob("tdos_d2-*.dist-info")
    entries = configparser.ConfigParser()
    entries.read(info / "entry_points.txt")
    scripts = dict(entries["console_scripts"])
    verbs = ("train", "evaluate", "predict", "calibrate", "app")
    assert set(scripts) == {f"tdos-{verb}" for verb in verbs}
    assert {path.name for path in (installed / "bin").iterdir()} == set(scripts)
    text = run(installed, tmp_path, "-c", HELP, *(f"{k}={v}" for k, v in scripts.items()))
    for name in scripts:
        assert f"usage: {name}" in text
    assert text.endswith("loaded: []\n")
