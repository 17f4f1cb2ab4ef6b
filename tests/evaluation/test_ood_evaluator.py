"""OODEvaluator and build_evaluator in one process."""

from __future__ import annotations

import dataclasses
import logging
import math
import os

import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA
from detectron2.config import get_cfg
from detectron2.evaluation import SemSegEvaluator as BaseSemSegEvaluator
from PIL import Image

from tdos_d2.config import add_tdos_config
from tdos_d2.errors import UserError
from tdos_d2.evaluation import (
    OODEvaluator,
    build_evaluator,
    evaluate_breakdown,
    evaluate_scores,
)
from tdos_d2.evaluation.calibration import Calibration, save_calibration
from tdos_d2.evaluation.evaluators import threshold_rule
from tdos_d2.evaluation.threshold_rules import parse_rule

SIZES = [(20, 30), (30, 20), (25, 25)]


@pytest.fixture
def ood_set(make_dataset):
    """(dataset dicts, labels, scores) of a set named tiny_ood."""
    rng = np.random.default_rng(3)
    labels = [rng.choice([0, 1, 255], size, p=[0.7, 0.2, 0.1]).astype(np.uint8) for size in SIZES]
    scores = [rng.normal(label == 1, 1).astype(np.float32) for label in labels]
    return make_dataset("tiny_ood", labels, **OOD_METADATA), labels, scores


