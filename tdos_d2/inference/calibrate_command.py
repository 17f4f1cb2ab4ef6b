"""Implementation of tools/calibrate.py: a threshold from normal frames, with a guarantee."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import read_image
from ..data.reading import read_values
from ..errors import UserError, printable
from ..evaluation.calibration import (
    alarm_level,
    calibrate,
    calibration_file,
    check_frames,
    save_calibration,
)
from ..files import check_output, fingerprint, short_fingerprint
from ..loading.checkpoint import read_checkpoint_info
from ..loading.config_files import load_config, local_weights, use_shipped_weights
from .media import normal_frames
from .objects import default_min_area
from .predictor import OODPredictor


def run(args: argparse.Namespace) -> None:
    """Calibrate with the options of tools/calibrate.py.

    Raises:
        UserError: an option, the model or a frame is invalid.
        SystemExit: 1 = some frames could not be read.
    """
    if args.output:
        check_output(args.output, "--output")
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        use_shipped_weights(cfg, args.config_file)
        if not args.output:
            raise UserError(
                "--output: name a file for the threshold, which is not written beside weights that "
                "ship; predict.py --threshold takes it"
            )
    weights = local_weights(cfg)
    if weights is None:
        raise UserError("MODEL.WEIGHTS is an address: name the file of a checkpoint")
    output = args.output or calibration_file(weights)
    check_output(output, "MODEL.WEIGHTS")
    files = normal_frames(args.images, args.dataset)
    check_frames(len(files), args.false_alarm_rate)
    _check_memory(files, weights)
    ego_mask = None if args.ego_mask is None else read_values(args.ego_mask, "ego mask") != 0
    predictor = OODPredictor(cfg, half=not args.full_precision)
    for note in predictor.notes:
        print(note, file=sys.stderr)
    if args.dataset in cfg.DATASETS.TRAIN:
        print(
            f"warning: {args.dataset} is in DATASETS.TRAIN: if the model was trained on these "
            "frames, new ones raise more alarms than promised",
            file=sys.stderr,
        )
    levels, areas, failed = alarm_levels(predictor, files, args.min_area, ego_mask)
    made = replace(
        calibrate(levels, args.false_alarm_rate, max(areas, default=1)),
        by_frame=args.min_area is None,
        score=predictor.score,
        source=args.dataset or str(args.images),
        ego_mask=args.ego_mask and fingerprint(args.ego_mask),
        settings=predictor.settings,
    )
    save_calibration(weights, made, output)
    alarms = int((np.asarray(levels) >= made.threshold).sum())
    print(f"{output}: threshold {made.threshold:g} for {made.score}")
    print(f"at it {alarms} of the {made.frames} frames have an object; {made.promise()}")
    if failed:
        print(f"{failed} frames could not be read, and were left out", file=sys.stderr)
        sys.exit(1)


def _check_memory(files: Sequence[str], weights: Path) -> None:
    """Raise UserError if the memory was fitted to one of the frames: it knows them too well."""
    known = set(read_checkpoint_info(weights).get("memory_frames", ()))
    seen = [file for file in files if short_fingerprint(file) in known] if known else []
    if seen:
        raise UserError(
            f"{len(seen)} of the {len(files)} frames are in the memory of {weights}, such as "
            f"{seen[0]}: new frames would raise more alarms than promised; name other frames"
        )


def alarm_levels(
    predictor: OODPredictor,
    files: Sequence[str],
    min_area: int | None,
    ego_mask: np.ndarray | None = None,
) -> tuple[list[float], list[int], int]:
    """The alarm level of each readable frame; unreadable frames are named on standard error.

    Args:
        predictor: the model.
        files: the frames.
        min_area: smallest object in pixels; None: by the size of the frame, as in prediction.
        ego_mask: (H, W) bool, True on the ego vehicle; None: no mask.

    Returns:
        The levels, the smallest object in pixels per frame, and the number of unreadable frames.

    Raises:
        UserError: the mask has another size, a frame is too small for an object, or the model gives
            NaN or infinity.
    """
    levels, areas, failed = [], [], 0
    valid = None if ego_mask is None else ~ego_mask
    for file in (bar := tqdm(files, desc="Calibrating", unit="frame")):
        try:
            image = read_image(file, "BGR")
        except (UserError, OSError) as error:
            failed += 1
            bar.write(printable(f"left out: {file}: {error}"), file=sys.stderr)
            continue
        shape = image.shape[:2]
        if valid is not None and valid.shape != shape:
            there = f"{valid.shape[1]}x{valid.shape[0]}"
            raise UserError(f"{file} is {shape[1]}x{shape[0]}, but --ego-mask is {there}")
        smallest = min_area or default_min_area(shape)
        level = alarm_level(predictor(image)["ood_score"], smallest, valid)
        if np.isinf(level):
            raise UserError(f"--min-area: {file} has no room for an object of {smallest} pixels")
        levels.append(level)
        areas.append(smallest)
    return levels, areas, failed
