#!/usr/bin/env python
"""Fit a memory of normal features to frames of normal driving, without labels or training.

For NormalityMemory, and for a trained TDOS with the scores "memory" or "combined". Each frame is
read twice, for "combined" three times. Frames that cannot be read are named and left out (exit
status 1). Consecutive frames of a video are nearly the same: one or two per second are enough.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

if TYPE_CHECKING:
    from torch import Tensor

    from tdos_d2.data import TDOSDatasetMapper

EXAMPLES = """examples:
  fit_memory.py --config-file configs/memory_lite2.yaml --images my_drive/ --output memory.pth
  fit_memory.py --config-file configs/memory_lite2.yaml --dataset camvid_train --output memory.pth
  fit_memory.py --config-file configs/camvid/tdos_lite2_memory.yaml --dataset camvid_train \\
    --output combined.pth MODEL.WEIGHTS output/camvid_lite2/model_final.pth
"""


class Frames:
    """Images, read from disk in each iteration; files that cannot be read are in ``broken``."""

    def __init__(self, files: list[str], mapper: TDOSDatasetMapper) -> None:
        self.files, self.mapper = files, mapper
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Iterator[Tensor]:
        from tdos_d2.errors import UserError

        for file in tqdm(self.files, desc="Fitting", unit="frame"):
            if file in self.broken:
                continue
            try:
                yield self.mapper({"file_name": file})["image"]
            except UserError as error:
                self.broken[file] = str(error)


def run() -> None:
    """Fit with the options of the command line."""
    args = _parser().parse_args()
    from detectron2.modeling import build_model
    from detectron2.utils.env import seed_all_rng

    from tdos_d2.data import TDOSDatasetMapper
    from tdos_d2.engine import TDOSCheckpointer, load_config, read_checkpoint_info
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output, short_fingerprint
    from tdos_d2.inference.media import normal_frames
    from tdos_d2.loading.checkpoint import OF_MEMORY
    from tdos_d2.loading.config_checks import check_model
    from tdos_d2.loading.network import network_settings

    cfg = load_config(args.config_file, args.opts)
    trained = cfg.MODEL.META_ARCHITECTURE == "TDOS"
    if trained and not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: name the checkpoint that gets a memory")
    if args.output.suffix != ".pth":
        raise UserError(f"--output: {args.output} must end in .pth")
    check_output(args.output, "--output")
    for note in check_model(cfg):
        print(note)
    files = normal_frames(args.images, args.dataset)
    start = time.perf_counter()
    seed_all_rng(args.seed)  # of an encoder without weights
    model = build_model(cfg)
    frames = Frames(files, TDOSDatasetMapper(cfg, is_train=False, dataset_name=args.dataset))
    # Information about the training, such as its seed and its fallback source of outliers.
    info = read_checkpoint_info(cfg.MODEL.WEIGHTS) if trained else {}
    info.pop("memory", None)  # of an earlier fit
    if trained:
        info.setdefault("network", network_settings(cfg))
    checkpointer = TDOSCheckpointer(model, str(args.output.parent), run_info=info)
    if trained:
        checkpointer.load(cfg.MODEL.WEIGHTS)
        lacking = [name for name in checkpointer.not_loaded if not name.startswith(OF_MEMORY)]
        if lacking:
            raise UserError(
                f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is not of the config's model: it has no "
                f"fitting {lacking[0]} and {len(lacking) - 1} more"
            )
    try:
        count = model.fit_memory(frames, seed=args.seed)
    finally:
        for reason in frames.broken.values():
            print(f"left out: {reason}", file=sys.stderr)
    used = [file for file in files if file not in frames.broken]
    checkpointer.run_info["memory_frames"] = sorted(map(short_fingerprint, used))
    checkpointer.save(args.output.stem, tag=False)
    vectors = model.memory.vectors
    print(
        f"{args.output}: {count} vectors of {vectors.shape[1]} channels "
        f"({vectors.nbytes / 1e6:.1f} MB) from {len(used)} frames "
        f"in {time.perf_counter() - start:.0f} s"
    )
    if frames.broken:
        sys.exit(1)


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of the model",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", type=options.path, metavar="INPUT",
        help="normal frames: a folder with its subfolders, a quoted pattern such as "
        "'drive/**/*.jpg', or a list (.txt) of files and folders",
    )
    source.add_argument("--dataset", metavar="NAME", help="registered dataset; labels are not read")
    add("--output", type=options.path, required=True, metavar="FILE.pth", help="the checkpoint")
    add("--seed", type=options.whole(0, 2**32 - 1), default=0, help="of the drawing (default: 0)")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config, last on the line")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