def run(evaluator, dicts, outputs):
    evaluator.reset()
    for record, output in zip(dicts, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def tensors(scores):
    return [torch.from_numpy(score) for score in scores]


def test_is_evaluate_scores_on_the_files_of_the_set(ood_set, tmp_path):
    dicts, labels, scores = ood_set
    outputs = [{"ood_score": score} for score in tensors(scores)]
    evaluator = OODEvaluator("tiny_ood", output_dir=tmp_path / "out")
    expected = {"ood": evaluate_scores(zip(scores, labels, strict=True), min_pred=1, min_gt=1)}
    assert run(evaluator, dicts, outputs) == expected
    assert run(evaluator, dicts[::-1], outputs[::-1]) == expected  # used again, after reset
    assert os.listdir(tmp_path / "out") == []
    assert not any("-" in name for name in expected["ood"])


def test_hidden_test_split_has_no_metrics(make_dataset, caplog):
    label = np.zeros((4, 5), np.uint8)
    dicts = make_dataset("tiny_test", [label, label], **OOD_METADATA, has_labels=False)
    for record in dicts:
        del record["sem_seg_file_name"]
    with caplog.at_level(logging.INFO):
        outputs = [{"ood_score": torch.zeros(4, 5)}] * 2
        assert run(OODEvaluator("tiny_test"), dicts, outputs) == {}
    assert caplog.messages == ["tiny_test: no labels, so no metrics"]


def test_region_mask_is_void(make_dataset, tmp_path):
    label = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    score = np.array([[0.1, 0.9, 0.0], [0.2, 0.3, 0.8]], np.float32)
    mask = np.array([[0, 0, 1], [0, 0, 0]], np.uint8)  # the only anomaly with a low score
    Image.fromarray(mask).save(tmp_path / "ego.png")
    dicts = make_dataset("tiny_masked", [label], **OOD_METADATA)
    outputs = [{"ood_score": torch.from_numpy(score)}]
    assert run(OODEvaluator("tiny_masked"), dicts, outputs)["ood"]["AP"] < 100
    dicts[0]["region_mask_file_name"] = str(tmp_path / "ego.png")
    assert run(OODEvaluator("tiny_masked"), dicts, outputs)["ood"]["AP"] == 100


def test_label_values_and_sizes_come_from_the_metadata(ood_set, make_dataset):
    dicts, labels, scores = ood_set
    outputs = [{"ood_score": score} for score in tensors(scores)]
    expected = run(OODEvaluator("tiny_ood"), dicts, outputs)

    metadata = OOD_METADATA | {"id_values": (3, 4), "ood_values": (2,), "ignore_values": (9,)}
    values = np.zeros(256, np.uint8)
    values[[0, 1, 255]] = 4, 2, 9
    other = make_dataset("other_values", [values[label] for label in labels], **metadata)
    assert run(OODEvaluator("other_values"), other, outputs) == expected

    other = make_dataset("other_sizes", labels, **OOD_METADATA | {"min_gt": None})
    assert math.isnan(run(OODEvaluator("other_sizes"), other, outputs)["ood"]["sIoU"])


def test_plain_segmentation_model_is_scored_by_max_logit(ood_set):
    dicts, labels, _ = ood_set
    logits = [torch.randn(4, *label.shape) for label in labels]
    got = run(OODEvaluator("tiny_ood"), dicts, [{"sem_seg": x} for x in logits])
    scores = [-x.numpy().max(axis=0) for x in logits]
    expected = evaluate_scores(list(zip(scores, labels, strict=True)), min_pred=1, min_gt=1)
    assert got == {"ood": expected}


def test_a_calibrated_threshold_and_the_breakdown(ood_set, tmp_path, caplog):
    dicts, labels, scores = ood_set
    outputs = [{"ood_score": score} for score in tensors(scores)]
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "TDOS"
    cfg.TEST.THRESHOLD, cfg.TEST.BREAKDOWN = "calibrated", True
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"TEST.THRESHOLD: no calibrated threshold .*model\.pth"):
        build_evaluator(cfg, "tiny_ood")
    made = Calibration(1.25, 0.1, frames=20, min_area=5, score="entropy")
    save_calibration(cfg.MODEL.WEIGHTS, made)
    with pytest.raises(UserError, match="is for entropy, the score is log_s_ood"):
        build_evaluator(cfg, "tiny_ood")
    save_calibration(cfg.MODEL.WEIGHTS, dataclasses.replace(made, score="log_s_ood"))
    with caplog.at_level(logging.INFO):
        results = run(build_evaluator(cfg, "tiny_ood"), dicts, outputs)
    assert "components at 1.25 (calibrated on 20 normal frames)" in caplog.text
    pairs, sizes = list(zip(scores, labels, strict=True)), {"min_pred": 1, "min_gt": 1}
    assert results.pop("ood") == evaluate_scores(pairs, **sizes, threshold="1.25")
    rows = evaluate_breakdown(pairs, **sizes, threshold="1.25")
    assert results == {f"ood_{name}": row for name, row in rows.items()} != {}
    # A file that is named is compared with the score and the checkpoint as well.
    cfg.TEST.THRESHOLD = str(tmp_path / "other.json")
    save_calibration(cfg.MODEL.WEIGHTS, made, tmp_path / "other.json")
    with pytest.raises(UserError, match="threshold of entropy, the score is log_s_ood"):
        build_evaluator(cfg, "tiny_ood")
    of_score = dataclasses.replace(made, score="log_s_ood")
    save_calibration(cfg.MODEL.WEIGHTS, of_score, tmp_path / "other.json")
    build_evaluator(cfg, "tiny_ood")
    # Scores of images of another size are not those that the promise is about.
    made = dataclasses.replace(of_score, settings={"INPUT.MIN_SIZE_TEST": 720, "half": True})
    save_calibration(cfg.MODEL.WEIGHTS, made)
    save_calibration(cfg.MODEL.WEIGHTS, made, tmp_path / "other.json")
    for text in ("calibrated", cfg.TEST.THRESHOLD):
        cfg.TEST.THRESHOLD, cfg.INPUT.MIN_SIZE_TEST = text, 480
        note = "with other settings: INPUT.MIN_SIZE_TEST is 480, then 720"
        assert str(threshold_rule(cfg)).endswith(note)
        cfg.INPUT.MIN_SIZE_TEST = 720
        assert "other settings" not in str(threshold_rule(cfg))
    (tmp_path / "model.pth").write_bytes(b"other weights")
    with pytest.raises(UserError, match="threshold of another checkpoint"):
        build_evaluator(cfg, "tiny_ood")


