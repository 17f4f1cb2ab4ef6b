"""The one exception that is meant for users, and how commands end with it."""

from __future__ import annotations

import sys
from collections.abc import Callable

_MARK = "UserError: "
_LONGEST = 2000  # characters of a message
# Ends of tracebacks that users can do something about.
_KNOWN = {
    "cuda is not available. Please check your installation": (
        "this Detectron2 starts several processes on GPUs only: use --num-gpus 1"
    ),
    "EADDRINUSE": (
        "the port of --dist-url is taken by another run, or by what is left of one: end that run "
        "or use --dist-url auto"
    ),
}


class UserError(ValueError):
    """Something the user gave is wrong: the message is one line naming the file or config key.

    ``train_net.py`` and the tools print it as ``error: ...`` and exit with status 2. Whatever is in
    the names of files, :func:`printable` keeps it one line.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        cut = f"{text[:_LONGEST]} ..." if len(text) > _LONGEST else text
        super().__init__(printable(cut))


def printable(text: object) -> str:
    """Text for a terminal: what steers it (escapes, line ends, changes of direction) in ``\\x1b``
    notation. So are bytes of a name that are not UTF-8, which could not be printed at all."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def exit_with_one_line(function: Callable[[], object]) -> None:
    """Call ``function``; a UserError becomes ``error: ...`` on stderr and exit status 2."""
    try:
        function()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {user_message(f'{_MARK}{error}')}", file=sys.stderr)
        sys.exit(2)


def user_message(text: str) -> str | None:
    """The message of the last UserError in a traceback, or None if its cause is another one.

    Data loader workers and child processes hand on exceptions as text.
    """
    last = text.strip().splitlines()[-1]
    for symptom, message in _KNOWN.items():
        if symptom in last:
            return message
    return last.rpartition(_MARK)[2] if _MARK in last else None
