"""train_net.py, tdos-train and tdos-evaluate: Detectron2's options of training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import exit_with_one_line, options

_DESCRIPTION = "Train or evaluate TDOS with Detectron2's usual flags and KEY VALUE pairs."
_EPILOG = """\
examples:
  train_net.py --config-file configs/demo.yaml
  train_net.py --config-file configs/tdos_vitb.yaml --num-gpus 4 --resume
  train_net.py --config-file configs/tdos_vitb.yaml --eval-only MODEL.WEIGHTS model.pth

exit status:
  0 = done; 1 = results are not TEST.EXPECTED_RESULTS, or a bug; 2 = an error, in one line;
  143 or 130 = ended by SIGTERM or SIGINT with a checkpoint, --resume goes on from it
"""


def main() -> None:
    """train_net.py and tdos-train: train, or evaluate with ``--eval-only``."""
    exit_with_one_line(run)


def evaluate() -> None:
    """tdos-evaluate: train_net.py ``--eval-only``."""
    exit_with_one_line(lambda: run(eval_only=True))


def run(argv: Sequence[str] | None = None, *, eval_only: bool = False) -> None:
    """Train or evaluate with the options of the command line; errors as of ``train_command.run``.

    Args:
        argv: the arguments of the command line; None: those of this process.
        eval_only: evaluate even without ``--eval-only`` on the command line.
    """
    args = parser().parse_args(argv)
    args.eval_only = args.eval_only or eval_only
    from tdos_d2.engine import train_command

    train_command.run(args)


def parser() -> options.Parser:
    """Options, names and defaults of ``detectron2.engine.default_argument_parser``.

    Detectron2's function imports torch, which takes seconds.
    """
    made = options.Parser(description=_DESCRIPTION, epilog=_EPILOG)
    add = made.add_argument
    add("--config-file", type=options.config_file, default="", metavar="FILE",
        help="config of the run")
    add("--resume", action="store_true",
        help="go on with the run in OUTPUT_DIR, or start it if there is none; with --eval-only: "
        "evaluate its last checkpoint")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, no training")
    add("--num-gpus", type=options.whole(1), default=1, metavar="N",
        help="processes on each machine, a GPU each where there are GPUs (default: 1)")
    add("--num-machines", type=options.whole(1), default=1, metavar="N", help="default: 1")
    add("--machine-rank", type=options.whole(0), default=0, metavar="I",
        help="number of this machine, from 0 (default: 0)")
    add("--dist-url", default=f"tcp://127.0.0.1:{_port()}", metavar="URL",
        help="where the processes meet: address and port of machine 0, or auto on one machine "
        "(default: %(default)s)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="changes to the config, last on the line")
    return made  # fmt: skip


def _port() -> int:
    """A port that is always the same for a user, so that leftover processes are noticed."""
    user = os.getuid() if sys.platform != "win32" else 1
    return 2**15 + 2**14 + user % 2**14
