"""The loop over configs and seeds: what is done stays done, and the table's numbers are right."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdos_d2.errors import UserError
from tdos_d2.evaluation.bootstrap import FrameTable
from tdos_d2.evaluation.comparison import FOLDER, save_frame_table

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("street_ood/ood/AP", "street_val/sem_seg/mIoU")


@pytest.fixture
def ablation():
    return runpy.run_path(str(ROOT / "tools" / "ablation.py"), run_name="ablation")


def finished(output: Path, config: str, seed: int, ap: float, miou: float) -> None:
    folder = output / config / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    results = {"street_ood": {"ood": {"AP": ap}}, "street_val": {"sem_seg": {"mIoU": miou}}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "minutes.json").write_text(json.dumps({"minutes": 2.0}))


def test_table_has_means_and_sample_deviations(ablation, tmp_path):
    for seed, ap in enumerate((40.0, 43.0, 46.0), start=1):
        finished(tmp_path, "full", seed, ap, 50.0)
    table = ablation["markdown_table"]([Path("full.yaml")], [1, 2, 3], tmp_path, METRICS)
    # mean 43, deviations -3, 0, 3: sqrt(18 / 2) = 3
    assert table.splitlines()[-1] == "| full | 43.0 ± 3.0 | 50.0 ± 0.0 | 2.0 ± 0.0 |"
    single = ablation["markdown_table"]([Path("full.yaml")], [2], tmp_path, METRICS)
    assert single.splitlines()[-1] == "| full | 43.0 | 50.0 | 2.0 |"


def test_a_metric_that_is_not_defined(ablation, tmp_path):
    for seed, ap in enumerate((40.0, None), start=1):
        finished(tmp_path, "full", seed, ap, 50.0)
    table = ablation["markdown_table"]([Path("full.yaml")], [1, 2], tmp_path, METRICS)
    assert table.splitlines()[-1] == "| full | nan | 50.0 ± 0.0 | 2.0 ± 0.0 |"


def test_a_metric_that_is_not_there_is_named(ablation, tmp_path):
    finished(tmp_path, "full", 1, 40.0, 50.0)
    with pytest.raises(UserError, match="street_ood/ood/AUROC"):
        ablation["markdown_table"]([Path("full.yaml")], [1], tmp_path, ["street_ood/ood/AUROC"])


def test_finished_runs_are_not_run_again(ablation, tmp_path, monkeypatch, capsys):
    config = tmp_path / "full.yaml"
    config.write_text("SEED: 0\n")
    ablation["_check_settings"](config, tmp_path / "out" / "full" / "seed1", ())
    finished(tmp_path / "out", "full", 1, 40.0, 50.0)
    called = []
    monkeypatch.setitem(ablation["run"].__globals__, "_run", lambda *args: called.append(args))
    words = [str(config), "--seeds", "1", "--output", str(tmp_path / "out"), "--metrics", *METRICS]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    ablation["run"]()
    assert not called
    assert (tmp_path / "out" / "results.md").read_text().rstrip() in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words, "--opts", "SOLVER.MAX_ITER", "7"])
    with pytest.raises(UserError, match="seed1 is a run of another config or --opts"):
        ablation["run"]()
    (tmp_path / "out" / "full" / "seed1" / "settings.yaml").unlink()
    with pytest.raises(UserError, match=r"seed1 has a finished run but no settings\.yaml"):
        ablation["run"]()


@pytest.mark.parametrize("cut_off", [False, True])
def test_minutes_are_of_whole_runs(ablation, tmp_path, monkeypatch, cut_off):
    """Those of the last part of a run that was resumed would be too few."""
    config, output = tmp_path / "full.yaml", tmp_path / "out"
    config.write_text("SEED: 0\n")
    if cut_off:
        (output / "full" / "seed1").mkdir(parents=True)
        (output / "full" / "seed1" / "last_checkpoint").write_text("model_0000009.pth")

    def fake_run(command, **_):
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        (folder / "last_checkpoint").write_text("model_final.pth")
        (folder / "results.json").write_text(json.dumps({"road": {"ood": {"AP": 30.0}}}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablation["run"].__globals__["subprocess"], "run", fake_run)
    words = [str(config), "--seeds", "1", "--output", str(output), "--metrics", "road/ood/AP"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    ablation["run"]()
    row = f"| full | 30.0 | {'nan' if cut_off else '0.0'} |"
    assert row in (output / "results.md").read_text()


def test_runs_that_are_named_twice_are_an_error(ablation, tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "full.yaml").write_text("")
    words = [str(tmp_path / "a/full.yaml"), str(tmp_path / "b/full.yaml")]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    with pytest.raises(UserError, match="one file name"):
        ablation["run"]()
    monkeypatch.setattr(sys, "argv", ["ablation.py", words[0], "--seeds", "1", "2", "1"])
    with pytest.raises(UserError, match="--seeds names a seed twice"):
        ablation["run"]()


def test_differences_are_paired_by_seed(ablation, tmp_path):
    for seed, (a, b) in enumerate(((40.0, 42.0), (43.0, 44.0), (46.0, 49.0)), start=1):
        finished(tmp_path, "a", seed, a, 50.0)
        finished(tmp_path, "b", seed, b, 49.0)
    paths = [Path("a.yaml"), Path("b.yaml")]
    table = ablation["differences_table"](paths, [1, 2, 3], tmp_path, METRICS)
    # 2, 1 and 3: mean 2, deviation 1, although the configs' own means are 43 and 45 with 3 and 3.6
    assert table.splitlines()[-1] == "| b - a | +2.0 ± 1.0 | -1.0 ± 0.0 |"
    # Where the counts of the frames were kept, with the interval over frames: all frames are equal.
    for config, counts in (("a", [[0, 4, 0], [0, 4, 0]]), ("b", [[0, 2, 2], [4, 0, 0]])):
        kept = FrameTable(["x", "y"], np.array([counts] * 2), np.zeros(3, bool), np.zeros((2, 26)))
        for seed in (1, 2, 3):
            folder = tmp_path / config / f"seed{seed}" / "test" / FOLDER
            save_frame_table(folder / "street_ood.ood.npz", kept)
    table = ablation["differences_table"](paths, [1, 2, 3], tmp_path, METRICS)
    assert table.splitlines()[-1] == "| b - a | +2.0 ± 1.0 [+50.0, +50.0] | -1.0 ± 0.0 |"


def test_test_sets_are_evaluated_once_with_the_trained_model(ablation, tmp_path, monkeypatch):
    config, output = tmp_path / "full.yaml", tmp_path / "out"
    config.write_text("SEED: 0\n")
    ablation["_check_settings"](config, output / "full" / "seed1", ())
    finished(output, "full", 1, 40.0, 50.0)
    commands = []

    def fake_run(command, **_):
        commands.append(command)
        folder = Path(command[command.index("OUTPUT_DIR") + 1])
        names = ast.literal_eval(command[command.index("DATASETS.TEST") + 1])
        results = {name: {"ood": {"AP": 30.0}} for name in names}
        (folder / "results.json").write_text(json.dumps(results))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablation["run"].__globals__["subprocess"], "run", fake_run)
    words = [str(config), "--seeds", "1", "--output", str(output), "--evaluate", "road"]
    words += ["--metrics", *METRICS, "road/ood/AP"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    for _ in range(2):
        ablation["run"]()
        assert "| full | 40.0 | 50.0 | 30.0 | 2.0 |" in (output / "results.md").read_text()
    (command,) = commands
    assert "--eval-only" in command and "--resume" not in command
    pairs = dict(pairwise(command))
    assert pairs["MODEL.WEIGHTS"] == str(output / "full/seed1/model_final.pth")
    assert pairs["DATASETS.TEST"] == "('road',)" and pairs["TEST.FRAME_COUNTS"] == "True"
    assert pairs["TEST.MISSING"] == "error"
    assert pairs["OUTPUT_DIR"] == str(output / "full/seed1/test") and pairs["SEED"] == "1"
    # Another set is not passed over, and those of before stay in the file.
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words, "town/ood/AP", "--evaluate", "town"])
    ablation["run"]()
    assert "| full | 40.0 | 50.0 | 30.0 | 30.0 | 2.0 |" in (output / "results.md").read_text()
    assert dict(pairwise(commands[1]))["DATASETS.TEST"] == "('road', 'town')"
