"""The loop over configs and seeds: what is done stays done, and the table's numbers are right."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tdos_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("street_ood/ood/AP", "street_val/sem_seg/mIoU")


@pytest.fixture
def ablation():
    return runpy.run_path(str(ROOT / "tools" / "ablation.py"), run_name="ablation")


def finished(output: Path, config: str, seed: int, ap: float, miou: float) -> None:
    folder = output / config / f"seed{seed}"
    folder.mkdir(parents=True)
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
    config.write_text("")
    finished(tmp_path / "out", "full", 1, 40.0, 50.0)
    called = []
    monkeypatch.setitem(ablation["run"].__globals__, "_train", lambda *args: called.append(args))
    words = [str(config), "--seeds", "1", "--output", str(tmp_path / "out"), "--metrics", *METRICS]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    ablation["run"]()
    assert not called
    assert (tmp_path / "out" / "results.md").read_text().rstrip() in capsys.readouterr().out


def test_configs_of_one_name_are_an_error(ablation, tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "full.yaml").write_text("")
    words = [str(tmp_path / "a/full.yaml"), str(tmp_path / "b/full.yaml")]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    with pytest.raises(UserError, match="one file name"):
        ablation["run"]()
