"""Several processes: the cause of a failure is what the user reads."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils import comm

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
def test_the_first_failure_is_reported(forked_processes):
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        launch_job(fail, args(2), get_cfg())
    assert str(caught.value).strip().splitlines()[-1] == "OSError: the cause"


def user_error(args: Namespace, cfg) -> None:
    raise UserError("no such file x")


def test_one_line_and_status(capsys):
    with pytest.raises(SystemExit) as caught:
        exit_with_one_line(lambda: launch_job(user_error, args(1), get_cfg()))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such file x\n"


def test_message_of_a_traceback():
    text = "Traceback (most recent call last):\n  File ...\ntdos_d2.errors.UserError: no file x\n"
    assert user_message(text) == "no file x"
    assert user_message("Traceback:\nValueError: y") is None
    assert "--dist-url" in user_message("torch: ..., name: EADDRINUSE, message: in use")
    old = "AssertionError: cuda is not available. Please check your installation."
    assert "--num-gpus 1" in user_message(old)
