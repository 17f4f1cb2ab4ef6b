"""tools/benchmark.py: it runs, and what it compares with computes the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from script_loading import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # as for a script
    return load_script("tools/benchmark.py")


def test_small_run_prints_ratios_and_hardware(tool, capsys):
    words = ["evaluation", "--frames", "2", "--size", "512x256", "--reference-frames", "1"]
    args = tool._parser().parse_args(words)
    args.run(args)
    text = capsys.readouterr().out
    assert "512x256" in text and "scikit-learn" in text and "cores" in text
    for what, frames in (("pixel metrics", 1), ("component metrics", 2)):
        row = re.search(rf"^{what} +(\d+) .* ([\d.]+) +>= \d+$", text, re.MULTILINE)
        assert int(row[1]) == frames and float(row[2]) > 0
    assert float(re.search(r"largest difference of a metric: ([\d.]+)", text)[1]) < 0.01
    assert re.search(r"all seven metrics, 2 frames: [\d.]+ s per frame", text)


def test_frames_have_60_components_and_a_score_that_finds_most(tool):
    ((score, label),) = tool.evaluation.synthetic_frames(1, (512, 1024))
    assert score.shape == label.shape == (512, 1024) and score.dtype == np.float32
    assert 50 <= ndimage.label(label == 1)[1] <= 60
    assert score[label == 1].mean() > score[label == 0].mean() + 2


def test_imports_and_commands_are_timed_without_the_first_run(tool):
    startup = tool.startup
    base, added = startup.import_seconds(("json", "decimal"), 2)
    assert len(base) == len(added) == 2 and min(*base, *added) > 0
    commands = startup.help_commands()
    assert {"train_net.py", "tools/predict.py", "datasets/verify.py"} <= commands.keys()
    assert "datasets/_common.py" not in commands
    slow, quick = (
        startup.command_seconds([sys.executable, "-c", f"import time; time.sleep({s})"], 1)
        for s in (0.3, 0)
    )
    assert len(slow) == len(quick) == 1 and slow[0] > 0.3 and slow[0] > quick[0]
    with pytest.raises(RuntimeError, match="failed"):
        startup.command_seconds([sys.executable, "-c", "exit(2)"], 1)


def test_median_and_spread(tool):
    assert tool.startup.median_and_spread([3.0, 0.5, 1.25]) == "1.25 (0.50 to 3.00)"
