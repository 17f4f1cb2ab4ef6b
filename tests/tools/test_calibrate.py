"""tools/calibrate.py, and what tools/predict.py makes of its threshold and says about it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from test_predict import load, picture, predict, records

from tdos_commands.calibrate import run
from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor, predictor
from tdos_d2.inference.objects import default_min_area, find_objects

N, RATE = 9, 0.2  # the 8th of 9 levels: one frame may have an alarm
ALARMS = N - math.ceil((N + 1) * (1 - RATE))


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    (folder / "later").mkdir(parents=True)
    for i in range(N):
        cv2.imwrite(str(folder / ("later" if i > 5 else "") / f"{i}.png"), picture(i))
    return folder


def calibrate(model: list[str], images: Path, *words: object, rate: float = RATE) -> int:
    """Run the command; gives its exit status."""
    given = [*model, "--images", images, "--false-alarm-rate", rate, *words]
    try:
        run([*map(str, given), "MODEL.WEIGHTS", str(Path(model[1]).parent / "model.pth")])
    except SystemExit as end:
        return end.code
    return 0


def stored(folder: Path) -> dict:
    return json.loads((folder / "model.pth.calibration.json").read_text())


@pytest.mark.parametrize("min_area", [None, 1, 30])
def test_alarms_on_the_frames_of_the_calibration(model, frames, tmp_path, capsys, min_area):
    area = [] if min_area is None else ["--min-area", min_area]
    assert calibrate(model, frames, *area) == 0
    values, out = stored(tmp_path), capsys.readouterr().out
    smallest = min_area or default_min_area((48, 80))
    assert f"at it {ALARMS} of the 9 frames have an object" in out and values["promise"] in out
    assert values["checkpoint_sha256"] == sha256(tmp_path / "model.pth")
    assert {k: values[k] for k in ("score", "frames", "false_alarm_rate", "min_area")} == {
        "score": "log_s_ood", "frames": N, "false_alarm_rate": RATE, "min_area": smallest,
    }  # fmt: skip
    assert predict(model, tmp_path / "out", "--input", frames) == 0
    note = capsys.readouterr().err
    assert f"calibrated on 9 normal frames of {frames}; {values['promise']}" in note
    found = [record["objects"] for record in records(tmp_path / "out")]
    assert len(found) == N and sum(map(bool, found)) == ALARMS
    assert all(item["area"] >= smallest for objects in found for item in objects)
    # It is the lowest such threshold: at the next number below it one more frame has an object.
    score_of = OODPredictor(load(model))
    below = np.nextafter(np.float32(values["threshold"]), np.float32(-np.inf))
    scores = [score_of(cv2.imread(str(p)))["ood_score"] for p in frames.rglob("*.png")]
    assert sum(bool(find_objects(s, below, min_area=smallest)[0]) for s in scores) == ALARMS + 1


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_frames_of_several_sizes(model, frames, tmp_path):
    cv2.imwrite(str(frames / "0.png"), picture(0, 96, 160))
    assert calibrate(model, frames) == 0
    values = stored(tmp_path)
    assert values["by_frame"] and values["min_area"] == default_min_area((96, 160)) > 1
    assert "of a smaller frame the same share" in values["promise"]
    assert predict(model, tmp_path / "out", "--input", frames) == 0
    assert sum(bool(r["objects"]) for r in records(tmp_path / "out")) == ALARMS


def test_where_objects_may_be(model, frames, tmp_path, capsys):
    mask = np.zeros((48, 80), np.uint8)
    mask[20:] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "other.png"), 1 - mask)
    ego = ["--ego-mask", tmp_path / "mask.png"]
    assert calibrate(model, frames, "--min-area", 5, *ego) == 0
    words = ["--input", frames]
    assert predict(model, tmp_path / "out", *words, *ego) == 0
    assert "with probability at most" in capsys.readouterr().err
    found = [r["objects"] for r in records(tmp_path / "out")]
    assert sum(map(bool, found)) == ALARMS
    assert all(item["box"][3] <= 20 for objects in found for item in objects)
    for other in ([], ["--ego-mask", tmp_path / "other.png"]):
        assert predict(model, tmp_path / "out", *words, *other) == 0
        assert "guarantee does not hold: --ego-mask is not the file" in capsys.readouterr().err
    with pytest.raises(UserError, match="--min-area: .*no room for an object of 1601 pixels"):
        calibrate(model, frames, "--min-area", 1601, *ego)
    cv2.imwrite(str(frames / "8.png"), picture(0, 40, 40))
    with pytest.raises(UserError, match=r"8.png is 40x40, but --ego-mask is 80x48"):
        calibrate(model, frames, *ego)


def test_when_the_promise_does_not_hold(model, frames, tmp_path, capsys):
    calibrate(model, frames, "--min-area", 30)
    words = ["--input", frames / "0.png", "--min-area", 29, "--words", "deer", "--combine-words"]
    config = tmp_path / "model.yaml"
    text = config.read_text()
    assert text.count("    SIZE: 512") == 1
    config.write_text(text.replace("    SIZE: 512", "    SIZE: 400"))
    assert predict(model, tmp_path / "out", *words) == 0
    assert (
        "guarantee does not hold: --min-area is 29, less than the 30 then; --combine-words raises "
        "scores; TEST.WINDOW.SIZE is 400, then 512\n"
    ) in capsys.readouterr().err
    threshold = stored(tmp_path)["threshold"]
    assert records(tmp_path / "out")[0]["threshold"] == threshold
    assert predict(model, tmp_path / "out", *words, "--threshold", -1) == 0
    assert "threshold -1, as given" in capsys.readouterr().err


def test_frames_that_cannot_be_read(model, frames, tmp_path, capsys):
    (frames / "broken.jpg").write_bytes(b"no image")
    (frames / "notes.txt").write_text("no image, and not called one")
    assert calibrate(model, frames) == 1
    err = capsys.readouterr().err
    assert f"left out: {frames / 'broken.jpg'}: cannot read image" in err
    assert "1 frames could not be read" in err and ("frame/s" in err or "s/frame" in err)
    assert stored(tmp_path)["frames"] == N


def test_results_are_no_frames(model, frames, tmp_path):
    assert predict(model, frames, "--input", frames, "--threshold", 0) == 0
    assert calibrate(model, frames) == 0
    assert stored(tmp_path)["frames"] == N


def test_too_few_frames(model, frames, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as context:  # found before the model is built
        context.setattr(predictor, "build_model", None)
        with pytest.raises(UserError, match="rate of 0.01 needs 99 normal frames.*there are 9"):
            calibrate(model, frames, rate=0.01)
        with pytest.raises(UserError, match="between 0 and 1, got 1"):
            calibrate(model, frames, rate=1)
    for i in range(N - 3):
        (frames / ("later" if i > 5 else "") / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="needs 4 normal frames or more, there are 3"):
        calibrate(model, frames)
    assert "left out" in capsys.readouterr().err
    assert not (tmp_path / "model.pth.calibration.json").exists()


def test_what_is_not_there(model, frames, tmp_path):
    with pytest.raises(UserError, match="--images: .*gone is no folder"):
        calibrate(model, tmp_path / "gone")
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty, and no weights ship"):
        run([*model, "--images", str(frames), "--false-alarm-rate", "0.2"])
    weights = ["--false-alarm-rate", "0.2", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    with pytest.raises(UserError, match="did you mean camvid_train"):
        run([*model, "--dataset", "camvid_trian", *weights])
    with pytest.raises(UserError, match="road_anomaly is an OOD set"):
        run([*model, "--dataset", "road_anomaly", *weights])


def test_frames_of_the_training(model, frames, tmp_path, capsys):
    name = "calibrated_on_training_frames"
    dicts = [{"file_name": str(path)} for path in sorted(frames.rglob("*.png"))]
    DatasetCatalog.register(name, lambda: dicts)
    try:
        words = ["--dataset", name, "--false-alarm-rate", "0.2"]
        weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
        run([*model, *words, *weights])
        assert "warning" not in capsys.readouterr().err
        assert stored(tmp_path)["source"] == name and stored(tmp_path)["frames"] == N
        run([*model, *words, *weights, "DATASETS.TRAIN", f"('{name}',)"])
        assert f"warning: {name} is in DATASETS.TRAIN" in capsys.readouterr().err
    finally:
        DatasetCatalog.remove(name)
