"""Several processes: the cause of a failure is what the user reads."""

from __future__ import annotations

import os
import signal
import time
from argparse import Namespace

import pytest
import torch
from detectron2.utils import comm
from two_machines import run_on_two_machines

from tdos_d2.engine.launch import launch_job
from tdos_d2.errors import UserError, exit_with_one_line, user_message


def args(num_gpus: int) -> Namespace:
    return Namespace(num_gpus=num_gpus, num_machines=1, machine_rank=0, dist_url="auto")


def fail(args: Namespace, cfg) -> None:
    """Process 1 fails; process 0 only because process 1 is gone."""
    if comm.get_rank() == 1:
        raise OSError("the cause")
    comm.synchronize()


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo only")
def test_the_first_failure_is_reported(forked_processes, tiny_cfg):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        launch_job(fail, args(2), tiny_cfg)
    assert str(caught.value).strip().splitlines()[-1] == "OSError: the cause"


def die(args: Namespace, cfg) -> None:
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def be_silent(args: Namespace, cfg) -> None:
    if comm.get_rank() == 1:
        time.sleep(600)
    comm.synchronize()


def lose_a_worker(args: Namespace, cfg) -> None:
    loader = torch.utils.data.DataLoader(Killed(), num_workers=1)
    for _ in loader:
        comm.synchronize()


class Killed(torch.utils.data.Dataset):
    """Its worker is killed as for want of memory: in process 1 if there are two."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index == 1 and comm.get_rank() == comm.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo only")
@pytest.mark.parametrize(
    ("main", "processes", "cause"),
    [
        (die, 2, "process 1 was killed by SIGKILL, often for want of memory"),
        (be_silent, 2, "did not answer the others within SOLVER.PROCESS_TIMEOUT"),
        (lose_a_worker, 1, "fewer DATALOADER.NUM_WORKERS"),
        (lose_a_worker, 2, "fewer DATALOADER.NUM_WORKERS"),
    ],
)
def test_all_end_when_one_fails(forked_processes, tiny_cfg, main, processes, cause):
    """With the cause, and nothing is left running."""
    if main is be_silent:
        tiny_cfg.SOLVER.PROCESS_TIMEOUT = 5
    before, start = set(torch.multiprocessing.active_children()), time.monotonic()
    with pytest.raises(UserError, match=cause):
        launch_job(main, args(processes), tiny_cfg)
    assert time.monotonic() - start < 60
    assert set(torch.multiprocessing.active_children()) <= before


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo only")
def test_the_other_machine_ends_too(tiny_cfg):
    assert run_on_two_machines(die, tiny_cfg) == [1, 1]


def user_error(args: Namespace, cfg) -> None:
    raise UserError("no such file x")


def test_one_line_and_status(capsys, tiny_cfg):
    with pytest.raises(SystemExit) as caught:
        exit_with_one_line(lambda: launch_job(user_error, args(1), tiny_cfg))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such file x\n"


def test_message_of_a_traceback():
    text = "Traceback (most recent call last):\n  File ...\ntdos_d2.errors.UserError: no file x\n"
    assert user_message(text) == "no file x"
    assert user_message("Traceback:\nValueError: y") is None
    assert "--dist-url" in user_message("torch: ..., name: EADDRINUSE, message: in use")
    old = "AssertionError: cuda is not available. Please check your installation."
    assert "--num-gpus 1" in user_message(old)
