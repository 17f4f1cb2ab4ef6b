"""How many cores a process may use, and what that means for OpenMP."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from tdos_d2 import cores

ROOT = Path(__file__).parents[1]
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        # A parent may have the smaller one.
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 25000"}, 2),
        # In a container the path can be the host's, and the mount the container's own.
        ("0::/docker/1", {"cpu.max": "300000 100000"}, 3),
        (
            "5:cpuset:/x\n4:cpu,cpuacct:/a\n0::/",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ("0::/", {}, math.inf),
    ],
)
def test_quota_of_a_cgroup(tmp_path, membership, files, quota):
    write(tmp_path / "cgroup", membership)
    for name, text in files.items():
        write(tmp_path / "mount" / name, text)
    assert cores.cgroup_quota(tmp_path / "mount", tmp_path / "cgroup") == quota
    assert cores.cgroup_quota(tmp_path / "mount", tmp_path / "no_cgroups") == math.inf


@pytest.mark.parametrize(("quota", "usable"), [(0.5, 1), (1.5, 2), (5, 3), (math.inf, 3)])
def test_affinity_and_quota_limit_cores(monkeypatch, quota, usable):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert cores.usable_cores() == usable


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 1.0)
    environ: dict[str, str] = {}
    cores.settle_openmp(environ)
    assert environ.items() >= {**PASSIVE, "OMP_NUM_THREADS": "1"}.items()
    assert not cores.threads_are_users(environ)
    for given in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environ = {**given, "OMP_NUM_THREADS": "3"}
        cores.settle_openmp(environ)
        assert environ == {**given, "OMP_NUM_THREADS": "3"}
        assert cores.threads_are_users(environ)


def test_commands_wait_passively_before_torch_is_there():
    code = "import os, sys, tdos_commands; print('torch' in sys.modules, dict(os.environ))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    )
    loaded, environ = done.stdout.split(" ", 1)
    assert loaded == "False" and PASSIVE.items() <= eval(environ).items()
