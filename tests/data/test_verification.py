"""datasets/verify.py on miniature sets, good and bad, and on real ones."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import picture, stripes, write_image
from script_loading import load_script

from tdos_d2.data import MissingDatasetError, get_dicts, register_ood_dataset
from tdos_d2.data.verify import report as verification
from tdos_d2.data.verify.report import ExpectedContent, verify_dataset

ROOT = Path(__file__).parents[2]
DATA = Path(os.getenv("TDOS_TEST_DATA", ROOT.parent / "shared" / "data"))
MINI = ("32x24",)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def expect(monkeypatch):
    """Says how many frames a miniature should have."""

    def set_expected(name: str, frames: int, sizes: tuple[str, ...] = MINI) -> None:
        expected = ExpectedContent(frames, sizes)
        monkeypatch.setitem(verification.EXPECTED_CONTENT, name, expected)

    return set_expected


def verify(monkeypatch, *argv: object) -> int:
    """Exit status of the script."""
    module = load_script("datasets/verify.py")
    monkeypatch.setattr("sys.argv", ["verify.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit:
        module.main()
    return exit.value.code


@pytest.mark.parametrize(
    "name, make, frames, without, values",
    [
        # of three frames: three values in stripes of 11, 11 and 10 columns; void; known
        ("smiyc_anomalytrack_val", layouts.anomalytrack, 3, 2, {0: 43, 1: 11, 255: 42}),
        ("fs_laf_val", layouts.fishyscapes_laf, 3, 2, {0: 43, 1: 11, 255: 42}),
        ("fs_static_val", layouts.fishyscapes_static, 3, 2, {0: 43, 1: 11, 255: 42}),
        ("road_anomaly", layouts.road_anomaly, 2, 1, {0: 43, 2: 11, 7: 10}),
        # 25 frames like the second, the two labels that are not left out: void, OOD
        ("smiyc_obstacletrack_val", layouts.obstacletrack, 30, 29, None),
        ("poc_cityscapes_coco_train", layouts.poc, 3, 2, None),
        ("camvid_ood", layouts.camvid, 2, 0, None),
        ("camvid_val", layouts.camvid, 2, None, None),
    ],
)
def test_good_sets(root, expect, name, make, frames, without, values):
    make(root)
    expect(verification._ALIASES.get(name, name), frames)
    report = verify_dataset(name)
    assert report.problems == []
    assert (report.frames, report.expected_frames) == (frames, frames)
    assert report.sizes == {"32x24": frames}
    assert report.without_anomaly == without
    if values is not None:  # pixels in columns of 24 rows
        assert {value: n / 24 for value, n in report.values.items()} == values


def test_roles_and_shares(root):
    layouts.poc(root)
    report = verify_dataset("poc_cityscapes_coco_train")
    assert report.roles == {
        0: "known",
        10: "known",
        13: "known",
        42: "OOD",
        85: "known",
        255: "void",
    }
    assert report.percent(report.values[42]) == pytest.approx(100 / 12)  # a quarter of one of three
    content = json.loads(json.dumps(report.to_json()))
    assert content["values"]["42"] == {"role": "OOD", "percent": pytest.approx(100 / 12)}
    assert content["ok"] is False  # three frames of 32x24


def test_hidden_split(root, expect):
    layouts.obstacletrack(root)
    expect("smiyc_obstacletrack_test", 4)
    report = verify_dataset("smiyc_obstacletrack_test")
    assert report.problems == [] and report.frames == 4
    assert not report.has_labels and report.values == {} and report.without_anomaly is None


def test_everything_that_is_wrong_is_named(root, expect):
    folder = layouts.anomalytrack(root)
    expect("smiyc_anomalytrack_val", 3)
    images, masks = folder / "images", folder / "labels_masks"
    (masks / "validation0000_labels_semantic.png").unlink()
    write_image(masks / "validation0001_labels_semantic.png", stripes(0, 1, 9))
    write_image(masks / "validation0002_labels_semantic.png", stripes(0, size=(5, 6)))
    write_image(masks / "validation0007_labels_semantic.png", stripes(0))
    write_image(images / "validation0003.jpg", picture(size=(10, 12)))
    write_image(masks / "validation0003_labels_semantic.png", picture(size=(10, 12)))
    (images / "validation0004.png").write_text("no image")
    write_image(masks / "validation0004_labels_semantic.png", np.full((4, 4), 300, np.uint16))
    report = verify_dataset("smiyc_anomalytrack_val")
    for expected in (
        "5 frames, 3 expected",
        "images of 12x10, 32x24 expected",
        f"label without image: {masks}/validation0007_labels_semantic.png",
        f"image without label: {images}/validation0000.jpg",
        f"undeclared label values 9 in 1 files, first {masks}/validation0001_labels_semantic.png",
        f"label {masks}/validation0002_labels_semantic.png is 6x5, but its image",
        f"label {masks}/validation0003_labels_semantic.png has 3 channels",
        f"cannot read image {images}/validation0004.png",
        f"label {masks}/validation0004_labels_semantic.png has values outside of 0..255",
    ):
        assert [p for p in report.problems if p.startswith(expected)], expected
    assert len(report.problems) == 9


def test_labels_of_frames_that_do_not_count_are_not_stray(root, expect):
    folder = layouts.obstacletrack(root)
    expect("smiyc_obstacletrack_val", 30)
    assert verify_dataset("smiyc_obstacletrack_val").problems == []
    (folder / "images/validation_19.webp").unlink()
    (problem,) = verify_dataset("smiyc_obstacletrack_val").problems
    assert "without image" in problem and "validation_19_" in problem


def test_lost_and_found(root, expect):
    layouts.lost_and_found(root)
    expect("laf_test", 1186)
    report = verify_dataset("laf_test")
    assert report.problems == [] and report.without_anomaly == 1185
    assert {v: report.roles[v] for v in (0, 1, 43)} == {0: "void", 1: "known", 43: "OOD"}


def test_cityscapes_is_checked_by_its_own_rules(root, monkeypatch):
    from detectron2.data import MetadataCatalog

    folder = layouts.cityscapes(root)
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    places = {"image_dir": "leftImg8bit", "gt_dir": "gtFine"}
    for key, part in places.items():
        monkeypatch.setitem(metadata.__dict__, key, str(folder / part / "val"))
    report = verify_dataset("cityscapes_fine_sem_seg_val")
    assert report.problems == ["3 frames, 500 expected", "images of 32x24, 2048x1024 expected"]
    assert report.roles == {0: "known", 1: "known", 13: "known", 255: "void"}
    next(folder.rglob("val/**/*labelTrainIds.png")).unlink()
    (problem,) = verify_dataset("cityscapes_fine_sem_seg_val").problems
    assert "1 label files are missing" in problem


def test_region_mask_is_counted_apart(tmp_path):
    write_image(tmp_path / "images/a.png", picture())
    write_image(tmp_path / "labels/a.png", stripes(0, 0, 0, 1))
    write_image(tmp_path / "labels/b.png", stripes(1, 0, 0, 1))
    write_image(tmp_path / "images/b.png", picture())
    write_image(tmp_path / "ego.png", stripes(0, 0, 1, 1))
    folders = tmp_path / "images", tmp_path / "labels"
    register_ood_dataset("mini", *folders, region_mask=tmp_path / "ego.png")
    report = verify_dataset("mini")
    assert report.problems == [] and report.without_anomaly == 1
    assert report.values == {0: 24 * 24, 1: 24 * 8} and report.masked == 2 * 24 * 16
    assert report.percent(report.masked) == 50


def test_instance_masks_are_there_and_of_the_size_of_the_labels(tmp_path):
    for stem in "abc":
        write_image(tmp_path / f"images/{stem}.png", picture())
        write_image(tmp_path / f"labels/{stem}.png", stripes(0, 1, 255))
        write_image(tmp_path / f"ids/{stem}.png", stripes(0, 7, 9))
    places = tmp_path / "images", tmp_path / "labels"
    register_ood_dataset("mini", *places, instance_root=tmp_path / "ids")
    assert verify_dataset("mini").problems == []
    write_image(tmp_path / "ids/a.png", stripes(0, 7, size=(2, 3)))
    (tmp_path / "ids/c.png").unlink()
    small, missing = verify_dataset("mini").problems
    assert re.search(r"instance mask .*ids/a\.png is 3x2, but label .*a\.png is 32x24", small)
    assert re.search(r"no instance mask file .*ids/c\.png", missing)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0, 255), "no OOD pixel in any label: declared OOD values are 1, found are 0, 255"),
        ((1, 255), "no known pixel in any label: declared known values are 0, found are 1, 255"),
    ],
)
def test_sets_with_nothing_to_find_or_to_leave_out(tmp_path, monkeypatch, capsys, values, says):
    for stem in "ab":
        write_image(tmp_path / f"images/{stem}.png", picture())
        write_image(tmp_path / f"labels/{stem}.png", stripes(*values))
    register_ood_dataset("mini", tmp_path / "images", tmp_path / "labels")
    assert verify(monkeypatch, "mini") == 1
    assert f"mini: {says}\n" in capsys.readouterr().out
    write_image(tmp_path / "labels/b.png", stripes(0, 1))
    assert verify_dataset("mini").problems == []


def test_one_broken_frame_does_not_end_the_check_of_the_others(tmp_path):
    for stem in "abc":
        write_image(tmp_path / f"images/{stem}.png", picture())
        write_image(tmp_path / f"labels/{stem}.png", stripes(0, 1, 0, 1))
        write_image(tmp_path / f"ego/{stem}.png", stripes(0, 0, 1, 1))
    folders = tmp_path / "images", tmp_path / "labels"
    register_ood_dataset("mini", *folders, region_mask=tmp_path / "ego")
    (tmp_path / "images/a.png").write_text("no image")
    write_image(tmp_path / "ego/b.png", stripes(0, 1, size=(4, 6)))
    report = verify_dataset("mini")
    image, region = report.problems
    assert image.startswith(f"cannot read image {tmp_path}/images/a.png")
    assert region.startswith(f"region mask {tmp_path}/ego/b.png is 6x4, but label")
    assert report.values == {0: 2 * 24 * 8, 1: 2 * 24 * 8}  # of a and c, half of them masked


def test_any_error_of_a_frame_is_a_problem_of_that_frame(tmp_path, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    good = {
        "file_name": str(write_image(tmp_path / "a.png", picture())),
        "sem_seg_file_name": str(write_image(tmp_path / "a_gt.png", stripes(0, 1))),
    }
    bad = {"filename": "b.png", "sem_seg_file_name": good["sem_seg_file_name"]}
    DatasetCatalog.register("own", lambda: [bad, good])
    MetadataCatalog.get("own").set(stuff_classes=["a", "b"])
    (problem,) = verify_dataset("own").problems
    assert "b.png" in problem and "KeyError: 'file_name'" in problem
    MetadataCatalog.get("own").stuff_classes.clear()
    assert verify_dataset("own").problems == ["dataset 'own': its metadata has no stuff_classes"]


def test_images_among_the_labels_are_no_stray_labels(tmp_path):
    write_image(tmp_path / "images/a.png", picture())
    write_image(tmp_path / "a.png", stripes(0, 1))
    register_ood_dataset("mini", tmp_path / "images", tmp_path)
    assert verify_dataset("mini").problems == []


def test_missing_set(root):
    with pytest.raises(MissingDatasetError, match="dataset_AnomalyTrack"):
        verify_dataset("smiyc_anomalytrack_val")


def test_script(root, expect, monkeypatch, capsys):
    layouts.camvid(root)
    layouts.road_anomaly(root)
    parts = "train", "val", "test", "ood", "held_out_train", "held_out_val", "held_out_ood"
    for name in ("road_anomaly", *(f"camvid_{part}" for part in parts)):
        expect(name, 2)
    monkeypatch.delenv("DETECTRON2_DATASETS")
    json_file = root / "report.json"
    assert verify(monkeypatch, "--root", root, "--json", json_file) == 0
    out = capsys.readouterr().out
    assert "known 0-10" in out and "OOD 2, 7: 32.81" in out  # 21 of 64 columns
    assert "not on disk:" in out and "laf_test" in out
    reports = {report["name"]: report for report in json.loads(json_file.read_text())}
    assert reports["road_anomaly"]["frames"] == 2 and reports["road_anomaly"]["ok"]
    (root / "CamVid/valannot/0001TP_1.png").unlink()
    assert verify(monkeypatch, "camvid_val", "--root", root) == 1
    assert "camvid_val: image without label" in capsys.readouterr().out
    assert verify(monkeypatch, "camvid_train", "--root", root) == 0
    assert verify(monkeypatch, "fs_laf_val", "--root", root) == 2
    assert "error: dataset 'fs_laf_val': no folder" in capsys.readouterr().err
    assert verify(monkeypatch, "camvid_vall", "--root", root) == 2
    assert verify(monkeypatch, "--root", root / "CamVid") == 2
    assert "error: no dataset below" in capsys.readouterr().err


def test_script_with_own_sets(root, monkeypatch, capsys):
    write_image(root / "images/a.png", picture())
    write_image(root / "labels/a.png", stripes(0, 1))
    register = root / "sets.yaml"
    register.write_text("[{name: mini, image_root: images, label_root: labels}]")
    assert verify(monkeypatch, "mini", "--register", register) == 0
    assert "OOD 1: 50.00" in capsys.readouterr().out


def test_large_frames_take_little_time(tmp_path):
    image = write_image(tmp_path / "images/0.jpg", picture(size=(1024, 2048)))
    label = write_image(tmp_path / "labels/0.png", stripes(0, 1, 255, size=(1024, 2048)))
    for i in range(1, 10):
        (image.parent / f"{i}.jpg").hardlink_to(image)
        (label.parent / f"{i}.png").hardlink_to(label)
    register_ood_dataset("large", image.parent, label.parent)
    begin = time.process_time()
    assert verify_dataset("large").frames == 10
    assert time.process_time() - begin < 5  # of CPU time, whatever else the machine does


@pytest.mark.parametrize(
    "name, folder, frames, shares",
    [
        ("camvid_train", "CamVid", 367, {}),
        ("camvid_val", "CamVid", 101, {}),
        ("camvid_held_out_ood", "CamVid", 101, {}),
        ("camvid_test", "CamVid", 233, {}),
        # 4.1 % of the pixels, as its authors say
        ("camvid_ood", "CamVid", 233, {12: 4.145, 11: 3.656}),
        ("road_anomaly", "RoadAnomaly", 60, {2: 9.85}),
        ("smiyc_anomalytrack_val", "dataset_AnomalyTrack", 10, {1: 14.29}),
    ],
)
def test_real_data(monkeypatch, name, folder, frames, shares):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {DATA / folder}")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(DATA))
    report = verify_dataset(name)
    assert report.problems == [] and report.frames == frames
    assert len(get_dicts(name)) == frames
    if not shares:
        assert set(report.values) == {*range(12)}
    for value, share in shares.items():
        assert report.percent(report.values[value]) == pytest.approx(share, abs=6e-3)


def test_all_names_are_checked_before_the_first_set_is_read(monkeypatch, capsys):
    read = []
    monkeypatch.setattr("tdos_d2.data.verify.report.verify_dataset", lambda *a: read.append(a))
    assert verify(monkeypatch, "camvid_val", "road_anomly") == 2
    assert not read and "did you mean road_anomaly" in capsys.readouterr().err
