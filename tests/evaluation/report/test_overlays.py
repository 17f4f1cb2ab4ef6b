"""Pictures of all frames and sections of reports, by build_evaluator."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA
from detectron2.config import get_cfg

from tdos_d2.config import add_tdos_config
from tdos_d2.errors import UserError
from tdos_d2.evaluation import build_evaluator

SIZE = (50, 500)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.TEST.SHOW_DIR = str(tmp_path / "show")
    return cfg


@pytest.fixture
def make_set(make_dataset):
    def make(name: str, labels: list[np.ndarray], **metadata) -> list[dict]:
        dicts = make_dataset(name, labels, **metadata)
        for record in dicts:
            cv2.imwrite(record["file_name"], np.full((*SIZE, 3), 90, np.uint8))
        return dicts

    return make


def run(evaluator, dicts, outputs):
    evaluator.reset()
    evaluator.process(dicts, outputs)
    return evaluator.evaluate()


def shown(tmp_path, name: str) -> list[np.ndarray]:
    return [cv2.imread(str(path)) for path in sorted((tmp_path / "show" / name).iterdir())]


def test_ood_set(cfg, make_set, tmp_path):
    label = np.zeros(SIZE, np.uint8)
    label[10:40, 100:200] = 1
    dicts = make_set("shown_ood", [label, label], **OOD_METADATA)
    score = torch.from_numpy(label.astype(np.float32))
    outputs = [
        {"ood_score": x, "ood_scores": {"energy": 1 - score}} for x in (score, score.flip(1))
    ]
    cfg.TEST.REPORT = True
    cfg.MODEL.META_ARCHITECTURE = "TDOS"
    cfg.MODEL.TDOS.SCORE = "rba"
    cfg.MODEL.TDOS.EXTRA_SCORES = ["energy"]
    cfg.TEST.THRESHOLD = "tpr:0.5"
    evaluator = build_evaluator(cfg, "shown_ood", str(tmp_path / "out"))
    results = run(evaluator, dicts, outputs)
    pictures = shown(tmp_path, "shown_ood")
    assert len(pictures) == 2 and all(p.shape[1] == 1000 for p in pictures)
    # Orange where the score says OOD: in the object, and (flipped) beside it; BGR.
    is_orange = [p[25, :500, 2].astype(int) - p[25, :500, 0] > 60 for p in pictures]
    assert is_orange[0][110:190].all() and not is_orange[0][310:390].any()
    assert is_orange[1][310:390].all() and not is_orange[1][110:190].any()

    section = evaluator.section
    assert list(section.curves) == ["rba", "energy"] and section.display.score == "rba"
    assert section.display.rule == "highest with TPR >= 0.5"
    for name, task in (("rba", "ood"), ("energy", "ood_energy")):
        assert section.curves[name][1].ap == results[task]["AP"]
    assert [frame.name for frame in section.worst + section.best] == ["1", "0"]


def test_nothing_is_drawn_unless_asked_for(cfg, make_dataset):
    cfg.TEST.SHOW_DIR = ""
    label = np.eye(5, dtype=np.uint8)
    dicts = make_dataset("no_images", [label], **OOD_METADATA)  # there are only labels
    evaluator = build_evaluator(cfg, "no_images")
    assert run(evaluator, dicts, [{"ood_score": torch.from_numpy(label)}])["ood"]["AP"] == 100
    assert evaluator.section is None


def test_hidden_test_split(cfg, make_set, tmp_path):
    dicts = make_set("shown_hidden", [np.zeros(SIZE, np.uint8)], **OOD_METADATA, has_labels=False)
    del dicts[0]["sem_seg_file_name"]
    score = torch.zeros(SIZE)
    score[:, 300:] = 5
    cfg.TEST.REPORT = True
    evaluator = build_evaluator(cfg, "shown_hidden")
    assert run(evaluator, dicts, [{"ood_score": score}]) == {} and evaluator.section is None
    (picture,) = shown(tmp_path, "shown_hidden")
    assert np.abs(picture[:40, :500].astype(int) - 90).max() <= 3  # the image
    heat = picture[10:40, 500:].astype(int).sum(axis=2)
    assert heat[:, 320:480].min() > heat[:, 20:280].max()
    with pytest.raises(UserError, match="scores are 8x9, but image .* is 500x50"):
        evaluator.process(dicts, [{"ood_score": torch.zeros(9, 8)}])
    cfg.TEST.SHOW_DIR = ""
    with pytest.raises(UserError, match=r"TEST.EXPORT.FORMAT .*TEST.SHOW_DIR"):
        build_evaluator(cfg, "shown_hidden")


def test_segmentation_set(cfg, make_set, tmp_path):
    colours = [(200, 0, 0), (0, 0, 200)]
    dicts = make_set(
        "shown_seg",
        [np.zeros(SIZE, np.uint8)],
        evaluator_type="sem_seg",
        ignore_label=255,
        stuff_classes=["road", "sky"],
        stuff_colors=colours,
    )
    sem_seg = torch.zeros(2, *SIZE)
    sem_seg[1, :, 250:] = 1
    results = run(build_evaluator(cfg, "shown_seg"), dicts, [{"sem_seg": sem_seg}])
    assert results["sem_seg"]["pACC"] == 50
    (picture,) = shown(tmp_path, "shown_seg")
    for columns, colour in ((slice(20, 230), colours[0]), (slice(270, 480), colours[1])):
        expected = 45 + np.array(colour[::-1]) / 2  # half the image, half the class
        assert np.abs(picture[:, columns] - expected).max() < 8


def test_scores_that_are_not_finite_are_not_drawn(cfg, make_set):
    dicts = make_set("shown_nan", [np.zeros(SIZE, np.uint8)], **OOD_METADATA, has_labels=False)
    score = torch.zeros(SIZE)
    score[3, 4] = float("nan")
    with pytest.raises(UserError, match="shown_nan_0.*: 1 of 25000 scores are NaN"):
        run(build_evaluator(cfg, "shown_nan"), dicts, [{"ood_score": score}])
