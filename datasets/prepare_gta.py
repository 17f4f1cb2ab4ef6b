#!/usr/bin/env python
"""Prepare GTA (Playing for Data) for training with Cityscapes' 19 classes (gta_train).

Reads the unpacked parts of https://download.visinf.tu-darmstadt.de/data/from_games below the root,

  gta   (or GTA, gta5, GTA5) images/<nnnnn>.png and labels/<nnnnn>.png

(24,966 frames) and writes gta_trainids/labels/<nnnnn>.png and, as links or copies,
gta_trainids/images. Frames whose label and image differ in size are skipped and listed (15188 and
17705 of the release). Labels may be the released ones, with Cityscapes' label ids, or in
Cityscapes' colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import _common as common
import numpy as np

# Colours of the train ids 0..18, then those of other label ids.
_TRAIN_COLOURS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
_OTHER_COLOURS = (
    (0, 0, 0), (20, 20, 20), (111, 74, 0), (81, 0, 81), (250, 170, 160),
    (230, 150, 140), (180, 165, 180), (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip
_UNKNOWN = 254
# Train id of each colour, packed as red * 65536 + green * 256 + blue.
_COLOUR_TABLE = np.full(2**24, _UNKNOWN, np.uint8)
_PACK = np.array([65536, 256, 1])
_COLOUR_TABLE[_TRAIN_COLOURS @ _PACK] = np.arange(19)
_COLOUR_TABLE[_OTHER_COLOURS @ _PACK] = 255


def main(argv: Sequence[str] | None = None) -> None:
    """Write the label maps and links that do not exist yet."""
    args = common.argument_parser(__doc__, copy=True).parse_args(argv)
    source = common.find_source(args.root, ["gta", "GTA", "gta5", "GTA5"], args.source, "GTA")
    output = args.output or args.root / "gta_trainids"
    common.check_output(output, source)
    common.make_train_set(source / "images", source / "labels", output, read_train_ids, args)


def read_train_ids(path: Path) -> np.ndarray:
    """(H, W) uint8 train ids of a label file with label ids, with a palette or without, or colours.

    Raises:
        PrepareError: the file cannot be read, or an id or colour is not one of Cityscapes'.
    """
    label = common.read_ids(path)
    if label.ndim == 2:
        ids = common.CITYSCAPES_IDS
        return common.translate(label, common.CITYSCAPES_TRAIN_IDS, ids, path)
    if label.shape[2] < 3:
        raise common.PrepareError(f"{path} has {label.shape[2]} channels, not 1, 3 or 4")
    train_ids = _COLOUR_TABLE[label[..., :3] @ _PACK]
    unknown = label[train_ids == _UNKNOWN]
    if len(unknown):
        colour = tuple(unknown[0, :3].tolist())
        raise common.PrepareError(f"{path} has the colour {colour}, which is none of Cityscapes'")
    return train_ids


if __name__ == "__main__":
    common.run_main(main)
