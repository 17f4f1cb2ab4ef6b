"""One command for all benchmarks: three tables, TTA, the threshold beside the checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from tdos_commands.train import run as train
from tdos_d2.data import read_label
from tdos_d2.engine import TDOSCheckpointer, check_run, load_config
from tdos_d2.errors import UserError
from tdos_d2.evaluation import evaluate_scores
from tdos_d2.evaluation.bootstrap import METRICS, replicates
from tdos_d2.evaluation.comparison import load_frame_table
from tdos_d2.evaluation.operating_point import load_operating_point
from tdos_d2.evaluation.score_files import find_score_files, read_score
from tdos_d2.loading.config_files import resolve_from_checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: "{weights}"
  TDOS:
    NUM_NEGATIVE: 4
    EXTRA_SCORES: []
  PIXEL_DECODER:
    NUM_LAYERS: 1
  TRANSFORMER_DECODER:
    NUM_LAYERS: 1
DATASETS:
  TEST:
    - demo_val
    - smiyc_anomalytrack_val
    - demo_ood_hard
TEST:
  MISSING: "skip"
  REPORT: True
  SHOW_DIR: "{folder}/show"
  AUG:
    ENABLED: True
    MIN_SIZES:
      - 64
  EXPORT:
    FORMAT: "smiyc"
    METHOD: "tiny"
  FRAME_COUNTS: True
  EXPECTED_RESULTS:
    - - "demo_val/sem_seg"
      - "mIoU"
      - 50.0
      - 50.0
    - - "demo_ood_hard/ood_TTA"
      - "AUROC"
      - 50.0
      - 50.0
OUTPUT_DIR: "{folder}/output"
"""


EVALUATED: list[tuple[Path, str]] = []


@pytest.fixture
def evaluated(few_scenes, tmp_path_factory, monkeypatch, capsys):
    """(folder, what was printed) of train_net.py --eval-only on an untrained checkpoint.

    Made by the first test that asks for it, in whose end the loggers are put right.
    """
    if EVALUATED:
        return EVALUATED[0]
    folder = tmp_path_factory.mktemp("eval_all")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "nothing"))
    weights = folder / "model" / "tiny.pth"
    base = ROOT / "configs" / "demo.yaml"
    config = folder / "all.yaml"
    config.write_text(CONFIG.format(base=base, weights="", folder=folder))
    cfg = load_config(str(config))
    resolve_from_checkpoint(cfg, resume=False, eval_only=False)
    cfg.MODEL.DEVICE = "cpu"
    weights.parent.mkdir()
    TDOSCheckpointer(build_model(cfg), str(weights.parent)).save("tiny")
    config.write_text(CONFIG.format(base=base, weights=weights, folder=folder))
    train(["--config-file", str(config), "--eval-only", "MODEL.DEVICE", "cpu"])
    EVALUATED.append((folder, capsys.readouterr().out))
    return EVALUATED[0]


def test_three_tables_of_what_is_there(evaluated):
    folder, text = evaluated
    assert "not tested, TEST.MISSING is skip: smiyc_anomalytrack_val" in text
    assert "Results verification passed" in text
    output = folder / "output"
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["demo_val", "demo_ood_hard"]
    assert list(results["demo_val"]) == ["sem_seg", "sem_seg_TTA"]
    assert list(results["demo_ood_hard"]) == ["ood", "ood_TTA"]
    assert results["demo_ood_hard"]["ood"] != results["demo_ood_hard"]["ood_TTA"]
    counts = load_frame_table(output / "frame_counts" / "demo_ood_hard.ood.npz")
    everything = np.ones((1, len(counts.frames)), int)
    values, bounds = replicates(counts, everything)
    ap = results["demo_ood_hard"]["ood"]["AP"]  # of the single pass, as the task is called
    assert abs(values[METRICS.index("AP"), 0] - ap) <= bounds[METRICS.index("AP"), 0] + 1e-3
    markdown, latex = (output / "results.md").read_text(), (output / "results.tex").read_text()
    for name, tasks in results.items():
        for task, metrics in tasks.items():
            shown = f"{metrics.get('AUROC', metrics.get('mIoU')):.2f}"
            (line,) = [x for x in markdown.splitlines() if f" {name} " in x and f" {task} " in x]
            assert f" {shown} " in line
            assert shown in latex and name.replace("_", r"\_") in latex
    assert "tiny.pth" in markdown and latex.count(r"\begin{tabular}") == 2


