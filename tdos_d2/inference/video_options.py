"""The options of tools/predict.py for videos and image sequences."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .sources import IMAGES, Span, live_source
from .tracking import AlarmRule, ObjectTracker
from .video_prediction import VideoOptions


def video_options(args: argparse.Namespace) -> VideoOptions:
    """The video options on the command line.

    Raises:
        UserError: options contradict each other; norfair is needed but not installed.
    """
    if args.alarm and not args.events:
        raise UserError("--alarm needs --events")
    if not args.start < args.end:
        raise UserError("--end must be after --start")
    usual = {"temporal": VideoOptions().temporal, **dataclasses.asdict(Span())}
    changed = [f"--{name}" for name, value in usual.items() if getattr(args, name) != value]
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
        ObjectTracker(rule)  # fails before the model is loaded if norfair is missing
    return VideoOptions(args.temporal, rule, Span(args.every, args.start, args.end), args.sequence)


def _only_images(given: Sequence[str], suffixes: set[str]) -> bool:
    return all(Path(word).suffix.lower() in suffixes for word in given)
