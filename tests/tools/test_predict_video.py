"""tools/predict.py on frames in order: sequences, smoothing, tracks, events, live input."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_predict import picture, predict, read_video, records, write_video

from tdos_d2.errors import UserError
from tdos_d2.inference.media import video_files
from tdos_d2.inference.predictor import OODPredictor

WIDTH, HEIGHT = 160, 96


@pytest.fixture
def bright(monkeypatch):
    """A model whose score is the brightness, so that a white block is an object."""
    original = OODPredictor._predict

    def predict_brightness(self, image, *args):
        result = original(self, image, *args)
        result["ood_score"] = image.mean(2).astype(np.float32) / 255
        return result

    monkeypatch.setattr(OODPredictor, "_predict", predict_brightness)


@pytest.fixture
def drive(tmp_path) -> Path:
    """A folder of 12 numbered frames with a white block that moves, and is dark in frame 5."""
    folder = tmp_path / "in" / "drive"
    folder.mkdir(parents=True)
    for i in range(12):
        image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
        if i not in (5, 10, 11):
            image[40:60, 10 + 8 * i : 40 + 8 * i] = 240 + i
        cv2.imwrite(str(folder / f"f{i}.png"), image)
    return folder


def test_sequence_with_events(model, bright, drive, tmp_path):
    output = tmp_path / "out"
    words = ["--input", drive.parent, "--sequence", 4, "--threshold", 0.5, "--raw", "npy"]
    assert predict(model, output, *words, "--events", "--alarm", 3, 4, 2) == 0
    *of_frames, record = records(output)
    assert [f["frame"] for f in of_frames] == list(range(12))  # f10 is after f9
    assert [f["time"] for f in of_frames] == [i / 4 for i in range(12)]
    found = [[(o["track"], o["alarm"], o["first_frame"]) for o in f["objects"]] for f in of_frames]
    expected = [[(1, False, 0)]] * 2 + [[(1, True, 0)]] * 8 + [[]] * 2
    assert found == [[] if i == 5 else value for i, value in enumerate(expected)]
    assert [f["alarms"] for f in of_frames[:2]] == [[], []]
    (hidden,) = of_frames[5]["alarms"]
    assert (hidden["track"], hidden["seen"]) == (1, False)
    assert hidden["box"] == pytest.approx([50, 40, 80, 60], abs=8)
    peaks = [o["peak_score"] for f in of_frames for o in f["objects"]]
    assert peaks == pytest.approx([(240 + i) / 255 for i in range(10) if i != 5])
    assert (record["fps"], record["frames"], record["events"]) == (4, 12, 1)
    assert record["files"] == {
        "score": "drive_score.mp4", "segmentation": "drive_segmentation.mp4",
        "raw": "drive_frames", "events": "drive_events",
    }  # fmt: skip
    assert len(read_video(output / "drive_score.mp4")) == 12
    with open(output / "events.csv", newline="") as file:
        (event,) = csv.DictReader(file)
    assert (event["input"], event["first_frame"], event["last_frame"]) == (str(drive), "0", "9")
    assert (event["frames"], event["alarm_frame"], event["peak_frame"]) == ("9", "2", "9")
    assert float(event["end"]) == 9 / 4 and event["area"] == str(20 * 30)
    assert cv2.imread(str(output / event["picture"])).shape == (HEIGHT, WIDTH, 3)
    assert "1 event" in (output / "events.html").read_text()
    assert [f["ended_tracks"] for f in of_frames] == [[]] * 12  # 10 and 11 are outlasted
    (track,) = record["ended_tracks"]
    assert track == {"track": 1, "first_frame": 0, "last_frame": 9,
                     "peak_score": pytest.approx(249 / 255), "peak_frame": 9}  # fmt: skip
    # Everything that was written is no input, and another run adds its events.
    assert predict(model, output, "--input", output, drive, *words[2:], "--events") == 0
    assert [f["input"] for f in records(output)[13:]] == [str(drive)] * 13
    assert len((output / "events.csv").read_text().splitlines()) == 3


def write_blocks(folder: Path, brightness: list[dict[int, int]]) -> None:
    """Numbered frames with 20x20 blocks: of each frame the brightness by the block's left edge."""
    folder.mkdir()
    for i, blocks in enumerate(brightness):
        image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
        for left, value in blocks.items():
            image[40:60, left : left + 20] = value
        cv2.imwrite(str(folder / f"{i}.png"), image)


