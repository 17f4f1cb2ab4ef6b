"""Command lines: the options of all tools, and the commands that pip installs.

This is a separate package because ``import tdos_d2`` loads torch and Detectron2, which takes
seconds: ``--help`` and errors in options do not need them. ``tdos_d2`` is imported only in
functions, after the command line is parsed. OpenMP's settings are made here, as it reads them when
torch is loaded.
"""

from __future__ import annotations

import runpy
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

# Run by its path, as importing any module of tdos_d2 loads torch first.
_cores = runpy.run_path(str(Path(__file__).parents[1] / "tdos_d2" / "cores.py"))
usable_cores, threads_are_users = _cores["usable_cores"], _cores["threads_are_users"]
_cores["settle_openmp"]()
# torch warns of how Detectron2 compiles when it is imported. Tools, and processes of a training,
# import Detectron2 before tdos_d2, which ignores that warning too.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


def exit_with_one_line(function: Callable[[], object]) -> None:
    """Call ``function``; a UserError becomes ``error: ...`` on stderr and exit status 2.

    SIGINT (Ctrl-C) ends the process with status 130 and without a traceback.
    """
    try:
        function()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except ValueError as error:  # also a UserError, in which case tdos_d2 has been loaded
        from tdos_d2 import errors

        errors.exit_with_one_line(partial(_raise, error))


def _raise(error: Exception) -> NoReturn:
    raise error
