#!/usr/bin/env python
"""Prepare Fishyscapes Lost & Found validation (fs_laf_val): 100 frames of 2048x1024.

The labels are from Fishyscapes, the images from the Lost and Found release. Reads, below the root,

  fishyscapes_lostandfound.zip   or the folder fishyscapes_lostandfound: <n>_<id>_labels.png
  dataset_LostAndFound           leftImg8bit/{train,test}/<scene>/<id>_leftImg8bit.png

and writes fs_laf/labels/<n>_<id>.png and, as links or copies, fs_laf/images/<n>_<id>.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import _common as common

_NAME = "fishyscapes_lostandfound"
# As published with the benchmark's own loader.
_SHA256 = {f"{_NAME}.zip": "f0078e89f0a147060a0864feb90e8b523313a2723b1b764bce638dc425473094"}
_RELEASE = ("dataset_LostAndFound", "LostAndFound", "lost_and_found", "lostandfound")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images and labels that do not exist yet."""
    parser = common.argument_parser(__doc__, copy=True)
    parser.add_argument("--images", type=common.options.path, help="folder of Lost and Found")
    args = parser.parse_args(argv)
    source = common.find_source(args.root, [f"{_NAME}.zip", _NAME], args.source, f"{_NAME}.zip")
    release = common.find_source(args.root, _RELEASE, args.images, "Lost and Found", "--images")
    output = args.output or args.root / "fs_laf"
    common.check_output(output, source, release)
    common.check_archive(source, _SHA256, f"{_NAME}.zip")
    files = common.open_source(source, "_labels.png")
    ids = common.fishyscapes_ids(files)
    images = common.find_images(release, ("train", "test"), list(ids.values()))
    common.check_complete([], len(ids), f"labels of {source}")
    jobs = []
    for stem, image in zip(ids, images, strict=True):
        place = output / "images" / f"{stem}{image.suffix}"
        jobs.append(common.Job(place, common.link_or_copy(image, args.copy)))
        label = partial(common.write_bytes, files[f"{stem}_labels.png"])
        jobs.append(common.Job(output / "labels" / f"{stem}.png", label))
    common.write_missing(jobs, output, args)


if __name__ == "__main__":
    common.run_main(main)
