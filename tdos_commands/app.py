"""tools/app.py and tdos-app: options of the web page for trying models."""

from __future__ import annotations

from collections.abc import Sequence

from . import exit_with_one_line, options

_DESCRIPTION = """\
Open a page to try models on: drop an image or a short video, see score, objects and segmentation,
move the threshold, ask for words, take mask, raw score and JSON with you.

The models that ship with the project are in its list, and those of --model before them: own
checkpoints are named here rather than on the page, because a config or checkpoint can run code.
Needs gradio, the extra "app".

Whoever reaches the address can use the page: it has no password. By default that is this machine
only. Nothing is sent anywhere; what was uploaded is deleted after an hour, and when the page ends.
"""
_EPILOG = """\
examples:
  python tools/app.py
  python tools/app.py --model configs/demo.yaml output/demo/model_final.pth
"""


def main() -> None:
    """The command."""
    exit_with_one_line(run)


def run(argv: Sequence[str] | None = None) -> None:
    """Serve the page with the options of the command line; errors as of ``app.page.run``."""
    args = parser().parse_args(argv)
    from tdos_d2.inference.app import page

    page.run(args)


def parser() -> options.Parser:
    """The command line of tools/app.py."""
    made = options.Parser(description=_DESCRIPTION, epilog=_EPILOG)
    add = made.add_argument
    add("--model", type=options.path_text, nargs=2, action="append", default=[],
        metavar=("CONFIG", "CHECKPOINT"), help="model to offer; can be given several times")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=options.whole(1, 65535), default=7860, help="default: %(default)s")
    add("--max-upload", type=options.whole(1), default=50, metavar="MIB",
        help="largest file that is taken (default: %(default)s)")
    add("--max-seconds", type=options.number(0.1), default=20.0, metavar="S",
        help="longest video that is taken (default: %(default)s)")
    add("--full-precision", action="store_true", help="no half precision on a GPU")
    add("opts", nargs="*", metavar="KEY VALUE",
        help="changes to the configs of all models, last on the line, such as MODEL.DEVICE cpu")
    return made  # fmt: skip
