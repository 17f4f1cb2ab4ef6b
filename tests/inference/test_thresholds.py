"""Which threshold prediction uses, and when it says that a promise does not hold."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tdos_commands.predict import threshold_option
from tdos_d2.errors import UserError
from tdos_d2.evaluation.calibration import calibrate, calibration_file, save_calibration
from tdos_d2.evaluation.operating_point import (
    OperatingPoint,
    load_operating_point,
    save_operating_point,
)
from tdos_d2.files import fingerprint
from tdos_d2.inference.thresholds import choose_threshold

POINT = OperatingPoint("log_s_ood", -1.25, "demo_ood", 50.0)
CALIBRATION = replace(
    calibrate(range(9), 0.2, 30), score="log_s_ood", source="drive/", settings={"SIZE": 512}
)
HOLDS = f"threshold 7: calibrated on 9 normal frames of drive/; {CALIBRATION.promise()}"


@pytest.fixture
def predictor(tmp_path):
    """What a threshold depends on, of a checkpoint without one."""
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    point = property(lambda self: load_operating_point(self.weights))
    kind = type("Predictor", (SimpleNamespace,), {"operating_point": point})
    return kind(weights=weights, score="log_s_ood", settings={"SIZE": 512})


def test_nothing_is_there(predictor):
    found = choose_threshold(predictor, min_area=5)
    assert (found.value, found.min_area) == (None, 5)
    assert found.note.startswith("no objects are looked for: ") and "calibrate.py" in found.note
    assert choose_threshold(predictor, -1e-3).note == "threshold -0.001, as given"
    for name, message in (("best-f1", "an evaluation"), ("calibrated", "tools/calibrate.py")):
        with pytest.raises(UserError, match=rf"--threshold {name}: no file .*json; {message} writ"):
            choose_threshold(predictor, name)
    with pytest.raises(UserError, match=r"gone.json: no file gone.json"):
        choose_threshold(predictor, "gone.json")
    predictor.weights = None
    with pytest.raises(UserError, match="MODEL.WEIGHTS must be a file"):
        choose_threshold(predictor, "calibrated")


def test_both_are_there(predictor, tmp_path):
    save_operating_point(predictor.weights, POINT)
    assert choose_threshold(predictor).note == "threshold -1.25: best pixel F1 on demo_ood"
    save_calibration(predictor.weights, CALIBRATION)
    save_calibration(predictor.weights, calibrate(range(99), 0.01, 7), tmp_path / "rare.json")
    for wanted in (None, "calibrated"):
        found = choose_threshold(predictor, wanted)
        assert found.value == CALIBRATION.threshold > 7
        assert (found.min_area, found.note) == (30, HOLDS)
    found = choose_threshold(predictor, "best-f1")
    assert (found.value, found.min_area) == (-1.25, None)
    assert choose_threshold(predictor, 2.5).value == 2.5
    for number in (2, np.float32(2), np.int64(2)):
        found = choose_threshold(predictor, number)
        assert (found.value, found.note) == (2.0, "threshold 2, as given")
        assert type(found.value) is float
    with pytest.raises(UserError, match="rare.json: .* is for ood_score, the score is log_s_ood"):
        choose_threshold(predictor, str(tmp_path / "rare.json"))
    predictor.score = "ood_score"
    found = choose_threshold(predictor, str(tmp_path / "rare.json"))
    assert 98 < found.value < 98.1 and "at most 0.01" in found.note


def test_one_is_of_another_score(predictor):
    save_calibration(predictor.weights, CALIBRATION)
    predictor.score = "max_logit"
    found = choose_threshold(predictor)
    assert found.value is None and "is for log_s_ood, the score is max_logit" in found.note
    with pytest.raises(UserError, match="calibrated: .* is for log_s_ood, the score is max_logit"):
        choose_threshold(predictor, "calibrated")
    save_operating_point(predictor.weights, replace(POINT, score="max_logit"))
    assert choose_threshold(predictor).value == -1.25


def test_another_checkpoint(predictor):
    save_calibration(predictor.weights, CALIBRATION)
    predictor.weights.write_bytes(b"other weights")
    with pytest.raises(UserError, match="of another checkpoint.*calibrate again, or remove it"):
        choose_threshold(predictor)
    assert choose_threshold(predictor, -1.0).value == -1
    save_operating_point(predictor.weights, POINT)
    assert choose_threshold(predictor, "best-f1").value == -1.25


def test_when_the_promise_does_not_hold(predictor, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    mask, other = str(tmp_path / "a"), str(tmp_path / "b")

    def why(**given: object) -> str:
        note = choose_threshold(predictor, **given).note
        return note.partition("its guarantee does not hold: ")[2]

    save_calibration(predictor.weights, CALIBRATION)
    assert why() == why(min_area=30) == why(min_area=31) == why(ego_mask=mask) == ""
    assert why(min_area=29, combine=True) == (
        "--min-area is 29, less than the 30 then; --combine-words raises scores"
    )
    predictor.settings = {"SIZE": 400, "new": 1}
    assert why() == "SIZE is 400, then 512"
    save_calibration(predictor.weights, replace(CALIBRATION, ego_mask=fingerprint(mask)))
    predictor.settings = {}
    assert why(ego_mask=mask) == ""
    assert why() == why(ego_mask=other) == "--ego-mask is not the file of then"


def test_smallest_object_by_the_size_of_the_frame(predictor):
    save_calibration(predictor.weights, replace(CALIBRATION, by_frame=True))
    found = choose_threshold(predictor)
    assert found.min_area is None and "(of a smaller frame the same share)" in found.note
    assert "does not hold: --min-area is 29" in choose_threshold(predictor, min_area=29).note


def test_damaged_file(predictor):
    path = calibration_file(predictor.weights)
    save_calibration(predictor.weights, CALIBRATION)
    for text in ("{}", "no JSON", path.read_text().replace("0.2,", "2,")):
        path.write_text(text)
        with pytest.raises(UserError, match="calibration.json is damaged .*: calibrate again"):
            choose_threshold(predictor)


def test_option():
    assert threshold_option("-1e-3") == -0.001
    assert [threshold_option(t) for t in ("calibrated", "best-f1", "a.json")] == [
        "calibrated", "best-f1", "a.json",
    ]  # fmt: skip
    for text in ("nan", "best_f1", "high"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"a number, calibrated.*not '{text}'"):
            threshold_option(text)


def test_smoothing_breaks_the_promise(predictor):
    save_calibration(predictor.weights, CALIBRATION)
    assert choose_threshold(predictor, smoothed=False).note == HOLDS
    assert "does not hold: --temporal" in choose_threshold(predictor, smoothed=True).note


def test_settings_of_the_best_f1_are_compared(predictor):
    save_operating_point(predictor.weights, replace(POINT, settings={"SIZE": 32}))
    note = choose_threshold(predictor).note
    assert note.endswith("demo_ood, with other settings: SIZE is 512, then 32")
    save_operating_point(predictor.weights, replace(POINT, settings={"SIZE": 512}))
    assert choose_threshold(predictor).note.endswith("demo_ood")


def test_a_file_of_an_earlier_version_has_no_settings(predictor):
    path = save_operating_point(predictor.weights, POINT)
    content = json.loads(path.read_text())
    del content["settings"]
    path.write_text(json.dumps(content))
    assert load_operating_point(predictor.weights) == POINT
