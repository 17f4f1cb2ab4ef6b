"""Outputs that cannot be written are found before the work, in every tool and data script."""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from tdos_d2.files import atomic_write, check_output

ROOT = Path(__file__).resolve().parents[2]
# Nothing else that these words name is there: an error about it would come after work was begun.
FILES = {
    "tools/calibrate.py": [
        "--config-file", "demo.yaml", "--images", "absent", "--false-alarm-rate", "0.1",
        "--output", "PLACE",
    ],
    "tools/encode_text.py": ["--clip-weights", "absent", "--names", "x", "--output", "PLACE.npz"],
    "tools/evaluate_scores.py": ["--dataset", "x", "--scores", "absent", "--per-frame", "PLACE"],
    "tools/export_model.py": ["--config-file", "demo.yaml", "--output", "PLACE.pt2"],
    "tools/mine_ood_words.py": ["--classes", "x", "--wordnet", "absent", "--output", "PLACE"],
    "datasets/verify.py": ["absent", "--json", "PLACE"],
    "datasets/prepare_coco_outliers.py": ["--output", "PLACE"],
}
FOLDERS = {
    "tools/ablation.py": ["absent.yaml", "--output", "PLACE"],
    "tools/demo.py": ["--output", "PLACE"],
    "tools/evaluate_scores.py --report": [
        "--dataset", "absent", "--scores", "absent", "--report", "PLACE",
    ],
    "tools/evaluate_scores.py --show-dir": [
        "--dataset", "absent", "--scores", "absent", "--show-dir", "PLACE",
    ],
    "tools/predict.py": ["--config-file", "demo.yaml", "--input", "absent", "--output", "PLACE"],
    "tools/visualize_data.py": ["--config-file", "demo.yaml", "--output", "PLACE"],
    "datasets/prepare_cityscapes.py": ["--output", "PLACE"],
    "datasets/prepare_fs_laf.py": ["--output", "PLACE"],
    "datasets/prepare_fs_static.py": ["--output", "PLACE"],
    "datasets/prepare_gta.py": ["--output", "PLACE"],
    "datasets/prepare_poc.py": ["--output", "PLACE"],
    "datasets/prepare_synthia.py": ["--output", "PLACE"],
}  # fmt: skip
# The downloads, empty: what they lack is found later.
SOURCES = (
    "cityscapes", "POC_CS_COCO_FT", "gta", "RAND_CITYSCAPES", "fishyscapes_lostandfound",
    "dataset_LostAndFound", "fs_val_v2", "coco/train2017",
)  # fmt: skip


@pytest.fixture
def error_of(tmp_path, monkeypatch, capsys):
    """Runs a script as the command line does; gives its one line, that of exit status 2."""
    for source in SOURCES:
        (tmp_path / "sets" / source).mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    monkeypatch.chdir(tmp_path)

    def call(script: str, words: list[str], place: Path) -> str:
        words = [word.replace("PLACE", str(place)) for word in words]
        monkeypatch.setattr(sys, "argv", [script, *words])
        path = ROOT / script.partition(" ")[0]
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        out, err = capsys.readouterr()
        assert (end.value.code, out, err.count("\n")) == (2, "", 1)
        return err

    return call


@pytest.mark.parametrize("script", FILES)
@pytest.mark.parametrize("wrong", ["no folder", "folder is a file", "is a folder", "read-only"])
def test_files(error_of, tmp_path, monkeypatch, script, wrong):
    option, end = FILES[script][-2], FILES[script][-1].removeprefix("PLACE")
    place, expected = refuse(tmp_path, monkeypatch, wrong, end)
    assert error_of(script, FILES[script], place).startswith(f"error: {option}: {expected}")


@pytest.mark.parametrize("script", FOLDERS)
@pytest.mark.parametrize("wrong", ["folder is a file", "is a file", "read-only"])
def test_folders(error_of, tmp_path, monkeypatch, script, wrong):
    option = "OUTPUT_DIR" if script == "tools/demo.py" else FOLDERS[script][-2]
    place, expected = refuse(tmp_path, monkeypatch, wrong)
    assert error_of(script, FOLDERS[script], place).startswith(f"error: {option}: {expected}")


def refuse(folder: Path, monkeypatch, wrong: str, end: str = "") -> tuple[Path, str]:
    """A place that cannot be written to, and what is to be said of it."""
    place = folder / "new" / "place" if "folder" in wrong else folder / "place"
    if wrong == "folder is a file":
        place.parent.write_text("")
        return place, f"{place.parent} is no folder"
    if wrong == "is a file":
        place.write_text("")
        return place, f"{place} is no folder"
    if wrong == "is a folder":
        Path(f"{place}{end}").mkdir(parents=True)
        return place, f"{place}{end} is a folder"
    if wrong == "read-only":  # rights do not bind root, so the file system refuses here

        def fail(**_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
        return place, f"cannot write to {folder} (Read-only file system)"
    return place, f"no folder {place.parent}"


def test_nothing_is_left_by_the_check_and_devices_are_no_files(tmp_path):
    check_output(tmp_path / "a" / "b", "--output", folder=True)
    check_output(tmp_path / "c", "--output")
    (tmp_path / "d").write_text("old")
    check_output(tmp_path / "d", "--output")
    assert [p.name for p in tmp_path.iterdir()] == ["d"] and (tmp_path / "d").read_text() == "old"
    (tmp_path / "device").symlink_to("/dev/null")
    check_output(tmp_path / "device", "--json")
    with atomic_write(tmp_path / "device") as file:
        file.write(b"gone")
    assert (tmp_path / "device").is_char_device()
