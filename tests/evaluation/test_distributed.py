"""Two processes give what one gives, bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from datasets_on_disk import OOD_METADATA, register, unregister
from detectron2.utils import comm

from tdos_d2.errors import UserError
from tdos_d2.evaluation import OODEvaluator, SemSegEvaluator
from tdos_d2.evaluation.comparison import load_frame_table
from tdos_d2.evaluation.threshold_rules import parse_rule

NUM_FRAMES = 5
CLASSES = ["road", "sky"]


def frame(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and score of frame i; classes 0 and 1 are known and OOD, or road and sky."""
    rng = np.random.default_rng(i)
    label = rng.choice([0, 1, 255], (20 + i, 30)).astype(np.uint8)
    return label, rng.normal(label == 1, 1).astype(np.float32)


def ood_evaluator(folder: Path) -> OODEvaluator:
    rule = parse_rule("fpr:0.3")
    return OODEvaluator("dist_ood", rule=rule, breakdown=True, frame_counts=folder / "counts")


def evaluate(folder: Path, shares: list[list[int]]) -> dict | None:
    """Results of the main process; process r evaluates the frames ``shares[r]``."""
    labels = [frame(i)[0] for i in range(NUM_FRAMES)]
    ood = register("dist_ood", folder, labels, **OOD_METADATA, class_values={0: 1})
    seg = register("dist_seg", folder, labels, ignore_label=255, stuff_classes=CLASSES)
    evaluators = [(ood_evaluator(folder), ood), (SemSegEvaluator("dist_seg"), seg)]
    results = {}
    try:
        for evaluator, dicts in evaluators:
            evaluator.reset()
            for i in shares[comm.get_rank()]:
                score = torch.from_numpy(frame(i)[1])
                output = {"ood_score": score, "sem_seg": torch.stack([-score, score])}
                evaluator.process([dicts[i]], [output])
            results.update(evaluator.evaluate() or {})
    finally:
        unregister("dist_ood")
        unregister("dist_seg")
    return results


def worker(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    folder = folder / str(rank)
    folder.mkdir()
    results = evaluate(folder, [[0, 2, 4], [1, 3]])
    try:
        evaluate(folder, [[0, 1, 2], [2, 3, 4]])
    except UserError as error:
        results["error"] = str(error)
    (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()  # a process that leaves while the other still talks can take it down
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path, forked_processes):
    expected = evaluate(tmp_path, [list(range(NUM_FRAMES))])
    assert not any(math.isnan(value) for value in expected["ood"].values())

    assert {"ood_instances", "ood_small", "ood_near", "ood_far", "ood_open"} <= set(expected)

    mp.start_processes(worker, (tmp_path,), nprocs=2)
    main, other = (json.loads((tmp_path / r / "results.json").read_text()) for r in "01")
    assert "frame 2 was evaluated 2 times" in main.pop("error")
    assert main == expected
    assert list(other) == ["error"]  # told on every process, results on the main one only
    assert not (tmp_path / "1" / "counts").exists()
    one, two = (load_frame_table(f / "counts/dist_ood.ood.npz") for f in (tmp_path, tmp_path / "0"))
    order = np.argsort([Path(name).name for name in two.frames])
    assert np.array_equal(two.counts[order], one.counts)
    assert np.array_equal(two.components[order], one.components)
    assert np.array_equal(two.hidden, one.hidden)


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4]], [[4, 2, 0, 3, 1]]])
def test_order_of_frames_does_not_matter(tmp_path, shares):
    assert evaluate(tmp_path, shares) == evaluate(tmp_path, [list(range(NUM_FRAMES))])
