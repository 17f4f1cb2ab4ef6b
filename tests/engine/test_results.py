"""What is said of results: that there are none, and what the model was trained on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from tdos_d2.engine import Trainer, check_expected_results
from tdos_d2.engine.results import keep_operating_point, write_results
from tdos_d2.errors import UserError
from tdos_d2.evaluation.evaluators import score_settings
from tdos_d2.evaluation.operating_point import (
    OperatingPoint,
    load_operating_point,
    threshold_file,
)


@pytest.mark.parametrize("row", [{"ood": {"AP": math.nan}}, {"sem_seg": {"mIoU": math.nan}}])
def test_results_without_metrics_are_an_error(small_cfg, small_dataset, row):
    small_cfg.DATASETS.TEST = (small_dataset,)
    with pytest.raises(UserError, match=f"'{small_dataset}' has no metrics"):
        check_expected_results(small_cfg, row)
    small_cfg.DATASETS.TEST = ("a", "b")
    with pytest.raises(UserError, match="'b' has no metrics"):
        check_expected_results(small_cfg, {"a": {"ood": {"AP": 1.0}}, "b": row})


def test_results_say_what_auto_fell_back_to(small_cfg, tmp_path):
    node, small_cfg.OUTPUT_DIR = small_cfg.INPUT.OOD_PASTE, str(tmp_path)
    node.SOURCE, node.COCO_LIST = "auto", str(tmp_path / "gone.json")
    trainer = Trainer(small_cfg)
    trainer.checkpointer.save("model_final")

    def written(checkpoint: Path | str) -> str:
        write_results(small_cfg, {"a": {"ood": {"AP": 1.0}}}, checkpoint)
        return (tmp_path / "results.md").read_text()

    warning = f"**Warning: INPUT.OOD_PASTE.SOURCE is auto and {tmp_path}/gone.json does not exist"
    assert warning in written("of iteration 3, which were not saved")
    assert warning not in written("(none)")  # of weights from elsewhere nothing is known
    node.SOURCE = "shapes"  # such as where only the checkpoint is
    assert warning in written(tmp_path / "model_final.pth")
    assert warning not in written("of iteration 3, which were not saved")


@pytest.mark.parametrize(
    "rule, extra, said",
    [
        ("best-f1", ["energy"], "at the threshold of the best pixel F1 on the same frames."),
        ("fpr:0.01", ["energy"], "at the threshold of TEST.THRESHOLD fpr:0.01."),
        ("calibrated", [], "at the threshold of TEST.THRESHOLD calibrated."),
        ("calibrated", ["energy"], "calibrated, and those of extra scores at the threshold of the"),
    ],
)
def test_results_say_which_threshold_components_have(small_cfg, tmp_path, rule, extra, said):
    small_cfg.OUTPUT_DIR, small_cfg.TEST.THRESHOLD = str(tmp_path), rule
    small_cfg.MODEL.TDOS.EXTRA_SCORES = extra
    write_results(small_cfg, {"a": {"ood": {"AP": 1.0}}}, "(none)")
    assert said in (tmp_path / "results.md").read_text()


def test_no_threshold_is_written_beside_weights_that_ship(small_cfg, tmp_path, monkeypatch):
    point = OperatingPoint(score="log_s_ood", threshold=0.5, dataset="odd", f1=50.0)
    evaluator = SimpleNamespace(operating_point=point)
    checkpoint = tmp_path / "weights" / "model.pth"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    keep_operating_point(small_cfg, [evaluator], checkpoint)
    settings = score_settings(small_cfg)
    assert load_operating_point(checkpoint) == dataclasses.replace(point, settings=settings)
    threshold_file(checkpoint).unlink()
    monkeypatch.setattr("tdos_d2.engine.results.WEIGHTS_DIR", tmp_path / "weights")
    keep_operating_point(small_cfg, [evaluator], checkpoint)
    assert not threshold_file(checkpoint).exists()
