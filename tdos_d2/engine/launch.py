"""Launch of the processes, with errors reported in one line."""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..cores import threads_are_users, usable_cores
from ..errors import OTHER_IS_GONE, UserError, output_error, user_message
from ..loading.config_files import register_datasets
from .preemption import exit_if_asked, signals_wait


def launch_job(main: Callable[..., object], args: Namespace, cfg: CfgNode, *more: object) -> None:
    """Run ``main(args, cfg, *more)`` in every process that ``args`` requests.

    Raises:
        UserError: raised by a process, with its message.
        SystemExit: a process exited, for example because results were not as expected. The status
            is 143 or 130 for a training ended by SIGTERM or SIGINT.
    """
    several = args.num_gpus * args.num_machines > 1
    try:
        with signals_wait(hand_on=True) if several else nullcontext():
            launch(
                _worker,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, cfg, *more),
                timeout=timedelta(seconds=cfg.SOLVER.PROCESS_TIMEOUT),
            )
            if several:
                exit_if_asked()
    except ProcessRaisedException as error:
        message = user_message(str(error))
        if message is None:
            raise
        raise UserError(message) from error
    except ProcessExitedException as error:
        if error.exit_code < 0:
            exit_if_asked()  # a signal before the training began
            raise UserError(
                f"process {error.error_index} was killed by {error.signal_name}"
                + (", often for want of memory" if error.signal_name == "SIGKILL" else "")
            ) from error
        sys.exit(error.exit_code)


def _worker(main: Callable[..., object], args: Namespace, cfg: CfgNode, *more: object) -> None:
    num_processes = comm.get_local_size()
    if num_processes > 1 and not torch.cuda.is_available() and not threads_are_users():
        # Otherwise each process starts a thread per core.
        torch.set_num_threads(max(1, usable_cores() // num_processes))
    register_datasets(cfg)  # again: a new process has only the built-in datasets
    # The trainer logs exceptions with their traceback; a UserError needs none.
    logging.getLogger("detectron2.engine.train_loop").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], UserError))
    )
    try:
        main(args, cfg, *more)
    except UserError:
        raise
    except Exception as error:
        if full := output_error(error, cfg.OUTPUT_DIR):  # raised by writing logs or events
            raise full from error
        known = user_message(str(error) or "-")
        if comm.get_world_size() > 1 and (known is None or known is OTHER_IS_GONE):
            # This process may fail only because another one ended. The wait lets the launcher
            # detect and report the process that failed first.
            time.sleep(3)
        if known is not None:
            raise UserError(known) from error
        raise
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()