def test_no_frame_was_evaluated(ood_set, tmp_path, caplog):
    rule = parse_rule("1.25")
    shown = {"report": True, "show_dir": tmp_path / "pictures", "frame_counts": tmp_path}
    evaluator = OODEvaluator("tiny_ood", rule=rule, breakdown=True, **shown)
    (metrics,) = run(evaluator, [], []).values()
    assert all(math.isnan(value) for value in metrics.values())
    assert "only 0 of 3 frames were evaluated" in caplog.text


def test_other_scores_are_tasks_of_their_own(ood_set):
    dicts, labels, scores = ood_set
    outputs = [
        {"ood_score": torch.zeros(label.shape), "ood_scores": {"entropy": score.double()}}
        for label, score in zip(labels, tensors(scores), strict=True)
    ]
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.MODEL.TDOS.EXTRA_SCORES = ["entropy"]
    results = run(build_evaluator(cfg, "tiny_ood"), dicts, outputs)
    expected = evaluate_scores(list(zip(scores, labels, strict=True)), min_pred=1, min_gt=1)
    assert list(results) == ["ood", "ood_entropy"]
    assert results["ood_entropy"] == expected and results["ood"]["AUROC"] == 50
    with pytest.raises(UserError, match=r"'energy' .*entropy"):
        run(OODEvaluator("tiny_ood", score="energy"), dicts, outputs)


@pytest.mark.parametrize(
    "score, says",
    [
        (torch.full((20, 30), torch.nan), "600 of 600"),
        (torch.zeros(10, 15), r"\(10, 15\).*\(20, 30\)"),
        (torch.zeros(1, 20, 30), r"\(1, 20, 30\)"),
    ],
)
def test_bad_scores_name_the_frame(ood_set, score, says):
    dicts = ood_set[0]
    with pytest.raises(UserError, match=f"tiny_ood_0.jpg.*{says}"):
        run(OODEvaluator("tiny_ood"), dicts[:1], [{"ood_score": score}])


def test_every_frame_counts_once(ood_set, caplog):
    dicts, _, scores = ood_set
    outputs = [{"ood_score": score} for score in tensors(scores)]
    with pytest.raises(UserError, match="frame 1 was evaluated 2 times"):
        run(OODEvaluator("tiny_ood"), [*dicts, dicts[1]], [*outputs, outputs[1]])
    with pytest.raises(UserError, match=r"else.jpg is not a frame of dataset 'tiny_ood'"):
        run(OODEvaluator("tiny_ood"), [{"file_name": "else.jpg"}], outputs[:1])
    assert "frames" not in caplog.text
    run(OODEvaluator("tiny_ood"), dicts[:2], outputs[:2])
    assert "only 2 of 3 frames" in caplog.text


def test_frames_without_label_are_an_error(ood_set):
    del ood_set[0][2]["sem_seg_file_name"]
    with pytest.raises(UserError, match="tiny_ood_2.jpg has no label"):
        OODEvaluator("tiny_ood")


def test_evaluators_by_type(make_dataset):
    cfg = get_cfg()
    add_tdos_config(cfg)
    label = np.zeros((2, 2), np.uint8)
    for kind in ("sem_seg", "cityscapes_sem_seg"):
        make_dataset(f"a_{kind}", [label], evaluator_type=kind, ignore_label=255, stuff_classes=[])
        assert isinstance(build_evaluator(cfg, f"a_{kind}"), BaseSemSegEvaluator)
    make_dataset("a_coco", [label], evaluator_type="coco")
    with pytest.raises(UserError, match="'a_coco'.*'coco'"):
        build_evaluator(cfg, "a_coco")
