"""Implementation of train_net.py."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..errors import UserError
from ..loading.checkpoint import TDOSCheckpointer
from ..loading.config_files import (
    find_config,
    holds_encoders,
    load_config,
    local_weights,
    use_shipped_weights,
)
from ..loading.resuming import resume_file, warn_of_damage
from ..modeling.weight_files import weights_follow
from .launch import launch_job
from .preflight import check_run
from .results import check_expected_results
from .seeding import settle_determinism, settle_seed
from .trainer import Trainer


def setup(args: Namespace, cfg: CfgNode, notes: Sequence[str]) -> None:
    """Set up loggers, random state and OUTPUT_DIR/config.yaml of this process."""
    if settle_seed(cfg):
        notes = [f"SEED is negative: this run uses {cfg.SEED}", *notes]
    settle_determinism(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tdos_d2")
    for note in notes:
        logger.info(note)


def main(args: Namespace, cfg: CfgNode, notes: Sequence[str]) -> Mapping[str, Any] | None:
    """Run training or evaluation in one process."""
    setup(args, cfg, notes)
    if args.eval_only:
        seed_all_rng(cfg.SEED)  # an untrained model must be identical in all processes
        resumed = args.resume and resume_file(cfg)
        warn_of_damage(cfg, resumed or None)
        checkpoint = resumed or local_weights(cfg)
        with weights_follow(holds_encoders(cfg, checkpoint)):
            model = Trainer.build_model(cfg).eval()
        weights = str(resumed or cfg.MODEL.WEIGHTS)
        if not weights:
            logging.getLogger(__name__).warning("MODEL.WEIGHTS is empty: the model is untrained")
        whole = f"checkpoint {weights} is not of the config's model: it has"
        TDOSCheckpointer(model).load(weights, checkpointables=[], whole=whole)
        results = Trainer.test_checkpoint(cfg, model, checkpoint)
        if comm.is_main_process():
            check_expected_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args: Namespace) -> None:
    """Read and check everything, then start the processes.

    Args:
        args: the flags of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: the config, a file or a dataset is invalid or missing.
    """
    if args.config_file:
        args.config_file = find_config(args.config_file)  # Detectron2 also opens it
    cfg = load_config(args.config_file, args.opts)
    shipped = []
    if args.eval_only and not args.resume and args.config_file and not cfg.MODEL.WEIGHTS:
        with suppress(UserError):  # with most configs, none ship
            use_shipped_weights(cfg, args.config_file)
            shipped = [f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS}, which ships with this config"]
    launch_job(main, args, cfg, [*check_run(cfg, args), *shipped])
