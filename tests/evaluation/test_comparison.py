"""Paired differences of runs against scikit-learn on every drawn set, worked out in full."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA
from sklearn.metrics import average_precision_score

from tdos_d2.errors import UserError
from tdos_d2.evaluation import OODEvaluator
from tdos_d2.evaluation.bootstrap import METRICS, draw_frames, replicates
from tdos_d2.evaluation.comparison import load_frame_table, paired_differences, save_frame_table

FRAMES, DRAWN = 5, 200


@pytest.fixture
def runs(make_dataset, tmp_path):
    """Labels, and scores and frame counts of two pairs of runs: scores[pair][side][frame]."""
    rng = np.random.default_rng(3)
    labels = [rng.choice([0, 1, 255], (40, 50), p=[0.7, 0.2, 0.1]) for _ in range(FRAMES)]
    labels = [label.astype(np.uint8) for label in labels]
    dicts = make_dataset("tiny_ood", labels, **OOD_METADATA)
    scores, tables = [], []
    for pair in range(2):
        scores.append([])
        tables.append([])
        for side in range(2):
            maps = [
                rng.normal((1 + side * rng.normal(0.5, 1)) * (label == 1), 1).astype(np.float32)
                for label in labels
            ]
            folder = tmp_path / f"{pair}{side}"
            evaluator = OODEvaluator("tiny_ood", frame_counts=folder)
            evaluator.reset()
            # In another order in each run, as with several processes.
            for i in rng.permutation(FRAMES):
                evaluator.process([dicts[i]], [{"ood_score": torch.from_numpy(maps[i])}])
            results = evaluator.evaluate()["ood"]
            table = load_frame_table(folder / "tiny_ood.ood.npz")
            whole = replicates(table, np.ones((1, FRAMES)))[0][:, 0]
            assert whole == pytest.approx([results[name] for name in METRICS], abs=0.2)
            scores[-1].append(maps)
            tables[-1].append(table)
    return labels, scores, tables


def ap(labels, maps, draw) -> float:
    label = np.concatenate([np.tile(x.ravel(), int(n)) for x, n in zip(labels, draw, strict=True)])
    score = np.concatenate([np.tile(x.ravel(), int(n)) for x, n in zip(maps, draw, strict=True)])
    return 100 * average_precision_score(label[label < 2], score[label < 2])


def test_differences_are_those_of_scikit_learn(runs):
    labels, scores, tables = runs
    found = paired_differences(tables, number=DRAWN, seed=4)["AP"]
    own, drawn = [], []
    for first, second in scores:
        own.append(ap(labels, second, [1] * FRAMES) - ap(labels, first, [1] * FRAMES))
        draws = draw_frames(FRAMES, DRAWN, 4)
        drawn.append([ap(labels, second, d) - ap(labels, first, d) for d in draws])
    assert found.mean == pytest.approx(statistics.fmean(own), abs=0.1)
    assert found.deviation == pytest.approx(statistics.stdev(own), abs=0.1)
    ends = np.percentile(np.mean(drawn, axis=0), (2.5, 97.5))
    assert (found.low, found.high) == pytest.approx(ends, abs=0.2)


def test_a_run_does_not_differ_from_itself(runs):
    table = runs[2][0][0]
    found = paired_differences([(table, table)], number=20)
    for name in METRICS:
        assert found[name][0] == found[name].low == found[name].high == 0
        assert np.isnan(found[name].deviation), "one pair has none"


def test_other_frames_cannot_be_paired(runs):
    table = runs[2][0][0]
    other = table._replace(frames=["elsewhere", *table.frames[1:]])
    with pytest.raises(UserError, match="same frames"):
        paired_differences([(table, other)])


def test_files_that_are_something_else(runs, tmp_path):
    table = runs[2][0][0]
    save_frame_table(tmp_path / "cut.npz", table._replace(components=table.components[1:]))
    np.savez(tmp_path / "other.npz", x=1)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("cut", "other", "text", "missing"):
        with pytest.raises(UserError, match=f"{name}.npz is no file of frame counts"):
            load_frame_table(tmp_path / f"{name}.npz")
