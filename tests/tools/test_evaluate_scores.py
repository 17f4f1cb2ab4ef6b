"""tools/evaluate_scores.py on a set of its own, in every format."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from script_loading import load_script

from tdos_d2.data import register_from_file
from tdos_d2.errors import UserError
from tdos_d2.evaluation import evaluate_breakdown, evaluate_scores
from tdos_d2.inference.media import write_score

NAME = "tiny_for_scores"
FRAMES = ["a/x", "a/y", "b/z"]
METRICS = ["AP", "AUROC", "FPR95", "F1", "sIoU", "PPV", "mF1"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a set, its registration file, and scores in all kinds of files."""
    rng = np.random.default_rng(0)
    for i, frame in enumerate(FRAMES):
        label = np.zeros((40, 50), np.uint8)
        label[5 + i : 20, 10:40], label[35:] = 1, 255
        score = np.round(rng.normal(3 * (label == 1), 1) * 100 + 1000).astype(np.uint16)
        for kind, array in (("images", np.zeros((40, 50, 3), np.uint8)), ("labels", label)):
            path = tmp_path / kind / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
        path = tmp_path / "scores" / frame
        path.parent.mkdir(parents=True, exist_ok=True)
        if i == 0:
            np.save(f"{path}.npy", score.astype(np.float32))
        elif i == 1:
            cv2.imwrite(f"{path}.png", score)
        else:
            with h5py.File(f"{path}.hdf5", "w") as file:
                file["value"] = score.astype(np.float16)
    (tmp_path / "sets.yaml").write_text(
        f"- name: {NAME}\n  image_root: images\n  label_root: labels\n  protocol: obstacle\n"
    )
    yield tmp_path
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Calls the tool; gives what it prints."""
    tool = load_script("tools/evaluate_scores.py")

    def call(*words: str) -> tuple[str, str]:
        known = ["--register", str(folder / "sets.yaml"), "--dataset", NAME]
        argv = ["tool", *known, "--scores", str(folder / "scores"), *words]
        monkeypatch.setattr(sys, "argv", argv)
        tool.run()
        return capsys.readouterr()

    return call


def frames(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = []
    for frame in FRAMES:
        label = cv2.imread(str(folder / "labels" / f"{frame}.png"), cv2.IMREAD_UNCHANGED)
        path = folder / "scores" / frame
        if frame == "a/x":
            score = np.load(f"{path}.npy")
        elif frame == "a/y":
            score = cv2.imread(f"{path}.png", cv2.IMREAD_UNCHANGED)
        else:
            with h5py.File(f"{path}.hdf5") as file:
                score = file["value"][:]
        rows.append((score, label))
    return rows


def test_metrics_are_those_of_evaluate_scores(run, folder):
    out, err = run("--format", "json")
    result = json.loads(out)
    assert {name: result[name] for name in METRICS} == evaluate_scores(frames(folder), "obstacle")
    assert result["frames"] == 3 and result["rule"] == "score >= threshold"
    assert result["smallest_predicted_component"] == 50
    assert "score maps of float16: " in err
    strict = json.loads(run("--format", "json", "--strict")[0])
    expected = evaluate_scores(frames(folder), "obstacle", strict=True)
    assert {name: strict[name] for name in METRICS} == expected
    anomaly = json.loads(run("--format", "json", "--protocol", "anomaly")[0])
    assert anomaly["smallest_predicted_component"] == 500


def test_frames_of_one_image_id_are_an_error(run, folder, monkeypatch):
    """One of them would be left out, and the metrics be those of the others."""
    register_from_file(folder / "sets.yaml")
    records = [{**record, "image_id": "a"} for record in DatasetCatalog.get(NAME)]
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    monkeypatch.setattr("tdos_d2.evaluation.scores_command.register_from_file", lambda _: None)
    with pytest.raises(UserError, match=f"'{NAME}': several frames have one image_id"):
        run()


def test_breakdown_instances_and_threshold_rules(run, folder):
    words = ("--format", "json", "--breakdown", "--threshold", "tpr:0.9")
    result = json.loads(run(*words)[0])
    expected = evaluate_scores(frames(folder), "obstacle", threshold="tpr:0.9")
    assert {name: result[name] for name in METRICS} == expected
    groups = evaluate_breakdown(frames(folder), "obstacle", threshold="tpr:0.9")
    assert result["breakdown"] == groups and set(groups) >= {"instances", "small"}
    assert result["threshold_rule"] == "highest with TPR >= 0.9"
    assert groups["instances"]["instances"] == 3
    out = run("--breakdown")[0]
    assert "AP50" in out and "small" in out and "components" in out
    for i, frame in enumerate(FRAMES):  # each object has a left and a right half
        ids = np.zeros((40, 50), np.uint8)
        ids[5 + i : 20, 10:25], ids[5 + i : 20, 25:40] = 7, 9
        path = folder / "ids" / f"{frame}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), ids)
    words = ("--format", "json", "--instances", str(folder / "ids"))
    out, err = run(*words)
    assert json.loads(out)["breakdown"]["instances"]["instances"] == 6
    assert "true instances are the instance masks of --instances\n" in err
    cv2.imwrite(str(path), ids * (ids == 7))
    out, err = run(*words)
    assert json.loads(out)["breakdown"]["instances"]["instances"] == 5
    assert f"{15 * (20 - 7)} OOD pixels have no number" in err  # rows 7 to 19
    cv2.imwrite(str(path), ids[1:])
    with pytest.raises(UserError, match=r"instance mask .*z\.png is 50x39, but label .* 50x40"):
        run(*words)


def test_instance_masks_of_the_dataset(run, folder):
    """Two objects that touch in each frame: instances by the masks, not by components."""
    for i, frame in enumerate(FRAMES):
        for name, numbers in (("own", (300, 2)), ("other", (300, 0))):
            ids = np.zeros((40, 50), np.uint16)
            ids[5 + i : 20, 10:25], ids[5 + i : 20, 25:40] = numbers
            path = folder / name / f"{frame}_ids.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), ids)
            cv2.imwrite(str(path.with_name(f"{Path(frame).name}.png")), ids)
    words = ("--format", "json", "--breakdown")
    result = json.loads(run(*words)[0])
    assert result["breakdown"]["instances"]["instances"] == 3
    assert result["true_instances"] == "true instances are the connected components of the labels"
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    with (folder / "sets.yaml").open("a") as file:
        file.write("  instance_root: own\n  instance_suffix: _ids.png\n")
    out, err = run(*words)
    result = json.loads(out)
    assert result["breakdown"]["instances"]["instances"] == 6
    assert result["true_instances"] == "true instances are the instance masks of the dataset"
    assert result["true_instances"] + "\n" in err
    given = json.loads(run(*words, "--instances", str(folder / "own"))[0])
    assert given["breakdown"] == result["breakdown"]
    given = json.loads(run(*words, "--instances", str(folder / "other"))[0])
    assert given["breakdown"]["instances"]["instances"] == 3
    assert "masks of --instances; 630 OOD pixels have no number" in given["true_instances"]


def test_thresholds_that_are_given(run, folder):
    (folder / "t.json").write_text('{"threshold": 1250.0, "promise": "few"}')
    results = [json.loads(run("--format", "json", "--threshold", t)[0])
               for t in ("1250", str(folder / "t.json"))]  # fmt: skip
    assert results[0]["threshold"] == results[1]["threshold"] == 1250
    assert results[0]["PPV"] == evaluate_scores(frames(folder), "obstacle", threshold="1250")["PPV"]
    for wrong in ("fpr:2", "best", "nan"):
        with pytest.raises(UserError, match="^--threshold: a threshold is best-f1, fpr:SHARE"):
            run("--threshold", wrong)
    message = r"^--threshold: 'calibrated' .*: name .*, CHECKPOINT\.calibration\.json"
    with pytest.raises(UserError, match=message) as error:
        run("--threshold", "calibrated")
    assert "\n" not in str(error.value)


def test_table_csv_markdown_and_latex(run):
    json_result = json.loads(run("--format", "json")[0])
    shown = f"{json_result['AP']:.2f}"
    assert shown in run()[0] and shown in run("--format", "latex")[0]
    assert f"| {shown} |" in run("--format", "markdown")[0]
    (row,) = csv.DictReader(run("--format", "csv")[0].splitlines())
    assert float(row["AP"]) == json_result["AP"] and list(row) == ["dataset", "frames", *METRICS]


def test_per_frame_and_bootstrap(run, folder):
    words = ("--per-frame", str(folder / "frames.csv"), "--bootstrap", "200")
    out, err = run("--format", "json", *words)
    result = json.loads(out)
    low, high = result["intervals"]["AP"]
    assert low < result["AP"] < high
    assert "exact to AP" in err and result["interval_error_bounds"]["AUROC"] < 0.1
    rows = list(csv.DictReader((folder / "frames.csv").read_text().splitlines()))
    assert [row["frame"] for row in rows] == FRAMES
    alone = evaluate_scores(frames(folder)[1:2])
    assert float(rows[1]["AP"]) == pytest.approx(alone["AP"], abs=0.01)
    (row,) = csv.DictReader(run("--format", "csv", *words)[0].splitlines())
    assert (float(row["AP_low"]), float(row["AP_high"])) == (low, high)
    assert f"{result['AP']:.2f} [{low:.2f}, {high:.2f}]" in run(*words)[0]


def test_report_and_overlays(run, folder):
    words = ("--report", str(folder / "report"), "--show-dir", str(folder / "show"))
    out, err = run("--format", "json", *words)
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert f">{json.loads(out)['AP']:.2f}<" in page and "(protocol: obstacle)" in page
    ood = sum(30 * (15 - i) for i in range(3))  # of 35 labelled rows of 50 pixels in each frame
    assert f"{100 * ood / (3 * 35 * 50):.3g} % of them OOD" in page
    found = sorted(str(x.relative_to(folder / "show")) for x in (folder / "show").rglob("*.jpg"))
    assert found == [f"{NAME}/{frame}.jpg" for frame in FRAMES]
    assert (folder / "report" / f"{NAME}_pr.png").exists() and "report: " in err
    page = folder / "report" / "index.html"
    assert "(best pixel F1)" in page.read_text("utf-8")
    words = ("--bootstrap", "50", "--strict", "--threshold", "fpr:0.01")
    run("--report", str(folder / "report"), *words)
    assert "(lowest with FPR &lt;= 0.01)" in page.read_text("utf-8")
    assert "best pixel F1" not in page.read_text("utf-8")
    assert re.search(r"\d \[\d+\.\d+, \d+\.\d+\]<", page.read_text("utf-8"))
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="--report: .*file is no folder"):
        run("--report", str(folder / "file"))
    image = folder / "images" / "b" / "z.png"
    image.write_bytes(image.read_bytes()[:45])  # the header, and no pixels
    with pytest.raises(UserError, match="cannot read image .*z.png"):
        run("--report", str(folder / "report"))


def test_16_bit_scores_of_predict(run, folder):
    """Each map has a scale of its own; without it AP is another one."""
    assert "1 PNG files have no offset and step in their text, first " in run()[1]
    rng, pairs = np.random.default_rng(1), []
    for i, (frame, (_, label)) in enumerate(zip(FRAMES, frames(folder), strict=True)):
        score = rng.normal(3.0 * (label == 1) + 2 * i, 1).astype(np.float32)
        for old in (folder / "scores").glob(f"{frame}.*"):
            old.unlink()
        write_score(folder / "scores" / f"{frame}_raw.png", score)
        pairs.append((score, label))
    out, err = run("--format", "json")
    result, expected = json.loads(out), evaluate_scores(pairs, "obstacle")
    assert result["AP"] == pytest.approx(expected["AP"], abs=0.01)
    assert "no offset and step" not in err
    path = folder / "scores" / "a" / "y_raw.png"
    with Image.open(path) as image:
        image.save(path)  # loses its texts
    with pytest.raises(UserError, match=r"x_raw\.png has offset and step .*y_raw\.png has not"):
        run()


@pytest.mark.parametrize(
    ("score", "noted"),
    [
        (lambda s: s > 1100, "bool"),
        (lambda s: (s // 10).astype(np.uint8), "uint8"),
        (lambda s: (s // 10).astype(np.int64), "int64"),
        (lambda s: s.astype(np.int64), ""),
        (lambda s: s / 7, ""),
    ],
)
def test_coarse_scores_are_noted(run, folder, score, noted):
    for array, frame in zip(frames(folder), FRAMES, strict=True):
        for path in (folder / "scores" / frame).parent.glob(f"{Path(frame).name}.*"):
            path.unlink()
        np.save(folder / "scores" / f"{frame}.npy", score(array[0].astype(np.float64)))
    err = run()[1]
    assert (f"score maps of {noted}: scores that differ become equal" in err) == bool(noted)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_set_without_ood_or_known_pixels_is_an_error(run, folder, capsys, value):
    for frame in FRAMES:
        label = np.full((40, 50), value, np.uint8)
        label[20:] = 255
        cv2.imwrite(str(folder / "labels" / f"{frame}.png"), label)
    options = "--report", str(folder / "report"), "--show-dir", str(folder / "show")
    with pytest.raises(UserError, match=f"'{NAME}' has no metrics: .* no OOD or no known pixel"):
        run(*options)
    assert NAME in capsys.readouterr().out  # the table comes first
    assert (folder / "report" / "index.html").exists() and (folder / "show").exists()


@pytest.mark.parametrize(
    "option, writer",
    [
        ("--per-frame", "os.fsync"),
        ("--report", "tdos_d2.evaluation.scores_command.write_report"),
        ("--show-dir", "tdos_d2.evaluation.scores_command.write_overlays"),
    ],
)
def test_the_table_comes_before_the_files(run, folder, monkeypatch, capsys, option, writer):
    """What cannot be written in the end, as on a full disk, takes no result away."""

    def full(*_: object) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(writer, full)
    with pytest.raises(UserError, match="no space left"):
        run("--format", "csv", option, str(folder / "result"))
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert float(row["AP"]) > 0


def test_what_is_wrong_is_named(run, folder):
    np.save(folder / "scores" / "a" / "x.npy", np.zeros((20, 25)))
    with pytest.raises(UserError, match=r"a/x\.npy is 25x20, but the label .*a/x\.png is 50x40"):
        run()
    (folder / "scores" / "a" / "x.npy").rename(folder / "scores" / "a" / "w.npy")
    with pytest.raises(UserError, match=r"1 of 3 frames .*a/x .*1 files belong .*w.npy"):
        run()
    with pytest.raises(UserError, match="'demo_val' is no OOD set"):
        run("--dataset", "demo_val")
    with pytest.raises(UserError, match="unknown dataset 'demo_odd'"):
        run("--dataset", "demo_odd")