def test_all_tracks_are_in_the_table(model, bright, tmp_path):
    """One, missed in frame 4, has an alarm and is there at the end. Two are too short for one:
    last seen in frames 1 and 5, they outlast one more and end in 3 and 7."""
    left, middle, right = 5, 70, 135
    blocks = [{left: 240}, {left: 250}, {middle: 200}, {middle: 251}, {},
              {middle: 230, right: 220}, {middle: 231}, {middle: 232}, {}]  # fmt: skip
    write_blocks(tmp_path / "drive", blocks)
    words = ["--input", tmp_path / "drive", "--sequence", 4, "--threshold", 0.5, "--shard", "1/1"]
    assert predict(model, tmp_path / "out", *words, "--events", "--alarm", 3, 5, 1) == 0
    *of_frames, record = records(tmp_path / "out")
    keys = ("track", "first_frame", "last_frame", "peak_score", "peak_frame")
    ended = [[tuple(t[k] for k in keys) for t in x["ended_tracks"]] for x in (*of_frames, record)]
    expected = [[] for _ in range(10)]
    expected[3] = [(1, 0, 1, pytest.approx(250 / 255), 1)]
    expected[7] = [(3, 5, 5, pytest.approx(220 / 255), 5)]
    expected[9] = [(2, 2, 7, pytest.approx(251 / 255), 3)]
    assert ended == expected and record["events"] == 1
    in_shard = records(tmp_path / "out" / "shard-1-of-1")
    assert [x["ended_tracks"] for x in (*of_frames, record)] == [
        x["ended_tracks"] for x in in_shard
    ]


def test_tracks_that_end_in_a_frame_that_cannot_be_written(model, bright, tmp_path):
    write_blocks(tmp_path / "drive", [{5: 240}, {5: 250}, {}])
    cv2.imwrite(str(tmp_path / "drive" / "3.png"), np.full((48, 80, 3), 20, np.uint8))
    words = ["--input", tmp_path / "drive", "--sequence", 4, "--threshold", 0.5]
    assert predict(model, tmp_path / "out", *words, "--events", "--alarm", 1, 1, 1) == 1
    *of_frames, record = records(tmp_path / "out")
    assert [f["ended_tracks"] for f in of_frames] == [[]] * 3
    assert [(t["last_frame"], t["peak_frame"]) for t in record["ended_tracks"]] == [(1, 1)]
    assert record["events"] == 1 and "not of one size" in record["error"]


@pytest.mark.parametrize("method", ["ema", "flow"])
def test_scores_are_smoothed(model, bright, drive, tmp_path, capsys, method):
    words = ["--input", drive, "--sequence", 4, "--raw", "npy", "--temporal", method]
    words += ["--every", 2, "--start", 1, "--end", "0:02"]
    assert predict(model, tmp_path / "out", *words) == 0
    *of_frames, record = records(tmp_path / "out")
    assert [f["frame"] for f in of_frames] == [4, 6] and record["fps"] == 2
    assert f"--temporal {method} averages over seconds at 2 frames" in capsys.readouterr().err
    first, second = (np.load(tmp_path / "out" / f["files"]["raw"]) for f in of_frames)
    assert first[50, 50] == pytest.approx(244 / 255)  # nothing came before it
    if method == "ema":
        assert second[50, 50] == pytest.approx((0.6 * 244 + 0.4 * 20) / 255)
    else:
        assert second[50, 80] == pytest.approx(246 / 255, abs=0.01)


def test_images_beside_a_video(model, drive, tmp_path, capsys):
    write_video(drive.parent / "ride.mp4", 3)
    assert predict(model, tmp_path / "out", "--input", drive.parent, "--temporal", "ema") == 0
    assert "12 images were predicted one by one" in capsys.readouterr().err


def test_frames_that_are_named_twice_are_there_once(model, drive, tmp_path, capsys):
    words = ["--input", f"{drive}/*.png", drive, "--sequence", 4, "--threshold", 0.5]
    assert predict(model, tmp_path / "out", *words, "--format", "coco") == 0
    assert "12 images are named twice" in capsys.readouterr().err
    *of_frames, record = records(tmp_path / "out")
    assert [f["time"] for f in of_frames] == [i / 4 for i in range(12)] and record["frames"] == 12


