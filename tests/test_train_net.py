"""train_net.py as users call it: training, --resume, --eval-only, one and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tdos_commands.train import run as train

ROOT = Path(__file__).parents[1]
# A model, crops and scenes that make an iteration cheap; everything else is the demo's.
SMALL = """
_BASE_: {base}
MODEL:
  TDOS:
    NUM_NEGATIVE: 4
    NUM_POINTS: 64
  PIXEL_DECODER:
    NUM_LAYERS: 1
  TRANSFORMER_DECODER:
    NUM_LAYERS: 1
INPUT:
  CROP:
    SIZE:
      - 64
      - 64
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 2
DATASETS:
  TRAIN:
    - demo_val
  TEST:
    - demo_ood_hard
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_net")
    (folder / "small.yaml").write_text(SMALL.format(base=ROOT / "configs" / "demo.yaml"))
    return folder


def run(folder: Path, *words: str, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train_net.py"), "--dist-url", "auto"]
    command += ["--config-file", str(folder / "small.yaml"), *words]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,  # a guard against hanging, not a measure
    )


def succeed(folder: Path, *words: str) -> tuple[str, dict]:
    """What was printed, and results.json."""
    result = run(folder, *words)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "Warning" not in result.stderr
    return result.stdout, json.loads((folder / words[-1] / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(folder):
    """A run of two iterations in one process, then resumed for one more."""
    succeed(folder, "OUTPUT_DIR", "one")
    text, results = succeed(folder, "--resume", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", "one")
    assert "Starting training from iteration 2" in text
    return results


def test_output_folder(trained, folder):
    names = {path.name for path in (folder / "one").iterdir()}
    expected = {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"}
    assert expected | {"results.json"} <= names
    checkpoint = torch.load(folder / "one" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2 and "road" in checkpoint["tdos"]["class_names"]
    assert "- road" in (folder / "one" / "config.yaml").read_text()


def test_training_ends_with_an_operating_threshold(folder, trained):
    point = json.loads((folder / "one" / "model_final.pth.threshold.json").read_text())
    assert point["dataset"] == "demo_ood_hard"
    assert point["f1"] == pytest.approx(trained["demo_ood_hard"]["ood"]["F1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_evaluation_in_two_processes_gives_what_training_gave(
    trained, folder, forked_processes, monkeypatch
):
    monkeypatch.chdir(folder)
    given = ["--config-file", "small.yaml", "--dist-url", "auto", "--num-gpus", "2", "--eval-only"]
    train([*given, "MODEL.WEIGHTS", "one/model_final.pth", "OUTPUT_DIR", "two"])
    results = json.loads((folder / "two" / "results.json").read_text())
    assert results == trained
    text = (folder / "two" / "log.txt").read_text()
    assert "demo_ood_hard" in text and "AP" in text
    assert set(results["demo_ood_hard"]["ood"]) >= {"AP", "AUROC", "FPR95", "F1"}


def street(folder: Path, frames: int) -> None:
    """A CamVid of noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in (split, f"{split}annot"):
            (folder / "CamVid" / name).mkdir(parents=True)
        for i in range(frames):
            image = rng.integers(0, 256, (64, 64, 3), np.uint8)
            cv2.imwrite(str(folder / "CamVid" / split / f"{i}.png"), image)
            label = rng.integers(0, 12, (64, 64), np.uint8)
            cv2.imwrite(str(folder / "CamVid" / f"{split}annot" / f"{i}.png"), label)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_two_processes_train_until_an_image_is_broken(folder, tmp_path):
    street(tmp_path, frames=7)  # not divisible by 2
    broken = tmp_path / "CamVid" / "val" / "6.png"
    broken.write_bytes(broken.read_bytes()[:100])
    words = ["--num-gpus", "2", "DATASETS.TRAIN", "('camvid_train',)"]
    words += ["DATASETS.TEST", "('camvid_val',)", "OUTPUT_DIR", "broken"]
    words += ["INPUT.OOD_PASTE.STAND_ON", "[]"]  # CamVid has no class 'sidewalk'
    result = run(folder, *words, env={"DETECTRON2_DATASETS": str(tmp_path)})
    assert (folder / "broken" / "model_final.pth").is_file()  # training went through
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot read image") and "val/6.png" in last
    assert "Traceback" not in result.stderr + result.stdout
    assert "Warning" not in result.stderr  # nor in that of the processes it started
