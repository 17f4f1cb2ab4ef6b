"""The contact sheet of training samples."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_loading import load_script

from tdos_d2.data import build_train_loader
from tdos_d2.engine import load_config
from tdos_d2.errors import UserError
from tdos_d2.visualization.drawing import OOD_COLOUR, VOID_COLOUR, overlay

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/visualize_data.py")


def run(tool, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["visualize_data.py", *map(str, words)])
    tool.run()


def test_sheets_of_the_demo(few_scenes, tool, monkeypatch, capsys, tmp_path):
    words = ["--config-file", DEMO, "--output", tmp_path, "--num", 14, "--first", 3]
    run(tool, monkeypatch, *words, "INPUT.OOD_PASTE.PROB", "1.0")
    out = capsys.readouterr().out
    sheets = [tmp_path / "samples_000003.png", tmp_path / "samples_000015.png"]
    sizes = []
    for sheet in sheets:
        assert str(sheet) in out
        picture = np.array(Image.open(sheet).convert("RGB"))
        assert (picture == OOD_COLOUR).all(-1).sum() > 100  # outlines, and the legend's
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
        sizes.append(picture.shape)
    assert sizes[0][1] == sizes[1][1] and sizes[0][0] > 3 * sizes[1][0]  # 12 samples, and 2
    assert "Outliers in 14 of 14 samples" in out


def test_samples_are_those_of_training(few_scenes, tool):
    cfg = load_config(DEMO)
    names = [f"class {i}" for i in range(10)]
    title, image, label = tool.read_samples(cfg, 5, 1, names)[0]
    assert title.startswith("5: demo_train, street_") and image.shape == (96, 192, 3)
    # The sixth sample of the run, in its second batch.
    cfg = load_config(DEMO, ["SOLVER.IMS_PER_BATCH", "4"])
    batches = iter(build_train_loader(cfg))
    sample = [*next(batches), *next(batches)][5]
    assert np.array_equal(image, sample["image"].permute(1, 2, 0).numpy())
    assert np.array_equal(label, sample["sem_seg"].numpy())
    # Shown in RGB whatever the model gets; the colours of pasted shapes go by place, not by name.
    shown = [
        tool.read_samples(
            load_config(DEMO, ["INPUT.OOD_PASTE.SOURCE", "none", "INPUT.FORMAT", order]),
            5,
            1,
            names,
        )[0][1].astype(int)
        for order in ("RGB", "BGR")
    ]
    assert np.abs(shown[0] - shown[1]).max() < 9


def test_overlay():
    image = np.full((40, 40, 3), 100, np.uint8)
    label = np.zeros((40, 40), np.uint8)
    label[:, :10] = 255
    label[10:30, 15:35] = 1
    picture = overlay(image, label, np.array([[200, 0, 50]], np.uint8))
    assert picture[5, 20].tolist() == [150, 50, 75]
    assert picture[5, 5].tolist() == [50 + value // 2 for value in VOID_COLOUR]
    assert picture[20, 25].tolist() == [100, 100, 100]
    outline = (picture == OOD_COLOUR).all(-1)
    assert outline[10, 15:35].all() and outline[10:30, 34].all() and not outline[12:28, 17:33].any()


def test_errors(tool, monkeypatch):
    with pytest.raises(UserError, match="nowhere"):
        run(tool, monkeypatch, "--config-file", DEMO, "DATASETS.TRAIN", "('nowhere',)")


def test_one_line_of_error(few_scenes, tool, monkeypatch, capsys):
    words = ["INPUT.OOD_PASTE.SOURCE", "coco", "INPUT.OOD_PASTE.COCO_LIST", "gone.json"]
    monkeypatch.setattr(sys, "argv", ["visualize_data.py", "--config-file", DEMO, *words])
    with pytest.raises(SystemExit) as caught:
        tool.exit_with_one_line(tool.run)
    assert caught.value.code == 2
    *progress, error = capsys.readouterr().err.splitlines()  # where the scenes are drawn anew
    assert error.startswith("error: INPUT.OOD_PASTE.COCO_LIST: gone.json does not exist")
    assert not any("rror" in line for line in progress)
