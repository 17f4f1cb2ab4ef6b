"""Processor cores that this process may use, and settings of OpenMP's threads.

It imports only the standard library, as ``tdos_commands`` loads it before torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path, PurePosixPath

# Set if OMP_NUM_THREADS was set by ``settle_openmp``, not by the user.
_CHOSEN = "TDOS_CHOSE_OMP_NUM_THREADS"


def usable_cores() -> int:
    """Cores of the affinity mask (taskset, SLURM), or of the cgroup's CPU quota if that is less.

    A quota of 1.5 cores counts as 2, since waiting threads do not spin.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota())))


def cgroup_quota(
    mount: str | os.PathLike = "/sys/fs/cgroup",
    membership: str | os.PathLike = "/proc/self/cgroup",
) -> float:
    """The smallest CPU quota in cores of the cgroups that this process is in; inf without one.

    Args:
        mount: folder of cgroup v2, and of the controllers' folders of v1.
        membership: lines ``hierarchy:controllers:path``. In a container the path may be that of
            the host and not exist; then its parents up to the mount are read.
    """
    try:
        lines = Path(membership).read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            place = Path(mount, controllers, folder)
            quotas.append(_quota_v1(place) if controllers else _quota_v2(place))
    return min(quotas)


def _quota_v1(folder: Path) -> float:
    try:
        quota, period = (
            int((folder / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period")
        )
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf  # -1 means no quota


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = map(int, (folder / "cpu.max").read_text().split())
    except (OSError, ValueError):  # "max 100000" means no quota
        return math.inf
    return quota / period if period > 0 else math.inf


def settle_openmp(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, and limit their number to the usable cores.

    It must be called before torch is imported. If other processes are busy, spinning threads take
    time from the threads that they wait for. OpenMP respects the affinity mask by itself, but not a
    quota. Settings by the user are kept.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environ.keys():
        environ["OMP_WAIT_POLICY"] = "passive"
        environ["GOMP_SPINCOUNT"] = "0"
    if "OMP_NUM_THREADS" not in environ and cgroup_quota() < math.inf:
        environ["OMP_NUM_THREADS"] = str(usable_cores())
        environ[_CHOSEN] = "1"


def threads_are_users(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the user has set ``OMP_NUM_THREADS``."""
    return "OMP_NUM_THREADS" in environ and _CHOSEN not in environ
