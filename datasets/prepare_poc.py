#!/usr/bin/env python
"""POC: Cityscapes frames with objects painted in by a diffusion model (poc_cityscapes_coco_train).

The download (https://github.com/naver/poc, data.zip) holds the changed pixels, as differences to
your own Cityscapes images, and labels. Needs, below the root,

  POC_CS_COCO_FT   {leftImg8bit/.../<id>_leftImg8bit_<prompt>.npz, gtFine/.../<same name>.png}
  cityscapes       leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png

and writes POC_CS_COCO_RECONSTRUCTED/{leftImg8bit,gtFine}/<split>/<city>/*.png. With --source, the
other sets made from Cityscapes (POC_CS_ALT_FT, POC_CS_VAL, POC_ANIMAL, ...) go to a folder named
after them. Labels become Cityscapes' train ids 0..18, 255, and 19 for every object that is none of
these classes; the release's id 85 is "train", which is one of them (16).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from _common import (
    Job,
    PrepareError,
    check_complete,
    check_output,
    command_line,
    find,
    find_images,
    list_files,
    make,
    options,
    read_array,
    read_ids,
    read_rgb,
    run,
    save_png,
    translate,
)

OOD = 19
_RELABEL = np.full(256, OOD, np.uint8)
_RELABEL[:OOD] = np.arange(OOD)
_RELABEL[85] = 16
_RELABEL[255] = 255


def main(argv: Sequence[str] | None = None) -> None:
    """Check the sources, then write images and labels that are not there yet."""
    args = _parser().parse_args(argv)
    source = find(args.root, ["POC_CS_COCO_FT"], args.source, "POC_CS_COCO_FT", "--source")
    cityscapes = find(args.root, ["cityscapes"], args.cityscapes, "Cityscapes", "--cityscapes")
    name = source.resolve().name.removesuffix("_FT")
    output = args.output or args.root / f"{name}_RECONSTRUCTED"
    check_output(output, source, cityscapes)
    make(_jobs(source, cityscapes, output), output, args)


def add_difference(image: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The sum modulo 256, which undoes a subtraction of uint8 that wrapped around.

    Args:
        image: (H, W, 3) uint8.
        difference: (H, W, 3) uint8.
    """
    return image + difference


def relabel(label: np.ndarray, name: Path) -> np.ndarray:
    """Train ids with 19 for OOD, from the ids of the release.

    Args:
        label: (H, W) integers 0..255.
        name: for messages.
    """
    return translate(label, _RELABEL, range(256), name)


def _jobs(source: Path, cityscapes: Path, output: Path) -> list[Job]:
    changes = list_files(source / "leftImg8bit", "*/*/*_leftImg8bit_*.npz")
    places = [path.relative_to(source / "leftImg8bit").with_suffix(".png") for path in changes]
    labels = [source / "gtFine" / place for place in places]
    ids = [place.name.partition("_leftImg8bit_")[0] for place in places]
    images = find_images(cityscapes, ("train", "val"), ids)
    what = f"differences leftImg8bit/<split>/<city>/<id>_leftImg8bit_<prompt>.npz in {source}"
    check_complete([], len(changes), what)
    check_complete([str(p) for p in labels if not p.exists()], len(labels), f"labels of {source}")
    jobs = []
    for place, change, label, image in zip(places, changes, labels, images, strict=True):
        restore = partial(_write_sum, image, change)
        jobs.append(Job(output / "leftImg8bit" / place, restore))
        jobs.append(Job(output / "gtFine" / place, partial(_write_label, label)))
    return jobs


def _write_sum(image: Path, change: Path, path: Path) -> None:
    base = read_rgb(image)
    difference = read_array(change, "img", change)
    if difference.shape != base.shape or difference.dtype != np.uint8:
        raise PrepareError(
            f"{change} is {difference.dtype} of shape {difference.shape}, but {image} is uint8 of "
            f"shape {base.shape}"
        )
    save_png(add_difference(base, difference), path)


def _write_label(label: Path, path: Path) -> None:
    save_png(relabel(read_ids(label), label), path)


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__)
    parser.add_argument("--cityscapes", type=options.path, help="Cityscapes, if it lies elsewhere")
    return parser


if __name__ == "__main__":
    run(main)
