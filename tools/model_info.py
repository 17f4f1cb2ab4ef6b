#!/usr/bin/env python
"""Summarise a model: parameters, multiply-adds, prompts, origin of its weights.

Multiply-adds are fvcore's "flops" of one window (a multiply-add counts once; double them to compare
with numbers that count it twice). Text embeddings are computed once and not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

if TYPE_CHECKING:
    from tdos_d2.engine.model_info import ModelPart

EXAMPLES = """examples:
  model_info.py --config-file configs/tdos_vitb.yaml --random
  model_info.py --config-file configs/demo.yaml MODEL.WEIGHTS output/demo/model_final.pth
"""


def run() -> None:
    """Print the summary of the command line's model."""
    args = _parser().parse_args()
    from tdos_d2.engine import load_config
    from tdos_d2.engine.model_info import count_multiply_adds, describe_prompts, load_model
    from tdos_d2.errors import UserError
    from tdos_d2.modeling.backbone import encoder_name
    from tdos_d2.tdos import TDOS

    cfg = load_config(args.config_file, args.opts)
    model, parts, notes = load_model(cfg, args.random)
    for note in notes:
        print(note)
    side = cfg.TEST.WINDOW.SIZE
    if not (args.window or side) and max(cfg.INPUT.CROP.SIZE) <= 1:  # shares of an image
        raise UserError("--window: needed, as INPUT.CROP.SIZE is relative to the image")
    height, width = args.window or ((side, side) if side else cfg.INPUT.CROP.SIZE)
    total = count_multiply_adds(model, parts, (height, width))
    print(f"\n{type(model.backbone).__name__} of {encoder_name(cfg)}, window {height}x{width}\n")
    print(_table(parts, total), end="\n\n")
    if isinstance(model, TDOS):
        print("\n".join(describe_prompts(cfg, model)))
    else:
        print(f"{len(model.memory.vectors)} vectors of {sum(model.memory.channels)} channels")


def _table(parts: Sequence[ModelPart], total: int) -> str:
    rows = [
        [
            part.name,
            f"{part.trainable:,}",
            f"{part.frozen:,}",
            "once" if part.multiply_adds is None else f"{part.multiply_adds / 1e9:.3g}",
            "; ".join(f"{count} {source}" for source, count in part.sources.items()),
        ]
        for part in parts
    ]
    trainable, frozen = (sum(getattr(p, kind) for p in parts) for kind in ("trainable", "frozen"))
    rows.append(["all", f"{trainable:,}", f"{frozen:,}", f"{total / 1e9:.3g}", ""])
    headers = ["part", "trainable", "frozen", "G multiply-adds", "tensors from"]
    return tabulate(rows, headers=headers, disable_numparse=True,
                    colalign=("left", "right", "right", "right", "left"))  # fmt: skip


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of the model",
    )
    add(
        "--random", action="store_true",
        help="random weights stand in for files that are not there",
    )  # fmt: skip
    add(
        "--window", type=options.whole(1), nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="default: TEST.WINDOW.SIZE, or the training crop where that is 0",
    )  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
