"""What an evaluation in training says is what the checkpoint saved there gives."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from two_machines import run_on_two_machines

from tdos_d2.engine import train_command as command
from tdos_d2.engine.launch import launch_job

FRAMES = 5  # not the same number for two processes
ENCODERS = {"tiny": "CLIPVisionTransformer", "tiny-rn": "CLIPModifiedResNet"}


def register(folder: Path) -> None:
    """Training set "street", and "odd", the same frames with class 2 as the anomaly."""
    frames = [
        {
            "file_name": str(folder / f"{i}.png"),
            "sem_seg_file_name": str(folder / f"{i}_label.png"),
            "image_id": str(i),
            "height": 64,
            "width": 96,
        }
        for i in range(FRAMES)
    ]
    for name in ("street", "odd"):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda: frames)
    classes = ["road", "traffic sign", "car"]
    MetadataCatalog.get("street").set(stuff_classes=classes, ignore_label=255)
    MetadataCatalog.get("odd").set(
        evaluator_type="ood",
        ignore_label=255,
        id_values=(0, 1),
        ood_values=(2,),
        ignore_values=(255,),
        protocol="anomaly",
        min_pred=1,
        min_gt=1,
    )


def train_and_evaluate(
    args: Namespace, cfg: CfgNode, folder: Path, encoders: Sequence[str]
) -> None:
    """Train each encoder with two evaluations, then evaluate the last checkpoint of each."""
    register(folder)
    for name in encoders:
        run = cfg.clone()
        run.MODEL.CLIP.NAME, run.MODEL.BACKBONE.NAME = name, ENCODERS[name]
        run.OUTPUT_DIR = str(folder / f"{name}-{args.num_gpus}")
        command.main(args, run.clone(), [])
        weights = Path(run.OUTPUT_DIR, "model_final.pth")
        copy = weights.with_name("copy.pth")
        if command.comm.is_main_process():
            shutil.copy(weights, copy)
        command.comm.synchronize()
        run.MODEL.WEIGHTS, run.OUTPUT_DIR = str(copy), f"{run.OUTPUT_DIR}-again"
        command.main(Namespace(**{**vars(args), "eval_only": True}), run, [])


def write_frames(folder: Path, cfg: CfgNode) -> None:
    """Frames with random pixels and classes; the config trains and evaluates on them."""
    rng = np.random.default_rng(0)
    for i in range(FRAMES):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (64, 96, 3), np.uint8))
        label = np.repeat(rng.integers(0, 3, (8, 12), np.uint8), 8, 0).repeat(8, 1)
        cv2.imwrite(str(folder / f"{i}_label.png"), label)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("street",), ("odd",)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 1e-2, 4, 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit on a CPU")
@pytest.mark.parametrize("processes", [1, 2])
def test_last_evaluation_is_that_of_the_checkpoint(
    small_cfg, tmp_path, forked_processes, processes
):
    write_frames(tmp_path, small_cfg)
    args = Namespace(
        num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto",
        resume=False, eval_only=False,
    )  # fmt: skip
    launch_job(train_and_evaluate, args, small_cfg, tmp_path, list(ENCODERS))
    for name in ENCODERS:
        first = tmp_path / f"{name}-{processes}"
        again = first.with_name(f"{first.name}-again")
        lines = [json.loads(line) for line in (first / "metrics.json").read_text().splitlines()]
        first_ap, last_ap = (line["ood/AP"] for line in lines if "ood/AP" in line)
        results = json.loads((first / "results.json").read_text())
        assert last_ap == results["odd"]["ood"]["AP"] != first_ap, name
        assert (again / "results.json").read_text() == (first / "results.json").read_text(), name
        threshold, new = (first / f"{n}.pth.threshold.json" for n in ("model_final", "copy"))
        assert json.loads(threshold.read_text()) == json.loads(new.read_text()), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit on a CPU")
def test_two_machines_do_what_two_processes_do(small_cfg, tmp_path, forked_processes):
    """They train, evaluate in training and at the end, and evaluate the checkpoint again."""
    write_frames(tmp_path, small_cfg)
    codes = run_on_two_machines(train_and_evaluate, small_cfg, tmp_path, ["tiny"])
    assert codes == [0, 0]
    args = Namespace(
        num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto",
        resume=False, eval_only=False,
    )  # fmt: skip
    launch_job(train_and_evaluate, args, small_cfg, tmp_path, ["tiny"])
    two, one = (tmp_path / name for name in ("tiny-1", "tiny-2"))  # processes of a machine
    for suffix in ("", "-again"):
        pair = [Path(f"{folder}{suffix}", "results.json").read_text() for folder in (one, two)]
        assert pair[0] == pair[1]
    pair = [torch.load(x / "model_final.pth", weights_only=True)["model"] for x in (one, two)]
    assert all(torch.equal(pair[0][name], value) for name, value in pair[1].items())