def test_report_and_overlays_of_all_sets(evaluated):
    folder, text = evaluated
    page = folder / "output" / "report" / "index.html"
    assert f"Report: {page}" in text
    html = page.read_text("utf-8")
    results = json.loads((folder / "output" / "results.json").read_text())
    for tasks in results.values():
        for metrics in tasks.values():
            shown = f"{metrics.get('AUROC', metrics.get('mIoU')):.2f}"
            assert re.search(rf"<td[^>]*> *{re.escape(shown)} *</td>", html)
    assert "tiny.pth" in html
    assert "<dd>log_s_ood</dd>" in html and (page.parent / "demo_ood_hard_roc.png").exists()
    for run in ("show", "show_TTA"):
        for name in results:
            found = {path.stem for path in (folder / run / name).rglob("*.jpg")}
            assert found == {Path(r["file_name"]).stem for r in DatasetCatalog.get(name)}


def test_exported_score_maps_and_threshold_give_the_same_metrics(evaluated):
    """The files written for submission, evaluated anew, give the table and the threshold."""
    folder, text = evaluated
    records = DatasetCatalog.get("demo_ood_hard")
    metadata = MetadataCatalog.get("demo_ood_hard")
    scores = folder / "output" / "inference" / "anomaly_p" / "tiny" / "demo_ood_hard"
    files = find_score_files(scores, [record["image_id"] for record in records])
    labels = [read_label(record["sem_seg_file_name"], metadata) for record in records]
    frames = [(read_score(path), label) for path, label in zip(files.values(), labels, strict=True)]
    again = evaluate_scores(frames, min_pred=metadata.min_pred, min_gt=metadata.min_gt)
    results = json.loads((folder / "output" / "results.json").read_text())
    expected = {
        key: np.nan if v is None else v for key, v in results["demo_ood_hard"]["ood"].items()
    }
    assert again == pytest.approx(expected, nan_ok=True)

    point = load_operating_point(folder / "model" / "tiny.pth")
    assert (point.score, point.dataset) == ("log_s_ood", "demo_ood_hard")
    predicted = np.concatenate([score[label < 255] >= point.threshold for score, label in frames])
    truth = np.concatenate([label[label < 255] == 1 for _, label in frames])
    f1 = 200 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert (
        f1 == pytest.approx(point.f1, abs=0.01)
        and point.f1 == results["demo_ood_hard"]["ood"]["F1"]
    )
    assert "the best pixel F1" in text and "tiny.pth.threshold.json" in text


def test_shipped_config_names_sets_that_are_registered():
    cfg = load_config(str(ROOT / "configs" / "eval_all.yaml"))
    assert set(cfg.DATASETS.TEST) <= set(DatasetCatalog.keys())
    assert cfg.TEST.MISSING == "skip" and len(cfg.DATASETS.TEST) >= 9


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("TEST.THRESHOLD_DATASET", "road_anomaly"), "TEST.THRESHOLD_DATASET.*'road_anomaly'"),
        (("TEST.EXPORT.FORMAT", "zip"), "TEST.EXPORT.FORMAT.*'zip'"),
        (("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(0,)"), "TEST.AUG.MIN_SIZES"),
    ],
)
def test_wrong_settings_are_told_before_the_start(few_scenes, words, says, tmp_path):
    from detectron2.engine import default_argument_parser

    words = ["OUTPUT_DIR", str(tmp_path), *words]
    with pytest.raises(UserError, match=says):
        cfg = load_config(str(ROOT / "configs" / "demo.yaml"), words)
        check_run(cfg, default_argument_parser().parse_args(["--eval-only"]))
