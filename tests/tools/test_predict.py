"""tools/predict.py: what it writes for images, folders, videos and lists; words; interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from tdos_commands.predict import parser, run
from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.errors import UserError, exit_with_one_line
from tdos_d2.evaluation.operating_point import OperatingPoint, save_operating_point
from tdos_d2.inference import OODPredictor
from tdos_d2.inference.media import video_files
from tdos_d2.tdos import TDOS

PICTURES = ["raw.png", "score.png", "segmentation.png"]


def picture(seed: int, height: int = 48, width: int = 80) -> np.ndarray:
    """A BGR image that is smooth enough to survive compression."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_video(path: Path, frames: int, code: str = "mp4v") -> None:
    size = 80, 48
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, size)
    for i in range(frames):
        writer.write(picture(i, size[1], size[0]))
    writer.release()


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return frames


def predict(model: list[str], output: Path, *words: object, weights: str = "model.pth") -> int:
    """PredictionRun the command; gives its exit status."""
    opts = ["--opts", "MODEL.WEIGHTS", str(Path(model[1]).parent / weights)]
    try:
        run([*model, "--output", str(output), *map(str, words), *opts])
    except SystemExit as end:
        return end.code
    return 0


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def raw_score(path: Path) -> np.ndarray:
    """The score in a 16-bit PNG, by what the file itself says."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16
    with Image.open(path) as image:
        return float(image.text["offset"]) + float(image.text["step"]) * values.astype(np.float64)


def test_folder_with_an_unreadable_file(model, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "city").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), picture(0))
    cv2.imwrite(str(folder / "city" / "a.png"), picture(1, 51, 37))
    (folder / "b.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image either, and not called one")
    threshold = -1.0
    status = predict(model, output, "--input", folder, "--threshold", threshold, "--min-area", 1)
    assert status == 1
    error = capsys.readouterr().err
    assert f"not predicted: {folder / 'b.jpg'}: cannot read image" in error
    assert "frame/s" in error or "s/frame" in error  # the bar has a rate
    files = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    names = [f"{stem}_{kind}" for stem in ("a", "city/a") for kind in PICTURES]
    assert files == {*names, "predictions.jsonl"}
    first, broken, second = records(output)
    assert [r["input"] for r in (first, broken, second)] == [
        str(folder / name) for name in ("a.png", "b.jpg", "city/a.png")
    ]
    assert "cannot read image" in broken["error"] and "error" not in first
    predictor = OODPredictor(load(model))
    for record, image in ((first, picture(0)), (second, picture(1, 51, 37))):
        score = predictor(image)["ood_score"]
        assert (record["height"], record["width"]) == score.shape
        assert record["threshold"] == threshold and record["score"] == "log_s_ood"
        raw = raw_score(output / record["files"]["raw"])
        scale = record["raw_scale"]
        assert np.abs(raw - score).max() <= 0.5001 * scale["step"] + 1e-6
        assert raw.min() == scale["offset"]
        above = score >= threshold
        assert sum(o["area"] for o in record["objects"]) == above.sum() > 0
        for found in record["objects"]:
            x0, y0, x1, y1 = found["box"]
            inside = above[y0:y1, x0:x1]
            assert inside.any(0).all() and inside.any(1).all()
            assert found["mean_score"] >= threshold and found["nearest_words"] == []
        for kind in ("score", "segmentation"):
            height, width = cv2.imread(str(output / record["files"][kind])).shape[:2]
            assert width == score.shape[1] and height > score.shape[0]


def load(model: list[str]):
    from tdos_d2.engine import load_config

    return load_config(model[1], ["MODEL.WEIGHTS", str(Path(model[1]).parent / "model.pth")])


def test_list_on_standard_input(model, tmp_path, monkeypatch):
    for name in ("x/1.png", "y/1.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), picture(0))
    lines = f"{tmp_path / 'x/1.png'}\n\n{tmp_path / 'gone.png'}\n{tmp_path / 'y/1.png'}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert predict(model, tmp_path / "out", "--input", "-", "--raw", "npy") == 1
    first, gone, second = records(tmp_path / "out")
    assert "no image file" in gone["error"]
    assert first["files"]["raw"] == "1_raw.npy" and second["files"]["raw"] == "1_2_raw.npy"
    score = np.load(tmp_path / "out" / "1_2_raw.npy")
    assert np.array_equal(score, OODPredictor(load(model))(picture(0))["ood_score"])
    assert first["objects"] is None and first["threshold"] is None  # none given, none saved


def test_saved_threshold(model, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    score = OODPredictor(load(model))(picture(0))["ood_score"]
    threshold = float(np.median(score))
    point = OperatingPoint("log_s_ood", threshold, "demo_ood", 50.0)
    save_operating_point(tmp_path / "model.pth", point)
    words = ["--input", tmp_path / "1.png", "--min-area", 1]
    assert predict(model, tmp_path / "out", *words) == 0
    (record,) = records(tmp_path / "out")
    assert record["threshold"] == threshold
    assert sum(found["area"] for found in record["objects"]) == (score >= threshold).sum()
    assert "best pixel F1 on demo_ood" in capsys.readouterr().err
    point = OperatingPoint("max_logit", threshold, "demo_ood", 50.0)
    save_operating_point(tmp_path / "model.pth", point)
    assert predict(model, tmp_path / "out", *words) == 0
    assert records(tmp_path / "out")[-1]["objects"] is None
    assert "is for max_logit, the score is log_s_ood" in capsys.readouterr().err
    save_operating_point(tmp_path / "model.pth", replace(point, score="log_s_ood"))
    torch.manual_seed(1)  # training anew overwrites the checkpoint
    TDOSCheckpointer(build_model(load(model)), str(tmp_path)).save("model")
    with pytest.raises(UserError, match="threshold of another checkpoint than .*model.pth"):
        predict(model, tmp_path / "out", *words)
    assert predict(model, tmp_path / "out", *words, "--threshold", threshold) == 0


def test_no_pictures(model, tmp_path):
    """For many frames: the table and, if asked for, raw scores, of which nothing else changes."""
    write_video(tmp_path / "ride.mp4", 3)
    cv2.imwrite(str(tmp_path / "a.png"), picture(0))
    words = ["--input", tmp_path / "ride.mp4", tmp_path / "a.png", "--threshold", -1]
    assert predict(model, tmp_path / "drawn", *words) == 0
    assert predict(model, tmp_path / "bare", *words, "--raw", "none", "--no-pictures") == 0
    assert [p.name for p in (tmp_path / "bare").iterdir()] == ["predictions.jsonl"]
    drawn, bare = records(tmp_path / "drawn"), records(tmp_path / "bare")
    for record in (*drawn, *bare):
        record.pop("files", None)
        record.pop("raw_scale", None)
    assert bare == drawn
    assert predict(model, tmp_path / "raw", *words[:1], *words[2:], "--no-pictures") == 0
    assert {p.name for p in (tmp_path / "raw").iterdir()} == {"a_raw.png", "predictions.jsonl"}


def test_video(model, tmp_path):
    write_video(tmp_path / "ride.mp4", 5)
    words = ["--input", tmp_path / "ride.mp4", "--threshold", -1, "--raw", "png"]
    assert predict(model, tmp_path / "out", *words) == 0
    *of_frames, record = records(tmp_path / "out")
    assert [(f["frame"], f["time"]) for f in of_frames] == [(i, i / 10) for i in range(5)]
    assert {f["input"] for f in of_frames} == {record["input"]} == {str(tmp_path / "ride.mp4")}
    assert record["fps"] == 10.0 and record["frames"] == 5
    for kind in ("score", "segmentation"):
        frames = read_video(tmp_path / "out" / record["files"][kind])
        assert len(frames) == 5 and frames[0].shape[1] == 80
    frames = read_video(tmp_path / "ride.mp4")
    score = OODPredictor(load(model))(frames[3])["ood_score"]
    raw = raw_score(tmp_path / "out" / of_frames[3]["files"]["raw"])
    np.testing.assert_allclose(raw, score, atol=1e-3, equal_nan=False)
    assert not list((tmp_path / "out").rglob("*tmp*"))


def test_video_that_breaks_off(model, tmp_path):
    write_video(tmp_path / "ride.avi", 12, code="MJPG")
    whole = (tmp_path / "ride.avi").read_bytes()
    (tmp_path / "ride.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.avi").write_text("no video")
    words = ["--input", tmp_path / "ride.avi", tmp_path / "none.avi"]
    assert predict(model, tmp_path / "out", *words) == 1
    *of_frames, broken, none = records(tmp_path / "out")
    there = len(read_video(tmp_path / "ride.avi"))
    assert f"breaks off: {there} of 12 frames" in broken["error"]
    assert len(of_frames) == broken["frames"] == there > 2
    assert len(read_video(tmp_path / "out" / broken["files"]["score"])) == there
    assert "cannot read video" in none["error"] and "files" not in none


def test_ego_vehicle(model, tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    cv2.imwrite(str(tmp_path / "2.png"), picture(0, 40, 40))
    mask = np.zeros((48, 80), np.uint8)
    mask[30:] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    words = ["--input", tmp_path / "1.png", tmp_path / "2.png", "--threshold", -99]
    assert predict(model, tmp_path / "out", *words, "--ego-mask", tmp_path / "mask.png") == 1
    first, second = records(tmp_path / "out")
    assert [found["box"] for found in first["objects"]] == [[0, 0, 80, 30]]
    assert second["error"] == "the frame is 40x40, but --ego-mask is 80x48"


def test_words(tiny_cfg, model, tmp_path, capsys):
    """Hand-made embeddings: one word is what a known name is, the other its opposite."""
    words = {"road": (1, 0), "traffic sign": (0, 1), "car": (0, -1), "elk": (1, 0), "sea": (-1, 0)}
    vectors = np.zeros((5, 64), np.float32)
    vectors[:, :2] = list(words.values())
    np.savez(tmp_path / "words.npz", names=np.array(list(words)), embeddings=vectors)
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = str(tmp_path / "words.npz")
    (tmp_path / "model.yaml").write_text(tiny_cfg.dump())
    of_words = build_model(tiny_cfg)
    of_words.transformer_decoder.class_head.bias.data[-2] -= 10  # no query is sure of OOD
    TDOSCheckpointer(of_words, str(tmp_path)).save("model")
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    words = ["--input", tmp_path / "1.png", "--threshold", -99, "--words", "elk, sea"]
    assert predict(model, tmp_path / "out", *words, "--nearest-words", 1) == 0
    (record,) = records(tmp_path / "out")
    (found,) = record["objects"]
    assert set(found["word_scores"]) == {"elk", "sea"}
    assert found["word_scores"]["elk"] == pytest.approx(-found["word_scores"]["sea"], abs=2e-4)
    best = max(found["word_chances"], key=found["word_chances"].get)
    assert found["word"] == (best if found["word_chances"][best] > 0.5 else None)
    assert found["nearest_words"][0][0] in ("elk", "sea")
    for i, word in enumerate(("elk", "sea"), start=1):
        assert (tmp_path / "out" / record["files"][f"word{i}_{word}"]).is_file()
    plain = raw_score(tmp_path / "out" / "1_raw.png")
    assert "without a meaning" not in capsys.readouterr().err
    assert predict(model, tmp_path / "out", *words, "--combine-words") == 0
    predictor = OODPredictor(load(model))
    combined = predictor.combined_score(predictor(picture(0), words=["elk", "sea"]))
    raw = raw_score(tmp_path / "out" / "1_2_raw.png")
    np.testing.assert_allclose(raw, combined, atol=1e-3, equal_nan=False)
    assert (raw - plain).max() > 0.01
    with pytest.raises(UserError, match=r"words\.npz' lacks deer"):
        predict(model, tmp_path / "out", *words[:-1], "deer")


def test_words_of_a_random_text_encoder(model, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    assert predict(model, tmp_path / "out", "--input", tmp_path / "1.png", "--words", "deer") == 0
    assert "--words are numbers without a meaning" in capsys.readouterr().err


@pytest.fixture
def ctrl_c():
    """Python's own handler: programs that a shell starts in the background ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["while writing", "in a video"])
