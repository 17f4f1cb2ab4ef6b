#!/usr/bin/env python
"""Fishyscapes Static validation (fs_static_v1_val, _v2_, _v3_): 30 frames of 2048x1024.

Licences forbid to pass the images on: the download holds labels and overlays, which are added here
to your own Cityscapes images. Needs, below the root,

  fs_val_v2.zip   or the folder fs_val_v2: <n>_<cityscapes id>_labels.png and ..._rgb.npz
  cityscapes      leftImg8bit/val/<city>/<cityscapes id>_leftImg8bit.png

and writes fs_static_v2/{images,labels}/<n>_<cityscapes id>.png. The three versions are different
data: v1 (March 2019) is not blended, v2 (June 2019) is, v3 (January 2020) adds Cityscapes' own
objects as negatives. Say which one you used.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from _common import (
    Job,
    PrepareError,
    check_archive,
    check_complete,
    check_output,
    command_line,
    find,
    find_images,
    make,
    open_source,
    options,
    read_array,
    read_rgb,
    run,
    save_png,
    write_bytes,
)

# As published with the benchmark's own loader.
_SHA256 = {
    "fs_val_v1.zip": "47060202a0eb0af1273046a679956661dc47ff1479253bfc0bcbb7a980831211",
    "fs_val_v2.zip": "bb11f288ae0347c42da09b9ea1a40d8df967a5091e4193b6f7014cbd97564d16",
    "fs_val_v3.zip": "3813994ccb73645d28aa53946646a03d859dbeb9a2d31ad7233e45db00878b8f",
}
_LABEL_NAME = re.compile(r"(\d+)_(.+)_labels\.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Check the sources, then write images and labels that are not there yet."""
    args = _parser().parse_args(argv)
    name = f"fs_val_v{args.version}"
    source = find(args.root, [f"{name}.zip", name], args.source, f"{name}.zip", "--source")
    cityscapes = find(args.root, ["cityscapes"], args.cityscapes, "Cityscapes", "--cityscapes")
    output = args.output or args.root / f"fs_static_v{args.version}"
    check_output(output, source, cityscapes)
    check_archive(source, _SHA256, f"{name}.zip")
    make(_jobs(source, cityscapes, output), output, args)


def add_overlay(image: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """The sum, computed with a sign and cut off at 0 and 255 (as the benchmark's own loader does).

    Args:
        image: (H, W, 3) uint8.
        overlay: (H, W, 3) differences, positive and negative.

    Returns:
        (H, W, 3) uint8.
    """
    return np.clip(image.astype(np.int32) + overlay.astype(np.int32), 0, 255).astype(np.uint8)


def _jobs(source: Path, cityscapes: Path, output: Path) -> list[Job]:
    files = open_source(source)
    labels = sorted(name for name in files if _LABEL_NAME.fullmatch(name))
    stems = [name.removesuffix("_labels.png") for name in labels]
    overlays = [f"{stem}_rgb.npz" for stem in stems]
    check_complete([o for o in overlays if o not in files], len(stems), f"overlays of {source}")
    ids = [_LABEL_NAME.fullmatch(name).group(2) for name in labels]
    images = find_images(cityscapes, ("val", "train", "test"), ids)
    jobs = []
    for stem, label, overlay, image in zip(stems, labels, overlays, images, strict=True):
        blend = partial(_write_sum, image, files[overlay], f"{source}: {overlay}")
        jobs.append(Job(output / "images" / f"{stem}.png", blend))
        jobs.append(Job(output / "labels" / f"{stem}.png", partial(write_bytes, files[label])))
    return jobs


def _write_sum(image: Path, overlay: Callable[[], bytes], name: str, path: Path) -> None:
    base = read_rgb(image)
    difference = read_array(overlay, "rgb", name)
    if difference.shape != base.shape:
        raise PrepareError(f"{name} has shape {difference.shape}, but {image} {base.shape}")
    save_png(add_overlay(base, difference), path)


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__)
    parser.add_argument(
        "--version", type=int, choices=(1, 2, 3), default=2, help="version (default: %(default)s)"
    )
    parser.add_argument("--cityscapes", type=options.path, help="Cityscapes, if it lies elsewhere")
    return parser


if __name__ == "__main__":
    run(main)
