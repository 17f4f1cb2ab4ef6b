#!/usr/bin/env python
"""GTA (Playing for Data) as a training set with Cityscapes' 19 classes (gta_train).

Needs, below the root, the unpacked parts of https://download.visinf.tu-darmstadt.de/data/from_games,

  gta   (or GTA, gta5, GTA5) images/<nnnnn>.png and labels/<nnnnn>.png

24,966 frames if complete, and writes gta_trainids/labels/<nnnnn>.png and links (or copies) in
gta_trainids/images. Frames whose label has another size than their image are left out and named:
15188 and 17705 of the release are known to be so. Labels may be the release's, whose numbers are
Cityscapes' label ids, or a copy in Cityscapes' colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _common import (
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    PrepareError,
    check_output,
    command_line,
    find,
    make_train_set,
    read_ids,
    run,
    translate,
)

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
_COLOUR_IDS = {colour: i for i, colour in enumerate(_TRAIN_COLOURS)} | dict.fromkeys(
    _OTHER_COLOURS, 255
)


def main(argv: Sequence[str] | None = None) -> None:
    """Check the sources, then write labels and links that are not there yet."""
    args = command_line(__doc__, copy=True).parse_args(argv)
    source = find(args.root, ["gta", "GTA", "gta5", "GTA5"], args.source, "GTA", "--source")
    output = args.output or args.root / "gta_trainids"
    check_output(output, source)
    make_train_set(source / "images", source / "labels", output, read_train_ids, args)


def read_train_ids(path: Path) -> np.ndarray:
    """(H, W) uint8 train ids of a label file with label ids, with a palette or without, or colours.

    Raises:
        PrepareError: the file cannot be read, or an id or colour is none of Cityscapes'.
    """
    label = read_ids(path)
    if label.ndim == 2:
        return translate(label, CITYSCAPES_TRAIN_IDS, CITYSCAPES_IDS, path)
    packed = label[..., :3].astype(np.int32) @ (65536, 256, 1)
    colours, places = np.unique(packed, return_inverse=True)
    values = []
    for red, green, blue in ((c >> 16, c >> 8 & 255, c & 255) for c in colours.tolist()):
        if (red, green, blue) not in _COLOUR_IDS:
            colour = f"({red}, {green}, {blue})"
            raise PrepareError(f"{path} has the colour {colour}, which is none of Cityscapes'")
        values.append(_COLOUR_IDS[red, green, blue])
    return np.array(values, np.uint8)[places].reshape(packed.shape)


if __name__ == "__main__":
    run(main)