def test_ctrl_c_leaves_complete_files(model, tmp_path, monkeypatch, capsys, where):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    write_video(folder / "9.mp4", 4)
    calls = []
    # A picture is three files: the eighth is half of the third image. After each file its folder
    # goes to the disk. Each input is a prediction.
    target, after = {
        "while writing": ("os.fsync", 15),
        "in a video": ("tdos_d2.inference.predictor.OODPredictor._predict", 5),
    }[where]
    module, _, name = target.rpartition(".")
    owner = os if module == "os" else OODPredictor
    original = getattr(owner, name)

    def interrupted(*args):
        calls.append(1)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(owner, name, interrupted)
    assert predict(model, output, "--input", folder) == 130
    done = 2 if where == "while writing" else 3
    images, video = records(output)[:done], records(output)[done:]
    assert [Path(r["input"]).name for r in images] == [f"{i}.png" for i in range(done)]
    if where == "in a video":  # what there is of it is complete, too
        assert video[0]["frame"] == 0 and video[-1]["interrupted"] and len(video) == 2
        for file in video[-1]["files"].values():
            assert len(read_video(output / file)) == 1
            (output / file).unlink()
    files = sorted(p.name for p in output.iterdir() if p.suffix != ".jsonl")
    whole = sorted(f"{i}_{kind}" for i in range(done) for kind in PICTURES)
    assert set(whole) <= set(files) and len(files) <= len(whole) + 2
    for name in files:
        assert cv2.imread(str(output / name)) is not None and name.endswith(tuple(PICTURES))
    assert f"interrupted: {done} inputs are complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--combine-words"], "--combine-words needs --words"),
        (["--score-range", "1", "0"], "--score-range"),
        (["--words", ","], "words are expected"),
        (["--ego-mask", "gone.png"], "no ego mask file gone.png"),
        (["--input", "empty"], "has no images or videos"),
    ],
)
def test_wrong_options(model, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=expected):
        predict(model, tmp_path / "out", "--input", "1.png", *words)


