"""The exception for users' errors, and how commands report it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

_MARK = "UserError: "
_LONGEST = 2000  # characters of a message
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
OTHER_IS_GONE = "another process of this run is gone: the last line on its machine says why"
# Errors in tracebacks that users can fix.
_KNOWN = {
    "cuda is not available. Please check your installation": (
        "this Detectron2 starts several processes on GPUs only: use --num-gpus 1"
    ),
    "EADDRINUSE": (
        "the port of --dist-url is taken by another run, or by what is left of one: end that run "
        "or use --dist-url auto"
    ),
    "DataLoader worker (pid": (
        "a process that loads data was killed, often for want of memory: fewer "
        "DATALOADER.NUM_WORKERS take less"
    ),
    "onnection closed by peer": OTHER_IS_GONE,
    "onnection reset by peer": OTHER_IS_GONE,
    "Timed out waiting": (
        "a process did not answer the others within SOLVER.PROCESS_TIMEOUT seconds: see what it "
        "was doing in its OUTPUT_DIR/log.txt.rank*"
    ),
}


class UserError(ValueError):
    """An error in the user's input, with a message of one line that names the file or config key.

    ``train_net.py`` and the tools print it as ``error: ...`` and exit with status 2.
    :func:`printable` keeps it one line even if file names contain line breaks.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if _MARK in text and "\n" in text:  # from a dataloader worker, with its traceback
            text = text.strip().rpartition(_MARK)[2]
        cut = f"{text[:_LONGEST]} ..." if len(text) > _LONGEST else text
        super().__init__(printable(cut))


def printable(text: object) -> str:
    """Text for a terminal: control characters (escapes, line breaks, changes of direction), and
    bytes of names that are not UTF-8 and cannot be printed, in ``\\x1b`` notation."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


class OutputUserError(UserError, OSError):
    """A file cannot be written completely: the disk is full, or the file would be too large."""

    def __str__(self) -> str:
        return str(self.args[0])  # OSError's own text has number and name


def output_error(error: BaseException, path: str | os.PathLike) -> OutputUserError | None:
    """The error for users if a full disk caused ``error``; else None.

    Args:
        error: the exception raised while ``path`` was written to. (torch.save raises a RuntimeError
            if its file cannot be written to.)
        path: a file, or the folder that has it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutputUserError):
            return cause
        # NumPy's error has no number: "10000 requested and 1218 written".
        short = isinstance(cause, OSError) and " requested and " in str(cause)
        if short or (isinstance(cause, OSError) and cause.errno in _FULL):
            reason = "the disk is full" if short else cause.strerror
            made = OutputUserError(f"cannot write {cause.filename or path}: {reason}")
            made.errno, made.strerror = cause.errno or errno.ENOSPC, reason
            return made
        cause = cause.__cause__ or cause.__context__
    return None


def exit_with_one_line(function: Callable[[], object]) -> None:
    """Call ``function``; a UserError becomes ``error: ...`` on stderr and exit status 2."""
    try:
        function()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {user_message(f'{_MARK}{error}')}", file=sys.stderr)
        sys.exit(2)


def user_message(text: str) -> str | None:
    """The message of the last UserError in a traceback, or None if another exception caused it.

    Dataloader workers and child processes pass exceptions on as text.
    """
    last = text.strip().splitlines()[-1]
    for symptom, message in _KNOWN.items():
        if symptom in last:
            return message
    return last.rpartition(_MARK)[2] if _MARK in last else None
