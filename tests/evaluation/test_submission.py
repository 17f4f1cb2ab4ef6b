"""Submissions are written as the official tools read them, and hold what was given."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA
from detectron2.config import get_cfg

from tdos_d2.config import add_tdos_config
from tdos_d2.errors import UserError
from tdos_d2.evaluation import build_evaluator, submission
from tdos_d2.evaluation.operating_point import (
    OperatingPoint,
    load_operating_point,
    save_operating_point,
)
from tdos_d2.evaluation.score_files import find_score_files, read_score
from tdos_d2.evaluation.submission import Submission

# A saturated sigmoid: float16 would make most of it 1.
SCORE = (1 - np.random.default_rng(0).random((5, 7)) / 1e4).astype(np.float32)


def test_smiyc_layout(tmp_path):
    frames = ["validation0000", "validation0001"]
    made = Submission(tmp_path, "smiyc", "smiyc_anomalytrack_val", frames, "mine")
    for frame in frames:
        made.write(frame, SCORE)
    made.check()
    folder = tmp_path / "anomaly_p" / "mine" / "AnomalyTrack-all"
    assert sorted(p.name for p in folder.iterdir()) == [f"{frame}.hdf5" for frame in frames]
    with h5py.File(folder / "validation0001.hdf5", "r") as file:
        assert list(file) == ["value"] and file["value"].dtype == np.float32
        assert np.array_equal(file["value"][:], SCORE)
    assert len(np.unique(SCORE)) > 30 > len(np.unique(SCORE.astype(np.float16)))


def test_lost_and_found_frames_have_official_names(tmp_path):
    frame = "04_Maurener_Weg/04_Maurener_Weg_000000_000030_leftImg8bit"
    made = Submission(tmp_path, "smiyc", "laf_test_noknown", [frame])
    made.write(frame, SCORE)
    names = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.hdf5")]
    folder = "anomaly_p/tdos_d2/LostAndFound-test"
    assert names == [f"{folder}/04_Maurener_Weg_000000_000030.hdf5"]


def test_fishyscapes_pair(tmp_path):
    made = Submission(tmp_path, "fishyscapes", "fs_laf_val", ["0001_x"])
    with pytest.raises(UserError, match="0001_x.*classes"):
        made.write("0001_x", SCORE)
    classes = np.arange(35).reshape(5, 7) % 19
    made.write("0001_x", SCORE, classes)
    folder = tmp_path / "fishyscapes" / "fs_laf_val"
    anomaly = np.load(folder / "0001_x_anomaly.npy")
    segmentation = np.load(folder / "0001_x_segmentation.npy")
    assert anomaly.dtype == np.float32 and np.array_equal(anomaly, SCORE)
    assert segmentation.dtype == np.uint8 and np.array_equal(segmentation, classes)
    assert np.array_equal(read_score(find_score_files(folder, ["0001_x"])["0001_x"]), SCORE)


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'zip'.*smiyc, fishyscapes"):
        Submission(tmp_path, "zip", "x", ["a"])
    made = Submission(tmp_path, "smiyc", "x", ["a", "b"])
    with pytest.raises(UserError, match="a: .*finite"):
        made.write("a", np.full((2, 2), np.nan))
    made.write("a", SCORE)
    with pytest.raises(UserError, match="1 of 2 frames have no file, first .*b "):
        made.check()
    for there in (SCORE.astype(np.float16), np.nextafter(SCORE, 0)):
        monkeypatch.setattr(submission, "read_score", lambda path, there=there: there)
        with pytest.raises(UserError, match=r"b.hdf5 does not hold"):
            made.write("b", SCORE)


@pytest.fixture
def hidden(make_dataset):
    """Dataset dicts of a set without labels named hidden_test."""
    labels = [np.zeros((5, 7), np.uint8)] * 2
    dicts = make_dataset("hidden_test", labels, **OOD_METADATA, has_labels=False)
    for record in dicts:
        del record["sem_seg_file_name"]
    return dicts


def config(tmp_path, form: str):
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.EXPORT.FORMAT = form
    return cfg


@pytest.mark.parametrize("form", ["smiyc", "fishyscapes"])
@pytest.mark.parametrize("place", ["{}/images", "../images"])
def test_frames_without_an_id_stay_in_the_folder(tmp_path, form, place):
    """Their ids are file names; two sequences have one of the same name."""
    frames = [f"{place}/{i}/0001.png".format(tmp_path) for i in range(2)]
    made = Submission(tmp_path / "out", form, "x", frames)
    for i, frame in enumerate(frames):
        made.write(frame, SCORE + i, np.zeros(SCORE.shape, np.uint8))
    made.check()
    found = find_score_files(made.folder, frames)
    assert [np.array_equal(read_score(found[f]), SCORE + i) for i, f in enumerate(frames)] == [1, 1]
    assert not (tmp_path / "images").exists()


def test_a_model_without_known_classes(hidden, tmp_path):
    """Such as a NormalityMemory: it has scores for one format, and no classes for the other."""
    output = {"ood_score": torch.from_numpy(SCORE), "sem_seg": torch.zeros(0, 5, 7)}
    build_evaluator(config(tmp_path, "smiyc"), "hidden_test").process(hidden[:1], [output])
    evaluator = build_evaluator(config(tmp_path, "fishyscapes"), "hidden_test")
    with pytest.raises(UserError, match="0: Fishyscapes' pair needs classes .* known classes"):
        evaluator.process(hidden[:1], [output])


@pytest.mark.parametrize("form", ["smiyc", "fishyscapes"])
def test_set_without_labels_is_written_and_not_evaluated(hidden, tmp_path, form):
    evaluator = build_evaluator(config(tmp_path, form), "hidden_test")
    evaluator.reset()
    logits = torch.randn(3, 5, 7)
    outputs = [{"ood_score": torch.from_numpy(SCORE) + i, "sem_seg": logits} for i in range(2)]
    evaluator.process(hidden, outputs)
    assert evaluator.evaluate() == {} and evaluator.operating_point is None
    folder = {"smiyc": "anomaly_p/tdos_d2/hidden_test", "fishyscapes": "fishyscapes/hidden_test"}
    files = find_score_files(tmp_path / "inference" / folder[form], ["0", "1"])
    assert np.array_equal(read_score(files["1"]), SCORE + 1)
    if form == "fishyscapes":
        classes = np.load(tmp_path / "inference" / folder[form] / "0_segmentation.npy")
        assert np.array_equal(classes, logits.numpy().argmax(axis=0))


def test_frames_not_written_are_an_error(hidden, tmp_path):
    evaluator = build_evaluator(config(tmp_path, "smiyc"), "hidden_test")
    evaluator.reset()
    evaluator.process(hidden[:1], [{"ood_score": torch.from_numpy(SCORE)}])
    with pytest.raises(UserError, match="1 of 2 frames"):
        evaluator.evaluate()
    with pytest.raises(UserError, match=r"hidden_test_0.jpg: scores \(7, 5\), image \(5, 7\)"):
        evaluator.process(hidden[:1], [{"ood_score": torch.from_numpy(SCORE.T.copy())}])


def test_set_without_labels_needs_export(hidden, tmp_path):
    with pytest.raises(UserError, match=r"'hidden_test'.*TEST.EXPORT.FORMAT"):
        build_evaluator(config(tmp_path, "none"), "hidden_test")


def test_set_with_labels_is_evaluated_and_written(make_dataset, tmp_path):
    label = np.zeros((5, 7), np.uint8)
    label[1:3, 2:5] = 1
    dicts = make_dataset("val", [label], **OOD_METADATA)
    evaluator = build_evaluator(config(tmp_path, "smiyc"), "val")
    evaluator.reset()
    score = torch.where(torch.from_numpy(label) == 1, 0.75, 0.25)
    evaluator.process(dicts, [{"ood_score": score}])
    assert evaluator.evaluate()["ood"]["F1"] == 100
    assert evaluator.operating_point == OperatingPoint("ood_score", 0.75, "val", 100.0)
    path = tmp_path / "inference" / "anomaly_p" / "tdos_d2" / "val" / "0.hdf5"
    assert np.array_equal(read_score(path), score.numpy())


def test_operating_point_beside_the_checkpoint(tmp_path):
    checkpoint = tmp_path / "model_final.pth"
    assert load_operating_point(checkpoint) is None
    point = OperatingPoint("log_s_ood", float(np.float32(-1.1)), "road_anomaly", 51.5)
    path = save_operating_point(checkpoint, point)
    assert path == tmp_path / "model_final.pth.threshold.json"
    assert load_operating_point(str(checkpoint)) == point
    stored = json.loads(path.read_text())
    assert stored["chosen_by"] == "best pixel F1 on road_anomaly"
    assert np.float32(stored["threshold"]) == np.float32(-1.1)
    checkpoint.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"json is the threshold of another checkpoint"):
        load_operating_point(checkpoint)
    save_operating_point(checkpoint, point)
    stored = json.loads(path.read_text())
    assert stored["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    for name in ("a.pth", "b.pth"):  # what is copied or renamed keeps its threshold
        shutil.copy(checkpoint, tmp_path / name)
        shutil.copy(path, tmp_path / f"{name}.threshold.json")
        assert load_operating_point(tmp_path / name) == point
    (tmp_path / "a.pth").write_bytes(b"Weights")
    (tmp_path / "b.pth.threshold.json").write_text(json.dumps(dataclasses.asdict(point)))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match=r"json is the threshold of another checkpoint"):
            load_operating_point(tmp_path / name)
    for damaged in ("{}", json.dumps({**stored, "threshold": float("nan")})):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"threshold.json is damaged"):
            load_operating_point(checkpoint)
