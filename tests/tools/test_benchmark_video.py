"""tools/benchmark.py video: its measures by hand, the drawn drives, a small run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from script_loading import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # as for a script
    return load_script("tools/benchmark.py")


@pytest.fixture
def small(tool, monkeypatch):
    """Drives that are drawn in a moment."""
    from benchmarks import moving_scenes

    monkeypatch.setattr(moving_scenes, "SIZE", (96, 172))
    monkeypatch.setattr(moving_scenes, "_WORLD", (192, 344))
    return moving_scenes


def test_boxes(tool):
    boxes = [(5, 0, 15, 10), (6, 0, 15, 10), (9, 9, 11, 10), (0, 0, 90, 10), (0, 0, 101, 10)]
    found = tool.video.at_object([(0, 0, 10, 10), (20, 0, 30, 10)], boxes)
    # 5 of 10; 4 of 9, IoU 4/15; half of a small one; IoU 100/900 and 100/1010
    assert found.tolist() == [[True, True, True, True, False], [False, False, False, True, False]]
    assert tool.video.at_object([], [(0, 0, 1, 1)]).shape == (0, 1)
    objects = np.zeros((9, 9), int)
    objects[2:5, 3:7], objects[8, 8] = 2, 3
    assert tool.video.true_boxes(objects, 2) == {2: (3, 2, 7, 5)}


def test_measures(tool):
    """Two objects in 8 frames at 4 per second, and a box where nothing is."""
    tally = tool.video.Tally(4.0)
    there, other, nowhere = (0, 0, 10, 10), (50, 0, 60, 10), (90, 90, 99, 99)
    first, second = "00110111", "00000000"
    for one, two in zip(first, second, strict=True):
        boxes = [there] * (one == "1") + [other] * (two == "1") + [nowhere] * (one == "0")
        tally.add(0, {1: there, 2: other}, boxes)
    result = tally.result()
    assert result["recall"] == 5 / 16 and result["delay"] == 2 and result["never"] == 1
    assert result["switches"] == 2 / (16 / 4)  # off and on again, in two objects for two seconds
    assert result["false"] == 3 / 8 and result["unsteady"] == 0
    nothing = tool.video.Tally(4.0)
    nothing.add(0, {}, [])
    assert math.isnan(nothing.result()["recall"]) and nothing.result()["false"] == 0


def test_drives_move_and_are_the_same_again(small):
    frames, again = (list(small.moving_scene(1, 2, 6)) for _ in range(2))
    for frame, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.score, other.score)
        assert frame.image.shape == (*small.SIZE, 3) and frame.objects.shape == small.SIZE
    first, last = frames[0].objects, frames[-1].objects
    assert (first != last).mean() > 0.005 and set(np.unique(first)) >= {0, 1}
    assert frames[0].score[first > 0].mean() > frames[0].score[first == 0].mean() + 1


def test_small_run(tool, small, monkeypatch, capsys):
    monkeypatch.setattr(tool.video, "_THRESHOLDS", np.array([1.2, 1.8]))
    args = tool._parser().parse_args(["video", "--scenes", "1", "--frames", "6"])
    args.run(args)
    text = capsys.readouterr().out
    assert "alarm 3 of 5, off after 5" in text and "1 scenes of 6 frames, 172x96" in text
    for method in ("off", "ema", "flow"):
        for kind in ("objects", "alarms"):
            row = re.search(rf"\| {method} +\| {kind} +\|(.*)\|", text)[1].split("|")
            assert 0 <= float(row[1]) <= 1
    assert re.search(r"milliseconds per frame: tracks [\d.]+, ema [\d.]+, flow [\d.]+", text)


def test_run_of_a_model(tool, model, tmp_path, capsys):
    folder, labels = tmp_path / "frames", tmp_path / "labels"
    folder.mkdir(), labels.mkdir()
    for i in (2, 10, 1):
        cv2.imwrite(str(folder / f"a{i}.png"), np.full((48, 80, 3), i, np.uint8))
        label = np.zeros((48, 80), np.uint8)
        label[:] = 12 if i != 2 else 0
        cv2.imwrite(str(labels / f"a{i}.png"), label)
    cv2.imwrite(str(folder / "b.png"), np.zeros((48, 80, 3), np.uint8))
    words = ["video", *model, "--images", str(folder), "--only", "a", "--fps", "2"]
    words += ["--labels", str(labels), "--threshold", "-99"]
    weights = str(tmp_path / "model.pth")
    args = tool._parser().parse_args([*words, "--opts", "MODEL.WEIGHTS", weights])
    args.run(args)
    text = capsys.readouterr().out
    assert "3 frames of frames, 2 per second" in text
    row = re.search(r"\| off +\| objects +\|(.*)\|", text)[1].split("|")
    # all of each frame is an object; in a2 there is none
    assert [float(cell) for cell in row[1:]] == [1, 0, 0, 0, 0.33, 0]
    for only in ((), ("--only", "c")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        where = folder if only else tmp_path / "empty"
        words = ["video", *model, "--images", str(where), *only, "--threshold", "-99"]
        with pytest.raises(SystemExit, match=f"error: no image in {where}"):
            args = tool._parser().parse_args([*words, "--opts", "MODEL.WEIGHTS", weights])
            args.run(args)