def test_frames_of_other_sizes(model, drive, tmp_path):
    """They cannot be in one video; what came before is kept."""
    cv2.imwrite(str(drive / "f3.png"), picture(0, 48, 80))
    assert predict(model, tmp_path / "out", "--input", drive, "--sequence", 4) == 1
    *of_frames, record = records(tmp_path / "out")
    assert len(of_frames) == record["frames"] == 3
    assert "the frames are not of one size" in record["error"]
    assert len(read_video(tmp_path / "out" / "drive_score.mp4")) == 3


@pytest.mark.parametrize(
    ("rate", "written"),
    [(1 / 3600, 0.002), (0.001, 0.002), (29.97, 29.97), (65.5354, 65.535), (66.667, 66.67),
     (119.957, 119.96), (239.4567, 239.46), (655.39, 655.4), (65534.6, 65535), (9e4, 65535)],
)  # fmt: skip
def test_any_frame_rate_can_be_written(tmp_path, rate, written):
    path = tmp_path / "a.mp4"
    with video_files([path], rate) as (video,):
        video.add(picture(0))
        video.add(picture(1))
    assert len(read_video(path)) == 2
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(written, abs=1e-3)


def test_videos_that_cannot_be_written(model, drive, tmp_path, monkeypatch):
    """As OpenCV refuses them; that is the reason in the table."""
    monkeypatch.setattr("cv2.VideoWriter.isOpened", lambda self: False)
    assert predict(model, tmp_path / "out", "--input", drive, "--sequence", 4) == 1
    (record,) = records(tmp_path / "out")
    path = tmp_path / "out" / "drive_score.mp4"
    assert record["error"] == f"OpenCV cannot write the video {path}" and record["frames"] == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_live_input(model, camera, tmp_path):
    assert predict(model, tmp_path / "out", "--input", camera, "--every", 10) == 0
    *of_frames, record = records(tmp_path / "out")
    assert record["input"] == camera.replace("me:secret@", "").partition("?")[0]
    assert len(of_frames) == record["frames"] == 4 - record["dropped"]
    assert {f["frame"] for f in of_frames} <= {0, 10, 20, 30} and "began" in record
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert any(name.endswith("_live_score.mp4") for name in written)
    assert all(b"secret" not in p.read_bytes() for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--temporal", "flow"], "--temporal is for frames in order: name a video, or use --seq"),
        (["--events", "--threshold", "1"], "--events is for frames in order"),
        (["--every", "2"], "--every is for frames in order"),
        (["--sequence", "5", "--start", "2", "--end", "0:01"], "--end must be after --start"),
        (["--sequence", "5", "--alarm", "1", "2", "3"], "--alarm needs --events"),
        (["--sequence", "5", "--events", "--alarm", "3", "2", "3"], "1 <= N <= M"),
        (["--sequence", "5", "--events"], "--events: no objects are looked for"),
        (["--input", "0", "--start", "2"], "--start: a live input begins now"),
        (["--input", "0", "--format", "coco"], "--format and --select read videos twice"),
    ],
)
def test_options_that_make_no_sense(model, tmp_path, words, expected):
    cv2.imwrite(str(tmp_path / "1.png"), picture(0))
    with pytest.raises(UserError, match=expected):
        predict(model, tmp_path / "out", "--input", tmp_path / "1.png", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1:2:3:4", "-1", "1:", "x"])
def test_times(model, tmp_path, capsys, text):
    words = ["--input", "v.mp4", f"--start={text}"]
    assert predict(model, tmp_path / "out", *words) == 2
    assert "seconds or [hours:]minutes:seconds are needed" in capsys.readouterr().err


def test_ctrl_c_in_a_sequence_with_events(model, bright, drive, tmp_path, monkeypatch, capsys):
    original, calls = OODPredictor._predict, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(OODPredictor, "_predict", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["--input", drive, "--sequence", 4, "--threshold", 0.5, "--events"]
    try:
        assert predict(model, tmp_path / "out", *words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    *of_frames, record = records(tmp_path / "out")
    assert len(of_frames) == record["frames"] == 4 and record["interrupted"]
    assert record["events"] == 1 and "events.html" in capsys.readouterr().out
