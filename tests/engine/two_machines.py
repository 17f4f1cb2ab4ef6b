"""Two machines with a process each, on this computer, with Detectron2's flags."""

from __future__ import annotations

import functools
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from tdos_d2.engine.launch import launch_job
from tdos_d2.errors import UserError


def run_on_two_machines(main: Callable[..., object], *args: Any) -> list[int | None]:
    """Call ``main(flags, *args)`` in the process of each; exit codes, None: not within a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    machines = [context.Process(target=_machine, args=(i, port, main, args)) for i in (0, 1)]
    for process in machines:
        process.start()
    for process in machines:
        process.join(60)
    return [process.exitcode for process in machines]


def _machine(rank: int, port: int, main: Callable[..., object], args: tuple[Any, ...]) -> None:
    flags = Namespace(
        num_gpus=1, num_machines=2, machine_rank=rank, dist_url=f"tcp://127.0.0.1:{port}",
        resume=False, eval_only=False,
    )  # fmt: skip
    start = torch.multiprocessing.start_processes  # spawned, they would import torch once more
    torch.multiprocessing.start_processes = functools.partial(start, start_method="fork")
    try:
        launch_job(main, flags, *args)
    except UserError as error:
        sys.exit(str(error))