def test_no_checkpoint(model, tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    words = [*model, "--input", str(tmp_path / "1.png"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        exit_with_one_line(lambda: run(words))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: MODEL.WEIGHTS is empty, and no weights ship for this config: name a checkpoint\n"
    )


def test_inputs_that_are_not_there_end_it_before_the_model_is_loaded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("tdos_d2.inference.predict_command.load_config", pytest.fail)
    for word, what in (("gone", "file or"), ("gone.txt", "file or"), ("gone/*", "pattern")):
        with pytest.raises(UserError, match=f"--input: no.*{what}.* gone"):
            run([*model, "--input", word, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_pairs_without_opts(capsys):
    with pytest.raises(SystemExit):
        run(["--config-file", "demo.yaml", "--input", "b", "--output", "c", "MODEL.WEIGHTS", "d"])
    assert "MODEL.WEIGHTS d: KEY VALUE pairs come last, after --opts" in capsys.readouterr().err


def test_help_says_what_needs_clip():
    text = parser().format_help()
    assert "needs CLIP's weights" in text and "MODEL.TEXT.EMBEDDINGS" in text
    assert "--input" in text and "exit status" in text


def test_videos_of_odd_size(tmp_path):
    with video_files([tmp_path / "odd.mp4"], 5.0) as (video,):
        for i in range(3):
            video.add(picture(i, 47, 81))
    frames = read_video(tmp_path / "odd.mp4")
    assert [frame.shape for frame in frames] == [(48, 82, 3)] * 3
    difference = frames[0][:47, :81].astype(int) - picture(0, 47, 81)[..., ::-1]
    assert np.abs(difference).mean() < 8  # it takes RGB


def test_a_model_that_gives_nan(model, tmp_path, monkeypatch, capsys):
    """An error for that input, and no JSON that other parsers refuse."""
    infer = TDOS._infer

    def broken(self, inputs):
        output = infer(self, inputs)
        output["ood_score"][0, 0] = float("nan") if inputs["height"] == 47 else 0.0
        return output

    monkeypatch.setattr(TDOS, "_infer", broken)
    for i, height in enumerate((48, 47, 49)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i, height))
    inputs = [tmp_path / f"{i}.png" for i in range(3)]
    assert predict(model, tmp_path / "out", "--input", *inputs, "--threshold", -1) == 1
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert ["error" in record for record in found] == [False, True, False]
    assert "ood_score: 1 of 3760 scores are NaN" in found[1]["error"]
    assert f"not predicted: {inputs[1]}: the model's ood_score" in capsys.readouterr().err
