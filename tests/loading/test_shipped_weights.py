"""Weights that ship: small, found by name, and the default of predict.py."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg

from tdos_commands.predict import run as predict
from tdos_d2 import get_checkpoint_file, get_config_file
from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.loading.config_files import load_config, use_shipped_weights

# Largest size in bytes.
SHIPPED = {"camvid/tdos_lite2": 6e6, "camvid/tdos_lite2_cutouts": 6e6, "memory_lite2": 4e6}


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_small_and_described(name):
    path = Path(get_checkpoint_file(name))
    assert path.stat().st_size <= SHIPPED[name]
    card = next(p for p in path.parents if p.name == "weights") / "MODEL_CARD.md"
    assert f"`{name}.safetensors`" in card.read_text()


def test_name_without_weights():
    known = "no weights of 'tdos_vitb' ship.*: " + ", ".join(SHIPPED)
    with pytest.raises(FileNotFoundError, match=known):
        get_checkpoint_file("tdos_vitb")
    cfg = get_cfg()
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty, and no weights ship"):
        use_shipped_weights(cfg, "configs/tdos_vitb.yaml")
    cfg.MODEL.WEIGHTS = "own.pth"
    use_shipped_weights(cfg, "configs/tdos_vitb.yaml")
    assert cfg.MODEL.WEIGHTS == "own.pth"


@pytest.mark.parametrize(
    "name",
    ["camvid/tdos_lite2.yaml", "camvid/tdos_lite2_memory.yaml",
     "camvid/tdos_lite2_cutouts_memory.yaml", "memory_lite2.yaml"],
)  # fmt: skip
def test_prediction_without_a_named_checkpoint(name, tmp_path, capsys):
    """A grey road under a blue sky, and a checked thing on it that stands out."""
    image = np.full((120, 160, 3), (200, 160, 120), np.uint8)
    image[50:] = np.random.default_rng(0).integers(85, 95, (70, 160, 1))
    yy, xx = np.mgrid[:30, :30]
    image[70:100, 60:90] = np.where((yy // 5 + xx // 5) % 2, 255, 20)[..., None]
    cv2.imwrite(str(tmp_path / "road.png"), image)
    words = ["--config-file", get_config_file(name), "--input", str(tmp_path / "road.png")]
    predict([*words, "--output", str(tmp_path / "out"), "--opts", "MODEL.DEVICE", "cpu"])
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    # The threshold that ships is for the combined score.
    assert (json.loads(line)["threshold"] is None) == (name == "camvid/tdos_lite2.yaml")
    cfg = load_config(get_config_file(name), ["MODEL.DEVICE", "cpu"])
    use_shipped_weights(cfg, get_config_file(name))
    score = OODPredictor(cfg)(image)["ood_score"]
    assert score[75:95, 65:85].mean() > score[105:, :].mean() + score[105:, :].std()


def test_photographs_of_readme(tmp_path, capsys):
    """The caption of README's picture: the sign is found, the car park has two objects."""
    config = get_config_file("camvid/tdos_lite2_cutouts_memory.yaml")
    words = ["--config-file", config, "--input", "docs/photographs", "--output", str(tmp_path)]
    predict([*words, "--opts", "MODEL.DEVICE", "cpu"])
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    objects = {Path(one["input"]).stem: one["objects"] for one in map(json.loads, lines)}
    assert {name: len(found) for name, found in objects.items()} == {
        "driveway": 0, "parking-ramp": 2, "route66": 1,
    }  # fmt: skip
    left, top, right, bottom = objects["route66"][0]["box"]
    assert left < 38 < right and top < 112 < bottom  # the middle of the sign
    assert right - left < 90 and bottom - top < 90
