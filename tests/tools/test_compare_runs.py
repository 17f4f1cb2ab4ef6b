"""The comparison of runs from the command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from script_loading import load_script

from tdos_d2.errors import UserError
from tdos_d2.evaluation.bootstrap import FrameTable
from tdos_d2.evaluation.comparison import FOLDER, save_frame_table

TOOL = load_script("tools/compare_runs.py")


def keep(run, task: str, known: list[int], ood: list[int], components=None) -> None:
    """Three equal frames; pixels of three scores, the largest first."""
    components = np.zeros((3, 26)) if components is None else components
    counts = np.tile([known, ood], (3, 1, 1))
    table = FrameTable(["a", "b", "c"], counts, np.zeros(3, bool), components)
    save_frame_table(run / FOLDER / f"own.{task}.npz", table)


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    def compare(*words: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *words, "--format", "json"])
        monkeypatch.chdir(tmp_path)
        TOOL.run()
        return json.loads(capsys.readouterr().out)

    keep(tmp_path / "perfect", "ood", [0, 2, 2], [4, 0, 0])
    keep(tmp_path / "flat", "ood", [0, 4, 0], [0, 4, 0])  # all equal: AP is the share, a half
    keep(tmp_path / "flat", "ood_memory", [0, 2, 2], [4, 0, 0])
    return compare


def test_differences(compare):
    rows = compare("--first", "flat", "--second", "perfect")
    assert [row["metric"] for row in rows] == ["AP", "FPR95"]
    # All frames are equal, so every drawn set gives the same.
    assert [row["mean"] for row in rows] == [50, -100]
    assert [[row["low"], row["high"]] for row in rows] == [[50, 50], [-100, -100]]
    assert rows[0]["deviation"] is None


def test_counts_of_an_earlier_evaluation(compare, tmp_path):
    """A later one without TEST.FRAME_COUNTS wrote results.json, and left them."""
    for stated in ({"AP": 49.95}, {"AP": 50.0}, {}):
        results = {"own": {"ood": stated}}
        (tmp_path / "flat" / "results.json").write_text(json.dumps(results))
        assert compare("--first", "flat", "--second", "perfect")[0]["mean"] == 50
    (tmp_path / "flat" / "results.json").write_text('{"own": {"ood": {"AP": 51.5}}}')
    with pytest.raises(UserError, match=r"own\.ood\.npz is of another .* AP 50\.0, not 51\.5"):
        compare("--first", "flat", "--second", "perfect")
    # The later one had no metrics: its frames had no OOD or no known pixels.
    (tmp_path / "flat" / "results.json").write_text('{"own": {"ood": {"AP": null}}}')
    with pytest.raises(UserError, match=r"own\.ood\.npz is of another .* AP 50\.0, not nan"):
        compare("--first", "flat", "--second", "perfect")
    # At another TEST.THRESHOLD only the components are others.
    components = np.zeros((3, 26))
    components[:, :2] = 2, 0.8  # two true components in each frame, of 40 % on average
    keep(tmp_path / "flat", "ood", [0, 4, 0], [0, 4, 0], components)
    keep(tmp_path / "perfect", "ood", [0, 2, 2], [4, 0, 0], components)
    for stated in (40.0, 43.0):
        results = {"own": {"ood": {"AP": 50.0, "sIoU": stated, "PPV": None}}}
        (tmp_path / "flat" / "results.json").write_text(json.dumps(results))
        if stated == 40.0:
            compare("--first", "flat", "--second", "perfect")
    with pytest.raises(UserError, match=r"is of another evaluation .* sIoU 40\.0, not 43\.0"):
        compare("--first", "flat", "--second", "perfect")


def test_runs_on_other_labels_make_no_pair(compare, tmp_path):
    """Of the same frames, labelled again between two evaluations."""
    keep(tmp_path / "relabelled", "ood", [0, 2, 1], [4, 1, 0])
    with pytest.raises(UserError, match="evaluated on other labels"):
        compare("--first", "flat", "--second", "relabelled")
    words = ("--first", "flat", "relabelled", "--second", "perfect", "relabelled")
    with pytest.raises(UserError, match="evaluated on other labels"):
        compare(*words)


def test_two_scores_of_one_run(compare):
    rows = compare("--first", "flat", "--second", "flat", "--task", "ood", "ood_memory")
    assert rows[0]["mean"] == 50


def test_pairs(compare):
    words = ("--first", "flat", "perfect", "--second", "perfect", "perfect", "--metrics", "AP")
    (row,) = compare(*words)
    assert row["mean"] == 25
    assert row["deviation"] == pytest.approx(25 * 2**0.5)  # of 50 and 0


def test_mistakes(compare):
    with pytest.raises(UserError, match="make no pairs"):
        compare("--first", "flat", "--second", "perfect", "flat")
    with pytest.raises(UserError, match="named twice"):
        compare("--first", "flat", "flat", "--second", "perfect", "perfect")
    with pytest.raises(UserError, match="TEST.FRAME_COUNTS"):
        compare("--first", "elsewhere", "--second", "perfect")
    with pytest.raises(UserError, match=r"perfect.frame_counts.own.ood_memory.npz is no file"):
        compare("--first", "flat", "--second", "perfect", "--task", "ood_memory")
