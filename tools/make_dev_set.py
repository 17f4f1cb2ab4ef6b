#!/usr/bin/env python
"""Make an OOD development set of a labelled dataset, to choose settings without a test set.

Objects are pasted into its frames: drawn ones, those of the demo (animals, sofas, ladders, ...),
not the shapes that training pastes; or, with --cutouts, photographs, which must not be among those
that training pastes (INPUT.OOD_PASTE.CUTOUTS). Or, with --held-out, some of its classes count as
OOD, for a model that was trained with them as void. Written are OUTPUT/images and OUTPUT/labels
(0 = known, 1 = OOD, 255 = void), PNG files, the same for the same seed.

Examples, of which the first makes the dataset "camvid_val_pasted":
    python tools/make_dev_set.py --dataset camvid_val --stand-on Road Pavement \\
        --output $DETECTRON2_DATASETS/camvid_val_pasted
    python tools/make_dev_set.py --dataset camvid_val --held-out Car Pedestrian Bicyclist \\
        --output held_out
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

Frame = tuple[np.ndarray, np.ndarray]  # image (H, W, 3), label (H, W), both uint8
_SIDE = 96  # in pixels, at which objects are drawn
_SIZE = (0.1, 0.5)  # of an object's larger side, as a share of the frame's shorter side


class DemoObjects:
    """The demo's OOD objects as a source for :class:`~tdos_d2.data.ood_paste.OODPaste`."""

    photograph = True  # smaller the farther up they stand, as things on a plane are

    def sample(self, rng: np.random.Generator, max_side: int) -> Frame:
        """Patch (h, w, 3) uint8 and mask (h, w) float32 in 0..1, max(h, w) == ``max_side``."""
        import cv2

        from tdos_d2.data.demo_scenes.ood_objects import OOD_KINDS

        kinds = list(OOD_KINDS.values())
        pen = kinds[rng.integers(len(kinds))].draw(rng, _SIDE)
        h, w = pen.mask.shape
        size = max(1, round(max_side * w / max(h, w))), max(1, round(max_side * h / max(h, w)))
        image = cv2.resize(pen.image, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(pen.mask, size, interpolation=cv2.INTER_AREA)
        return image, mask.astype(np.float32) / 255


def run() -> None:
    """Write the frames."""
    args = _parser().parse_args()
    from detectron2.data import MetadataCatalog
    from tqdm import tqdm

    from tdos_d2.data.datasets.registration_file import register_from_file
    from tdos_d2.data.reading import read_image, read_label
    from tdos_d2.data.verify.quick import check_dataset, get_dicts
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output

    check_output(args.output, "--output", folder=True)
    for option, given in (("--stand-on", args.stand_on), ("--cutouts", args.cutouts)):
        if args.held_out and given:
            raise UserError(f"{option}: with --held-out nothing is pasted")
    if args.num[0] > args.num[1]:
        raise UserError(f"--num: {args.num[0]} is more than {args.num[1]}")
    if any((args.output / "images").glob("*")):
        raise UserError(f"--output: {args.output} has frames of an earlier run: name another one")
    if args.register:
        register_from_file(args.register)
    check_dataset(args.dataset, training=True)
    metadata = MetadataCatalog.get(args.dataset)
    names = metadata.get("stuff_classes")
    if not names:
        raise UserError(f"--dataset: '{args.dataset}' has no classes, it is no training set")
    change = _held_out(args, names) or _pasting(args, names)
    records = get_dicts(args.dataset)
    pixels = ood = 0
    for number, record in enumerate(tqdm(records, args.dataset, unit="frame")):
        label = read_label(record["sem_seg_file_name"], metadata)
        frame = read_image(record["file_name"]), label
        label = _write_frame(args.output, number, record, *change(number, *frame))
        pixels, ood = pixels + label.size, ood + int((label == 1).sum())
    print(f"{len(records)} frames, {100 * ood / pixels:.1f} % of the pixels OOD: {args.output}")


def _pasting(args: argparse.Namespace, names: Sequence[str]) -> Callable[..., Frame]:
    """What pastes objects into frame ``number``; label 1 is theirs."""
    from tdos_d2.data.cutouts import CutoutSource
    from tdos_d2.data.ood_paste import OODPaste

    ood = len(names)
    source = DemoObjects()
    if args.cutouts:
        source = CutoutSource(args.cutouts, origin="--cutouts")
    paste = OODPaste(
        source, 1.0, tuple(args.num), _SIZE, ood_label=ood,
        stand_on=_numbers(args.stand_on, names, "--stand-on"),
    )  # fmt: skip

    def change(number: int, image: np.ndarray, label: np.ndarray) -> Frame:
        image, label = paste(image, label, np.random.default_rng([args.seed, number]))
        return image, np.select([label == 255, label == ood], [255, 1], 0).astype(np.uint8)

    return change


def _held_out(args: argparse.Namespace, names: Sequence[str]) -> Callable[..., Frame] | None:
    """What relabels frames, where classes are held out; None where not."""
    numbers = _numbers(args.held_out, names, "--held-out")

    def change(_: int, image: np.ndarray, label: np.ndarray) -> Frame:
        is_ood = np.isin(label, [*numbers, len(names)])  # and what the labels call OOD
        return image, np.select([label == 255, is_ood], [255, 1], 0).astype(np.uint8)

    return change if numbers else None


def _numbers(chosen: Sequence[str], names: Sequence[str], option: str) -> list[int]:
    from tdos_d2.errors import UserError

    for name in chosen:
        if name not in names:
            raise UserError(f"{option}: '{name}' is none of the classes {', '.join(names)}")
    return [list(names).index(name) for name in chosen]


def _write_frame(
    output: Path, number: int, record: Mapping[str, Any], image: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """Write a frame, named by its number and the original's name; return the label."""
    import cv2

    from tdos_d2.files import atomic_write

    name = f"{number:05d}_{Path(record['file_name']).stem}.png"
    for folder, array in (("images", image[..., ::-1]), ("labels", label)):
        (output / folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(output / folder / name) as file:
            file.write(cv2.imencode(".png", array)[1].tobytes())
    return label


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a training set's name")
    parser.add_argument(
        "--output", required=True, type=options.path, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--stand-on", nargs="+", default=[], metavar="CLASS",
        help="classes that pasted objects stand on (default: any)",
    )
    parser.add_argument(
        "--cutouts", type=options.path, metavar="DIR",
        help="paste these images, whose background is transparent (default: drawn objects)",
    )
    parser.add_argument(
        "--held-out", nargs="+", default=[], metavar="CLASS",
        help="classes that count as OOD; nothing is pasted then",
    )
    parser.add_argument(
        "--num", nargs=2, type=options.whole(1), default=[1, 3], metavar=("LEAST", "MOST"),
        help="objects in a frame (default: 1 3)",
    )
    parser.add_argument("--seed", type=options.seed, default=1, help="default: 1")
    parser.add_argument(
        "--register", type=options.path, metavar="FILE", help="DATASETS.REGISTER of your own sets"
    )
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
