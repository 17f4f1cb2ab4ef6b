#!/usr/bin/env python
"""Prepare POC: Cityscapes frames with objects inpainted by diffusion (poc_cityscapes_coco_train).

The download (https://github.com/naver/poc, data.zip) contains labels and the changed pixels, as
differences to Cityscapes' images. Reads, below the root,

  POC_CS_COCO_FT   {leftImg8bit/.../<id>_leftImg8bit_<prompt>.npz, gtFine/.../<same name>.png}
  cityscapes       leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png

and writes POC_CS_COCO_RECONSTRUCTED/{leftImg8bit,gtFine}/<split>/<city>/*.png. --source also takes
the other POC datasets made from Cityscapes (POC_CS_ALT_FT, POC_CS_VAL, POC_ANIMAL, ...), with an
output folder named after them. Labels become Cityscapes' train ids 0..18, 19 = OOD for objects of
no known class, and 255. The release's id 85 is an inserted "train", a known class (16).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import _common as common
import numpy as np

OOD = 19
_RELABEL = np.full(256, OOD, np.uint8)
_RELABEL[:OOD] = np.arange(OOD)
_RELABEL[85] = 16
_RELABEL[255] = 255


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images and labels that do not exist yet."""
    args = common.argument_parser(__doc__, cityscapes=True).parse_args(argv)
    source = common.find_source(args.root, ["POC_CS_COCO_FT"], args.source, "POC_CS_COCO_FT")
    cityscapes = common.find_cityscapes(args)
    name = source.resolve().name.removesuffix("_FT")
    output = args.output or args.root / f"{name}_RECONSTRUCTED"
    common.check_output(output, source, cityscapes)
    common.write_missing(_jobs(source, cityscapes, output), output, args)


def add_difference(image: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The sum of two (H, W, 3) uint8 modulo 256: it undoes a subtraction that wrapped around."""
    return image + difference


def relabel(label: np.ndarray, name: Path) -> np.ndarray:
    """Train ids with 19 for OOD, from (H, W) integer ids of the release; ``name`` for messages."""
    return common.translate(label, _RELABEL, range(256), name)


def _jobs(source: Path, cityscapes: Path, output: Path) -> list[common.Job]:
    changes = common.list_files(source / "leftImg8bit", "*/*/*_leftImg8bit_*.npz")
    places = [path.relative_to(source / "leftImg8bit").with_suffix(".png") for path in changes]
    labels = [source / "gtFine" / place for place in places]
    ids = [place.name.partition("_leftImg8bit_")[0] for place in places]
    images = common.find_images(cityscapes, ("train", "val"), ids)
    what = f"differences leftImg8bit/<split>/<city>/<id>_leftImg8bit_<prompt>.npz in {source}"
    common.check_complete([], len(changes), what)
    missing = [str(path) for path in labels if not path.exists()]
    common.check_complete(missing, len(labels), f"labels of {source}")
    jobs = []
    for place, change, label, image in zip(places, changes, labels, images, strict=True):
        restore = partial(_write_sum, image, change)
        jobs.append(common.Job(output / "leftImg8bit" / place, restore))
        jobs.append(common.Job(output / "gtFine" / place, partial(_write_label, label)))
    return jobs


def _write_sum(image: Path, change: Path, path: Path) -> None:
    base = common.read_rgb(image)
    difference = common.read_array(change, "img", change)
    if difference.shape != base.shape or difference.dtype != np.uint8:
        raise common.PrepareError(
            f"{change} is {difference.dtype} of shape {difference.shape}, but {image} is uint8 of "
            f"shape {base.shape}"
        )
    common.save_png(add_difference(base, difference), path)


def _write_label(label: Path, path: Path) -> None:
    common.save_png(relabel(common.read_ids(label), label), path)


if __name__ == "__main__":
    common.run_main(main)
