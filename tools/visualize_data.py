#!/usr/bin/env python
"""Draw training samples: crops with their labels, with pasted outliers outlined.

Examples:
    python tools/visualize_data.py --config-file configs/demo.yaml
    python tools/visualize_data.py --config-file configs/tdos_vitb.yaml --num 24 \\
        INPUT.OOD_PASTE.PROB 1.0
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

if TYPE_CHECKING:
    from detectron2.config import CfgNode

PER_SHEET = 12

Sample = tuple[str, np.ndarray, np.ndarray]  # title, image, label


def run() -> None:
    """Draw the samples that the command line asks for."""
    args = _parser().parse_args()
    from detectron2.data import MetadataCatalog

    from tdos_d2.data import check_classes, check_dataset, class_names
    from tdos_d2.engine import load_config
    from tdos_d2.files import check_output
    from tdos_d2.visualization.drawing import contact_sheet, overlay, palette

    check_output(args.output, "--output", folder=True)
    cfg = load_config(args.config_file, args.opts)
    check_classes(cfg)
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name, training=True)
    names = class_names(cfg)
    samples = read_samples(cfg, args.first, args.num, names)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    colours = palette(len(names), metadata.get("stuff_colors"))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for start in range(0, args.num, PER_SHEET):
        path = output / f"samples_{args.first + start:06d}.png"
        part = samples[start : start + PER_SHEET]
        pairs = [[(title, x), ("", overlay(x, label, colours))] for title, x, label in part]
        # Two samples per row.
        rows = [[*itertools.chain(*pairs[i : i + 2])] for i in range(0, len(pairs), 2)]
        contact_sheet(rows, path, class_names=names, colours=colours)
        print(f"Picture: {path}")
    print(summary(samples, len(names)))


def read_samples(cfg: CfgNode, first: int, num: int, names: Sequence[str]) -> list[Sample]:
    """The samples at ``num`` positions of the data order, from ``first`` on."""
    from tdos_d2.config import set_key
    from tdos_d2.data import build_train_loader

    set_key(cfg, "SOLVER.IMS_PER_BATCH", 1)  # so that iterations are positions
    batches = itertools.islice(build_train_loader(cfg, first), num)
    return [_sample(cfg, batch[0], names) for batch in tqdm(batches, "Reading", num, unit="sample")]


def summary(samples: Sequence[Sample], num_classes: int) -> str:
    """One line: how many samples have outliers, and their share of the pixels."""
    outliers = [label == num_classes for *_, label in samples]
    share = 100 * sum(map(np.sum, outliers)) / sum(map(np.size, outliers))
    having = sum(map(np.any, outliers))
    return f"Outliers in {having} of {len(samples)} samples, in {share:.1f} % of their pixels"


def _sample(cfg: CfgNode, record: Mapping[str, Any], names: Sequence[str]) -> Sample:
    image = record["image"].numpy().transpose(1, 2, 0)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[..., ::-1]
    title = f"{record['position']}: {record['dataset_name']}, {Path(record['file_name']).name}"
    if "rare_class" in record:
        title += f"\ndrawn for {names[record['rare_class']]}"
    return title, image, record["sem_seg"].numpy().astype(np.uint8)


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    parser.add_argument(
        "--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of the run",
    )
    parser.add_argument(
        "--num", type=options.whole(1), default=PER_SHEET,
        help=f"number of samples (default: {PER_SHEET})",
    )
    parser.add_argument(
        "--first", type=options.whole(0), default=0,
        help="position in the data order to start at (default: 0)",
    )
    parser.add_argument(
        "--output", default="output/data", help="folder for the pictures (default: output/data)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
