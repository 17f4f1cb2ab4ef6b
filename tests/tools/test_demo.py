"""The demo from end to end with two iterations, and its baseline."""

from __future__ import annotations

import json
import sys

import numpy as np
from detectron2.data import DatasetCatalog
from script_loading import load_script


def run_demo(output, monkeypatch) -> None:
    words = ["demo.py", "--output", str(output), "SOLVER.MAX_ITER", "2"]
    monkeypatch.setattr(sys, "argv", words)
    load_script("tools/demo.py").run()


def test_demo_writes_picture_table_and_results(few_scenes, tmp_path, monkeypatch, capsys):
    run_demo(tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["demo_ood"]) == {
        "ood", "ood_max_logit", "ood_untrained", "ood_colour_histogram"
    }
    assert 0 <= results["demo_val"]["sem_seg"]["mIoU"] <= 100
    kinds = {name for name in results if "/" in name}
    assert kinds >= {"demo_ood/sofa", "demo_ood_hard/ladder"}
    for name in ("TDOS", "untrained", "colour histogram", "ladder (shown only)", "mIoU"):
        assert name in printed
    assert str(tmp_path / "contact_sheet.png") in printed
    assert (tmp_path / "contact_sheet.png").stat().st_size > 50_000
    # The same seed: the same numbers and picture.
    run_demo(tmp_path / "again", monkeypatch)
    for name in ("results.json", "contact_sheet.png"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_histogram_scores_rare_colours_higher(monkeypatch):
    demo = load_script("tools/demo.py")
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [{"file_name": "x"}] * 3)
    monkeypatch.setattr("tdos_d2.data.read_image", lambda path, fmt: red)
    both = np.concatenate([red, blue])
    scores = demo.colour_histogram_scores("train", [(both, None, None, "")])[0]
    # 192 red pixels and one imagined pixel in each of 4,096 bins
    expected = -np.log([193 / 4288, 1 / 4288])
    np.testing.assert_allclose(scores[[0, 8], 0], expected)
