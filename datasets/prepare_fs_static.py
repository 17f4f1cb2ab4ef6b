#!/usr/bin/env python
"""Prepare Fishyscapes Static validation (fs_static_v1_val, _v2_, _v3_): 30 frames of 2048x1024.

For licence reasons the download has no images: it contains labels and overlays, which this script
adds to Cityscapes' images. Reads, below the root,

  fs_val_v2.zip   or the folder fs_val_v2: <n>_<cityscapes id>_labels.png and ..._rgb.npz
  cityscapes      leftImg8bit/val/<city>/<cityscapes id>_leftImg8bit.png

and writes fs_static_v2/{images,labels}/<n>_<cityscapes id>.png. The three versions are different
data: objects are not blended in v1 (March 2019) and are in v2 (June 2019); v3 (January 2020) adds
Cityscapes' own objects as negatives. Name the version with your results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import _common as common
import numpy as np

# As published with the benchmark's own loader.
_SHA256 = {
    "fs_val_v1.zip": "47060202a0eb0af1273046a679956661dc47ff1479253bfc0bcbb7a980831211",
    "fs_val_v2.zip": "bb11f288ae0347c42da09b9ea1a40d8df967a5091e4193b6f7014cbd97564d16",
    "fs_val_v3.zip": "3813994ccb73645d28aa53946646a03d859dbeb9a2d31ad7233e45db00878b8f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images and labels that do not exist yet."""
    parser = common.argument_parser(__doc__, cityscapes=True)
    parser.add_argument(
        "--version", type=int, choices=(1, 2, 3), default=2, help="version (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    name = f"fs_val_v{args.version}"
    source = common.find_source(args.root, [f"{name}.zip", name], args.source, f"{name}.zip")
    cityscapes = common.find_cityscapes(args)
    output = args.output or args.root / f"fs_static_v{args.version}"
    common.check_output(output, source, cityscapes)
    common.check_made_of(output, name, is_default=args.output is None)
    common.check_archive(source, _SHA256, f"{name}.zip")
    files = common.open_source(source, "_labels.png", "_rgb.npz")
    ids = common.fishyscapes_ids(files)
    missing = [f"{stem}_rgb.npz" for stem in ids if f"{stem}_rgb.npz" not in files]
    common.check_complete(missing, len(ids), f"overlays of {source}")
    images = common.find_images(cityscapes, ("val", "train", "test"), list(ids.values()))
    jobs = []
    for stem, image in zip(ids, images, strict=True):
        overlay = f"{stem}_rgb.npz"
        blend = partial(_write_sum, image, files[overlay], f"{source}: {overlay}")
        jobs.append(common.Job(output / "images" / f"{stem}.png", blend))
        copy = partial(common.write_bytes, files[f"{stem}_labels.png"])
        jobs.append(common.Job(output / "labels" / f"{stem}.png", copy))
    common.write_missing(jobs, output, args)
    if not args.dry_run:
        common.note_made_of(output, name)


def add_overlay(image: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """The sum, computed with signed integers and clipped to 0..255, as in the benchmark's loader.

    Args:
        image: (H, W, 3) uint8.
        overlay: (H, W, 3) differences, positive and negative.

    Returns:
        (H, W, 3) uint8.
    """
    return np.clip(image.astype(np.int32) + overlay.astype(np.int32), 0, 255).astype(np.uint8)


def _write_sum(image: Path, overlay: Callable[[], bytes], name: str, path: Path) -> None:
    base = common.read_rgb(image)
    difference = common.read_array(overlay, "rgb", name)
    if difference.shape != base.shape:
        raise common.PrepareError(f"{name} has shape {difference.shape}, but {image} {base.shape}")
    common.save_png(add_overlay(base, difference), path)


if __name__ == "__main__":
    common.run_main(main)
