"""tools/predict.py --format and --select: what people who label get."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from test_predict import picture, predict, records, write_video

from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.inference.hand_over import HandOver
from tdos_d2.inference.media import unique_name


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    (folder / "city").mkdir(parents=True)
    cv2.imwrite(str(folder / "city" / "a.png"), picture(0))
    cv2.imwrite(str(folder / "b.png"), picture(1, 40, 60))
    write_video(folder / "c.mp4", 3)
    return folder


def test_coco_and_label_studio(model, inputs, tmp_path, capsys):
    (inputs / "broken.png").write_text("no image")
    out = tmp_path / "out"
    words = ["--input", inputs, "--threshold", -1.0, "--min-area", 1]
    assert predict(model, out, *words, "--format", "coco", "label-studio") == 1
    assert "5 of 5 frames for labelling in" in capsys.readouterr().out
    folder = out / "hand_over"
    coco = COCO(str(folder / "labels.json"))
    images = coco.loadImgs(coco.getImgIds())
    frames = [f"c_frames/{i:06d}.jpg" for i in range(3)]
    assert [i["file_name"] for i in images] == ["b.png", *frames, "city/a.png"]
    for image in images:
        shape = cv2.imread(str(folder / "data" / image["file_name"])).shape
        assert shape == (image["height"], image["width"], 3)
    assert (folder / "data" / "b.png").read_bytes() == (inputs / "b.png").read_bytes()
    expected = [r for r in records(out) if "objects" in r]
    tasks = json.loads((folder / "label_studio.json").read_text())
    assert [task["data"]["image"].rpartition("d=data/")[2] for task in tasks] == [
        i["file_name"] for i in images
    ]
    for image, record, task in zip(images, expected, tasks, strict=True):
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert [a["area"] for a in found] == [o["area"] for o in record["objects"]] != []
        assert [a["score"] for a in found] == [o["mean_score"] for o in record["objects"]]
        (prediction,) = task["predictions"]
        assert [r["meta"]["ood_score"] for r in prediction["result"]] == [a["score"] for a in found]
        assert 0 < prediction["score"] < 1
    score = OODPredictor(load(model))(picture(0))["ood_score"]
    masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(images[-1]["id"]))]
    assert np.array_equal(np.sum(masks, axis=0) == 1, score >= -1.0)


def test_images_that_are_named_like_the_frames_of_a_video(model, inputs, tmp_path):
    """As extracted by hand into a folder beside it: each has files of its own."""
    (inputs / "c_frames").mkdir()
    cv2.imwrite(str(inputs / "c_frames" / "000001.png"), picture(7, 40, 48))
    out = tmp_path / "out"
    words = ["--input", inputs, "--threshold", -1.0, "--min-area", 1, "--raw", "png"]
    assert predict(model, out, *words, "--format", "coco") == 0
    found = [r for r in records(out) if "objects" in r]
    assert len({r["files"]["raw"] for r in found}) == len(found)
    for record in found:
        raw = cv2.imread(str(out / record["files"]["raw"]), cv2.IMREAD_UNCHANGED)
        assert raw.shape == (record["height"], record["width"])
    coco = json.loads((out / "hand_over" / "labels.json").read_text())
    assert len({image["file_name"] for image in coco["images"]}) == len(found)
    for image in coco["images"]:
        shape = cv2.imread(str(out / "hand_over" / "data" / image["file_name"])).shape
        assert shape[:2] == (image["height"], image["width"])


def test_names_of_frames_whichever_is_listed_first(tmp_path):
    taken = set()
    assert unique_name("v", tmp_path, taken, is_video=True) == "v"
    names = [unique_name(f"v_frames/{name}", tmp_path, taken) for name in ("000003", "other")]
    assert names == ["v_frames/000003_2", "v_frames/other"]
    taken.clear()
    assert unique_name("v_frames/000003", tmp_path, taken) == "v_frames/000003"
    assert unique_name("v", tmp_path, taken, is_video=True) == "v_2"


def test_pictures_of_a_video_are_its_frames(model, inputs, tmp_path):
    words = ["--input", inputs / "c.mp4", "--threshold", -1.0, "--min-area", 1, "--format", "coco"]
    assert predict(model, tmp_path / "out", *words) == 0
    capture = cv2.VideoCapture(str(inputs / "c.mp4"))
    for i in range(3):
        frame = capture.read()[1].astype(int)
        handed = cv2.imread(str(tmp_path / "out" / f"hand_over/data/c_frames/{i:06d}.jpg"))
        assert np.abs(handed - frame).mean() < 6
    capture.release()


def test_inputs_that_cannot_be_read_twice(model, inputs, tmp_path, monkeypatch, capsys):
    """The others are handed over, and the run goes on to its end."""
    write_video(inputs / "d.mp4", 3)
    original = HandOver.finish

    def finish(self):
        write_video(inputs / "c.mp4", 2)
        (inputs / "city" / "a.png").unlink()
        return original(self)

    monkeypatch.setattr(HandOver, "finish", finish)
    words = ["--input", inputs, "--threshold", -1.0, "--min-area", 1, "--format", "coco"]
    assert predict(model, tmp_path / "out", *words, "--select", "worst:99") == 1
    folder = tmp_path / "out" / "hand_over"
    files = [i["file_name"] for i in json.loads((folder / "labels.json").read_text())["images"]]
    frames = [f"{name}_frames/{i:06d}.jpg" for name in "cd" for i in range(3)]
    assert sorted(files) == ["b.png", *frames[:2], *frames[3:]]
    assert all((folder / "data" / name).is_file() for name in files)
    assert len((folder / "selected.txt").read_text().splitlines()) == 6
    said = capsys.readouterr()
    assert "6 of 8 frames for labelling in" in said.out
    assert "4 inputs predicted, 0 not" in said.out
    for lost in (f"frame 2 of {inputs / 'c.mp4'}", inputs / "city" / "a.png"):
        assert f"not handed over: cannot read {lost} a second time" in said.err


def test_a_video_that_is_an_input_twice(model, inputs, tmp_path):
    words = ["--input", inputs / "c.mp4", inputs, "--threshold", -1.0, "--format", "coco"]
    assert predict(model, tmp_path / "out", *words, "--min-area", 1) == 0
    folder = tmp_path / "out" / "hand_over"
    files = [i["file_name"] for i in json.loads((folder / "labels.json").read_text())["images"]]
    assert {name.partition("/")[0] for name in files} == {"c_frames", "c_2_frames", "b.png", "city"}
    assert all((folder / "data" / name).is_file() for name in files) and len(files) == 8
    for i in range(3):
        first, second = (folder / f"data/{name}_frames/{i:06d}.jpg" for name in ("c", "c_2"))
        assert first.read_bytes() == second.read_bytes()


def test_selected_frames(model, inputs, tmp_path):
    """Eight copies of one frame are one event."""
    for i in range(8):
        cv2.imwrite(str(inputs / f"copy{i}.png"), picture(0))
    out = tmp_path / "out"
    assert predict(model, out, "--input", inputs, "--select", "worst:3") == 0
    lines = (out / "hand_over" / "selected.txt").read_text().splitlines()
    assert len(set(lines)) == 3
    pictures = [cv2.imread(line) for line in lines]
    copies = sum(np.array_equal(p, picture(0)) for p in pictures)
    assert copies <= 1
    assert not (out / "hand_over" / "labels.json").exists()
    # A second run into the input folder itself takes no handed over picture for an input.
    assert predict(model, inputs, "--input", inputs, "--select", "worst:2") == 0
    first = len(records(inputs))
    assert predict(model, inputs, "--input", inputs, "--select", "worst:2") == 0
    assert len(records(inputs)) == 2 * first == 2 * (10 + 3 + 1)
    assert (inputs / "hand_over_2" / "selected.txt").is_file()


def test_only_selected_frames_are_handed_over(model, inputs, tmp_path):
    words = ["--threshold", -1.0, "--select", "worst:2", "--format", "coco"]
    assert predict(model, tmp_path / "out", "--input", inputs, *words) == 0
    content = json.loads((tmp_path / "out" / "hand_over" / "labels.json").read_text())
    files = [p for p in (tmp_path / "out" / "hand_over" / "data").rglob("*") if p.is_file()]
    assert len(content["images"]) == len(files) == 2


def test_an_interrupted_video_hands_over_what_was_done(model, inputs, tmp_path, monkeypatch):
    calls = []
    original = OODPredictor._predict

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:  # the second frame of the video
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(OODPredictor, "_predict", interrupted)
    words = ["--threshold", -1.0, "--select", "worst:9", "--format", "coco"]
    assert predict(model, tmp_path / "out", "--input", inputs, *words) == 130
    content = json.loads((tmp_path / "out" / "hand_over" / "labels.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["b.png", "c_frames/000000.jpg"]


def test_patterns_and_lists_as_inputs(model, inputs, tmp_path, capsys):
    cv2.imwrite(str(inputs / "[1].png"), picture(2))  # a name that is also a pattern
    given = ["--input", f"{inputs}/**/*.png", inputs / "[1].png", "--raw", "none"]
    assert predict(model, tmp_path / "out", *given) == 0
    read = [r["input"] for r in records(tmp_path / "out")]
    names = ["[1].png", "b.png", "city/a.png", "[1].png"]
    assert read == [str(inputs / name) for name in names]
    (tmp_path / "list.txt").write_text(f"{inputs / 'b.png'}\n\n{inputs / 'city'}\n")
    assert predict(model, tmp_path / "two", "--input", tmp_path / "list.txt") == 0
    read = [r["input"] for r in records(tmp_path / "two")]
    assert read == [str(inputs / "b.png"), str(inputs / "city" / "a.png")]
    (tmp_path / "list.txt").write_text("\n")
    for word, message in (
        (f"{inputs}/*.bmp", "nothing fits the pattern"),
        (tmp_path / "list.txt", "names nothing"),
        (tmp_path / "gone.txt", "no file or folder"),
    ):
        with pytest.raises(UserError, match=f"--input: .*{message}"):
            predict(model, tmp_path / "three", "--input", word)


def test_wrong_words(model, inputs, tmp_path, capsys):
    with pytest.raises(UserError, match="--format coco: no objects are looked for: give --thres"):
        predict(model, tmp_path / "out", "--input", inputs, "--format", "coco")
    for wrong in ("worst", "worst:0", "best:3", "200"):
        assert predict(model, tmp_path / "out", "--input", inputs, "--select", wrong) == 2
    assert "worst:N is needed, such as worst:200, not '200'" in capsys.readouterr().err


def load(model: list[str]):
    from tdos_d2.engine import load_config

    return load_config(model[1], ["MODEL.WEIGHTS", model[1].replace("model.yaml", "model.pth")])
