"""tools/calibrate.py and tdos-calibrate: options of the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from . import exit_with_one_line, options

_DESCRIPTION = """\
Find a threshold from normal frames alone: no labels, no anomalies.

It promises that a new normal frame from the same source raises an alarm (has an object of
--min-area pixels or more) with probability at most --false-alarm-rate, whatever the model is worth:
split-conformal calibration. It promises nothing about frames of another camera, town or weather,
nothing about what is found, and nothing for frames that training or fit_memory.py has seen: a model
scores those lower than new ones. Neighbouring frames of one video count as one; take frames from
many places.

The threshold is written beside the checkpoint, as <checkpoint>.calibration.json, and predict.py
uses it and says what it promises. Frames that cannot be read are named and left out.
"""
_EPILOG = """\
exit status: 0 = done; 1 = done, but some frames could not be read; 2 = an error, nothing is written

examples:
  python tools/calibrate.py --config-file configs/demo.yaml --images my_drive/ \\
      --false-alarm-rate 0.01 MODEL.WEIGHTS output/demo/model_final.pth
  python tools/calibrate.py --config-file configs/memory_lite2.yaml --dataset camvid_val \\
      --false-alarm-rate 0.05 --min-area 200 MODEL.WEIGHTS memory.pth
  python tools/predict.py --config-file configs/memory_lite2.yaml --input my_images/ \\
      --output out --opts MODEL.WEIGHTS memory.pth
"""


def main() -> None:
    """The command."""
    exit_with_one_line(run)


def run(argv: Sequence[str] | None = None) -> None:
    """Calibrate with the options of the command line; errors as of ``calibrate_command.run``."""
    args = parser().parse_args(argv)
    from tdos_d2.inference import calibrate_command

    calibrate_command.run(args)


def parser() -> options.Parser:
    """The command line of tools/calibrate.py."""
    made = options.Parser(description=_DESCRIPTION, epilog=_EPILOG)
    add = made.add_argument
    add("--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of a TDOS or NormalityMemory")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", type=options.path, metavar="INPUT",
        help="normal frames: a folder with its subfolders, a quoted pattern such as "
        "'drive/**/*.jpg', or a list (.txt) of files and folders",
    )
    source.add_argument("--dataset", metavar="NAME", help="registered dataset; labels are not read")
    add("--false-alarm-rate", type=options.number(0, 1), required=True, metavar="A",
        help="share of normal frames that may raise an alarm; needs 1/A - 1 frames or more")
    add("--min-area", type=options.whole(1), metavar="N",
        help="smallest object in pixels that is an alarm (default: that of predict.py, 100 in a "
        "frame of 1280x720, scaled by area)")
    add("--ego-mask", type=options.path_text, metavar="FILE",
        help="as in predict.py: no objects where this picture is not 0")
    add("--output", type=options.path, metavar="FILE.json",
        help="file to write (default: <checkpoint>.calibration.json, where predict.py looks; "
        "others it takes as --threshold FILE.json; needed for weights that ship)")
    add("--full-precision", action="store_true", help="no half precision on a GPU")
    add("opts", nargs="*", metavar="KEY VALUE",
        help="changes to the config, last on the line; MODEL.WEIGHTS names the checkpoint")
    return made  # fmt: skip
