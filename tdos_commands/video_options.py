"""Options of tools/predict.py for videos and image sequences."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from . import options


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
        default="off",
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
        default=1,
        metavar="N",
        help="take every N-th frame of a video",
    )
    add(
        "--start",
        type=seconds,
        default=0.0,
        metavar="TIME",
        help="begin a video here: seconds, or [hours:]minutes:seconds",
    )
    add("--end", type=seconds, default=math.inf, metavar="TIME",
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
