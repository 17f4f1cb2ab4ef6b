"""Options of tools/predict.py that are about frames in order. Light: --help needs no more."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import options
from ..errors import UserError

if TYPE_CHECKING:
    from .video_prediction import VideoOptions

_DEFAULTS = {"temporal": "off", "every": 1, "start": 0.0, "end": math.inf}


def add_video_options(add: Callable[..., Any]) -> None:
    """Add the options to a parser (its ``add_argument``)."""
    add(
        "--sequence",
        type=options.number(0.001),
        metavar="FPS",
        help="the images of a folder are the frames of one video, FPS per second, in the order of\n"
        "the numbers in their names (2 before 10)",
    )
    add(
        "--temporal",
        choices=["off", "ema", "flow"],
        default=_DEFAULTS["temporal"],
        help="scores of a video: of each frame alone, its moving average, or the average moved\n"
        "along the optical flow (default: off)",
    )
    add(
        "--events",
        action="store_true",
        help="track the objects of a video; those that raise the alarm are in events.csv and\n"
        "events.html (needs the extra: video)",
    )
    add(
        "--alarm",
        type=options.whole(1),
        nargs=3,
        metavar=("N", "M", "K"),
        help="alarm for an object that was seen in N of the last M frames, off when it was not\n"
        "seen in more than K frames in a row (default: 3 5 5)",
    )
    add(
        "--every",
        type=options.whole(1),
        default=_DEFAULTS["every"],
        metavar="N",
        help="take every N-th frame of a video",
    )
    add(
        "--start",
        type=seconds,
        default=_DEFAULTS["start"],
        metavar="TIME",
        help="begin a video here: seconds, or [hours:]minutes:seconds",
    )
    add("--end", type=seconds, default=_DEFAULTS["end"], metavar="TIME",
        help="and end before this time; of a live input, after so much time")  # fmt: skip


def seconds(text: str) -> float:
    """Type of options that are times: 90, 1:30 and 0:01:30.0 are the same."""
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d*)?", text, re.ASCII):
        message = f"seconds or [hours:]minutes:seconds are needed, not '{text}'"
        raise argparse.ArgumentTypeError(message)
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def video_options(args: argparse.Namespace) -> VideoOptions:
    """What was chosen.

    Raises:
        UserError: options that make no sense together; norfair is needed and not installed.
    """
    from .sources import IMAGES, Span, live_source
    from .tracking import AlarmRule, ObjectTracker
    from .video_prediction import VideoOptions

    if args.alarm and not args.events:
        raise UserError("--alarm needs --events")
    if not args.start < args.end:
        raise UserError("--start is before --end")
    changed = [f"--{name}" for name, usual in _DEFAULTS.items() if getattr(args, name) != usual]
    changed += ["--events"] * args.events
    if changed and args.sequence is None and _only_images(args.input, IMAGES):
        raise UserError(f"{changed[0]} is for frames in order: name a video, or use --sequence")
    live = [word for word in args.input if live_source(word) is not None]
    if live and args.start:
        raise UserError("--start: a live input begins now")
    if live and (args.format or args.select):
        raise UserError("--format and --select read videos twice: record a live input first")
    rule = AlarmRule(*(args.alarm or ())) if args.events else None
    if rule:
        ObjectTracker(rule)  # what is missing is missing before the model is loaded
    return VideoOptions(args.temporal, rule, Span(args.every, args.start, args.end), args.sequence)


def _only_images(given: Sequence[str], suffixes: set[str]) -> bool:
    return all(Path(word).suffix.lower() in suffixes for word in given)
