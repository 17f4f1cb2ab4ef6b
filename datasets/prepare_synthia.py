#!/usr/bin/env python
"""Prepare SYNTHIA-RAND-CITYSCAPES for training with Cityscapes' 19 classes (synthia_train).

Reads the unpacked archive of https://synthia-dataset.net below the root,

  RAND_CITYSCAPES   (or synthia) RGB/<nnnnnnn>.png and GT/LABELS/<nnnnnnn>.png

(9,400 frames of 1280x760) and writes synthia_trainids/labels/<nnnnnnn>.png and, as links or copies,
synthia_trainids/images. The released labels have 16 bits, with the class in the first channel and
the instance in the second; labels of one channel, with 8 or 16 bits, are read as classes. Truck,
terrain and train hardly or never occur; lane markings, parking slots and road works become void.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import _common as common
import cv2
import numpy as np

# SYNTHIA's class numbers in the order of Cityscapes' train ids 0..18.
_CLASSES = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
_TRAIN_IDS = np.full(256, 255, np.uint8)
_TRAIN_IDS[list(_CLASSES)] = np.arange(19)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the label maps and links that do not exist yet."""
    args = common.argument_parser(__doc__, copy=True).parse_args(argv)
    names = ["RAND_CITYSCAPES", "SYNTHIA_RAND_CITYSCAPES", "synthia", "SYNTHIA"]
    source = common.find_source(args.root, names, args.source, "SYNTHIA-RAND-CITYSCAPES")
    output = args.output or args.root / "synthia_trainids"
    common.check_output(output, source)
    labels = source / "GT" / "LABELS"
    common.make_train_set(source / "RGB", labels, output, read_train_ids, args)


def read_train_ids(path: Path) -> np.ndarray:
    """(H, W) uint8 train ids of a label file.

    Raises:
        PrepareError: the file cannot be read or has other classes than the release's 0..22.
    """
    # Pillow would reduce channels of 16 bits to 8.
    label = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise common.PrepareError(f"cannot read image {path}")
    classes = label[:, :, 2] if label.ndim == 3 else label  # OpenCV's order is BGR
    return common.translate(classes, _TRAIN_IDS, range(23), path)


if __name__ == "__main__":
    common.run_main(main)
