#!/usr/bin/env python
"""Fishyscapes Lost & Found validation (fs_laf_val): 100 frames of 2048x1024.

The labels come from Fishyscapes, the images from the Lost and Found release. Needs, below the root,

  fishyscapes_lostandfound.zip   or the folder fishyscapes_lostandfound: <n>_<id>_labels.png
  dataset_LostAndFound           leftImg8bit/{train,test}/<scene>/<id>_leftImg8bit.png

and writes fs_laf/images/<n>_<id>.png (links to the release, or copies) and fs_laf/labels/ with the
same names.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from _common import (
    Job,
    check_archive,
    check_complete,
    check_output,
    command_line,
    find,
    find_images,
    link_or_copy,
    make,
    open_source,
    options,
    run,
    write_bytes,
)

_NAME = "fishyscapes_lostandfound"
# As published with the benchmark's own loader.
_SHA256 = {
    f"{_NAME}.zip": "f0078e89f0a147060a0864feb90e8b523313a2723b1b764bce638dc425473094",
}
_LABEL_NAME = re.compile(r"(\d+)_(.+)_labels\.png")
_RELEASE = ("dataset_LostAndFound", "LostAndFound", "lost_and_found", "lostandfound")


def main(argv: Sequence[str] | None = None) -> None:
    """Check the sources, then write images and labels that are not there yet."""
    args = _parser().parse_args(argv)
    source = find(args.root, [f"{_NAME}.zip", _NAME], args.source, f"{_NAME}.zip", "--source")
    release = find(args.root, _RELEASE, args.images, "Lost and Found", "--images")
    output = args.output or args.root / "fs_laf"
    check_output(output, source, release)
    check_archive(source, _SHA256, f"{_NAME}.zip")
    make(_jobs(source, release, output, args.copy), output, args)


def _jobs(source: Path, release: Path, output: Path, copy: bool) -> list[Job]:
    files = open_source(source)
    found = {name: match for name in sorted(files) if (match := _LABEL_NAME.fullmatch(name))}
    images = find_images(release, ("train", "test"), [match.group(2) for match in found.values()])
    check_complete([], len(found), f"labels of {source}")
    jobs = []
    for name, image in zip(found, images, strict=True):
        stem = name.removesuffix("_labels.png")
        place = output / "images" / f"{stem}{image.suffix}"
        jobs.append(Job(place, link_or_copy(image, copy)))
        jobs.append(Job(output / "labels" / f"{stem}.png", partial(write_bytes, files[name])))
    return jobs


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__, copy=True)
    parser.add_argument("--images", type=options.path, help="Lost and Found, if it lies elsewhere")
    return parser


if __name__ == "__main__":
    run(main)
