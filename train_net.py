#!/usr/bin/env python
"""Train or evaluate TDOS with Detectron2's usual flags and KEY VALUE pairs.

Examples:
    python train_net.py --config-file configs/demo.yaml
    python train_net.py --config-file configs/tdos_vitb.yaml --num-gpus 4 --resume
    python train_net.py --config-file configs/tdos_vitb.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

import warnings

# Detectron2 compiles with torch.jit when it is imported; torch warns of that in every process.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

# ruff: noqa: E402
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from tdos_d2.engine import (
    TDOSCheckpointer,
    Trainer,
    check,
    exit_with_one_line,
    launch_job,
    load_config,
    verify,
)
from tdos_d2.engine.seeding import settle_seed


def setup(args: Namespace, cfg: CfgNode, notes: Sequence[str]) -> None:
    """Loggers, random state and OUTPUT_DIR/config.yaml of this process."""
    drawn = settle_seed(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tdos_d2")
    if drawn:
        logger.info(f"SEED is negative: this run uses {cfg.SEED}")
    for note in notes:
        logger.info(note)


def main(args: Namespace, cfg: CfgNode, notes: Sequence[str]) -> Mapping[str, Any] | None:
    """What every process does."""
    setup(args, cfg, notes)
    if args.eval_only:
        seed_all_rng(cfg.SEED)  # an untrained model must be the same one in all processes
        model = Trainer.build_model(cfg)
        checkpointer = TDOSCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run() -> None:
    """Read and check everything, then start the processes."""
    args = default_argument_parser().parse_args()
    cfg = load_config(args.config_file, args.opts)
    notes = check(cfg, args)
    launch_job(main, args, cfg, notes)


if __name__ == "__main__":
    exit_with_one_line(run)
