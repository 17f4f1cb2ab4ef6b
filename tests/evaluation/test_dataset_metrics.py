"""evaluate_scores, with and without torch and Detectron2."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from tqdm import tqdm

from tdos_d2.errors import UserError
from tdos_d2.evaluation import evaluate_breakdown, evaluate_scores

NAMES = ["AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1"]


def make_frames(number: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(number):
        label = np.zeros((60, 80), np.uint8)
        label[20:40, 30:60], label[50:] = 1, 255
        frames.append((rng.normal(3.0 * (label == 1), 1.0), label))
    return frames


def test_worked_by_hand():
    score = np.zeros((4, 6), np.float32)
    label = np.zeros((4, 6), np.uint8)
    label[:2, :2] = 1  # 4 OOD pixels, of which 3 are found, and one pixel beside them
    score[0, :2] = score[1, 0] = 2
    score[0, 2] = 1
    score[1, 1] = 1
    metrics = evaluate_scores([(score, label)], min_pred=1, min_gt=1)
    assert list(metrics) == NAMES
    assert metrics["AP"] == pytest.approx(100 * (3 / 4 * 1 + 1 / 4 * 4 / 5))
    assert metrics["F1"] == pytest.approx(100 * 8 / 9)  # everything from 1 on
    assert metrics["sIoU"] == pytest.approx(80) and metrics["PPV"] == pytest.approx(80)
    assert metrics["mF1"] == pytest.approx(100)
    # Above the threshold, as the official tool has it, there are 3 pixels.
    strict = evaluate_scores([(score, label)], min_pred=1, min_gt=1, strict=True)
    assert strict["sIoU"] == pytest.approx(75) and strict["PPV"] == pytest.approx(100)
    assert strict["F1"] == metrics["F1"]


def test_list_iterator_and_order_give_identical_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    frames = make_frames()
    expected = evaluate_scores(frames)
    assert evaluate_scores(iter(frames)) == expected
    assert evaluate_scores(frames[::-1]) == expected
    assert os.listdir(tmp_path) == []
    assert 50 < expected["AP"] < 100 and 50 < expected["sIoU"] < 100


@pytest.mark.parametrize("evaluate", [evaluate_scores, evaluate_breakdown])
def test_frames_that_are_gone_after_one_pass_are_an_error(evaluate):
    """A progress bar around a generator is no iterator: its second pass has no frames."""
    frames = [(label == 1.0, label) for _, label in make_frames()]  # exact after the first pass
    with pytest.raises(UserError, match="4 in the first pass over them, 0 in another"):
        evaluate(tqdm((frame for frame in frames), disable=True))


def test_protocol_decides_what_is_too_small():
    frames = [(score[::4, ::4], label[::4, ::4]) for score, label in make_frames()]
    assert math.isnan(evaluate_scores(frames, "anomaly")["sIoU"])  # 40 true pixels per frame
    assert evaluate_scores(frames, "obstacle")["sIoU"] >= 0
    assert evaluate_scores(frames, "anomaly", min_gt=10)["sIoU"] == 0
    assert evaluate_scores(frames, "anomaly", min_pred=5, min_gt=10)["sIoU"] > 0


def test_scores_are_compared_as_float32():
    frames = make_frames()
    assert evaluate_scores([(s.astype(np.float32), y) for s, y in frames]) == evaluate_scores(
        frames
    )
    half = [(s.astype(np.float16), y) for s, y in frames]
    assert evaluate_scores(half) == evaluate_scores([(s.astype(float), y) for s, y in half])


@pytest.mark.parametrize("as_iterator", [False, True])
def test_errors_name_the_frame(as_iterator):
    frames = make_frames()
    frames[2][0][5, 5] = np.nan
    with pytest.raises(UserError, match="frame 2 .*1 of 4800"):
        evaluate_scores(iter(frames) if as_iterator else frames)
    frames[1] = (np.zeros((3, 4)), frames[1][1])
    with pytest.raises(UserError, match=r"frame 1 .*\(3, 4\)"):
        evaluate_scores(iter(frames) if as_iterator else frames)
    with pytest.raises(UserError, match="'fishy'"):
        evaluate_scores(frames, "fishy")


@pytest.mark.parametrize("frames", [[], [(np.zeros((8, 8)), np.zeros((8, 8), np.uint8))]])
def test_no_ood_pixel_gives_nan_and_one_warning(frames, caplog):
    metrics = evaluate_scores(frames)
    assert list(metrics) == NAMES and all(map(math.isnan, metrics.values()))
    assert len(caplog.records) == 1 and "OOD pixel" in caplog.text


def test_coarse_scores_are_noted_once(caplog):
    frames = [((10 * score).clip(0, 255).astype(np.uint8), y) for score, y in make_frames()]
    evaluate_scores(frames)
    assert [r.getMessage()[:16] for r in caplog.records] == ["scores of uint8:"]


WITHOUT = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "detectron2", "open_clip", "fvcore"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from tdos_d2.evaluation import evaluate_scores
score = np.linspace(0, 1, 200).reshape(10, 20)
print(json.dumps(evaluate_scores([(score, score > 0.5)])))
"""


def test_works_without_torch_and_detectron2():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads(result.stdout)
    assert metrics["AP"] == metrics["AUROC"] == metrics["F1"] == 100 and metrics["FPR95"] == 0
