"""What holds for all scripts that prepare datasets: resuming, dry runs, messages."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import _common
import numpy as np
import prepare_poc
import pytest
from _common import PrepareError
from layouts import cityscapes, picture, stripes, write_image
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[2] / "datasets"
STEM = "aachen_000000_000019_leftImg8bit_A-good-photo-of-a-cow_1"


@pytest.fixture
def poc(root):
    """Cityscapes, and three differences of POC to its training images."""
    cityscapes(root)
    folder = root / "POC_CS_COCO_FT"
    for i, frame in enumerate(("aachen_000000", "bochum_000000", "aachen_000001")):
        stem = f"{frame}_000019_leftImg8bit_A-good-photo-of-a-cow_1"
        city = frame.partition("_")[0]
        (folder / "leftImg8bit" / "train" / city).mkdir(parents=True, exist_ok=True)
        np.savez(folder / "leftImg8bit" / "train" / city / f"{stem}.npz", img=picture(50 + i))
        write_image(folder / "gtFine" / "train" / city / f"{stem}.png", stripes(0, 42))
    return root


def made(root: Path) -> list[str]:
    output = root / "POC_CS_COCO_RECONSTRUCTED"
    return sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())


def test_hidden_files_are_no_frames(poc, contents):
    """Such as macOS puts beside every file; and folders may be links."""
    prepare_poc.main([])
    expected = contents(poc / "POC_CS_COCO_RECONSTRUCTED")
    source = poc / "POC_CS_COCO_FT" / "leftImg8bit" / "train"
    for folder in (source / "aachen", poc / "cityscapes" / "leftImg8bit" / "train" / "aachen"):
        (folder / f"._{STEM}.npz").write_bytes(b"junk")
        (folder / "._aachen_000000_000019_leftImg8bit.png").write_bytes(b"junk")
        (folder.parent / ".ipynb_checkpoints").mkdir()
        (folder.parent / ".ipynb_checkpoints" / f"{STEM}.npz").write_bytes(b"junk")
    (source / "bochum").rename(poc / "moved")
    (source / "bochum").symlink_to(poc / "moved")
    output = poc / "other"
    prepare_poc.main(["--output", str(output)])
    assert contents(output) == expected


def test_second_run_does_nothing(poc, capsys):
    prepare_poc.main([])
    assert "6 files written, 0 were there" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in poc.rglob("*")}
    prepare_poc.main([])
    assert "0 files written, 6 were there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in poc.rglob("*")} == before


def test_what_is_missing_is_made_again(poc, contents):
    prepare_poc.main([])
    output = poc / "POC_CS_COCO_RECONSTRUCTED"
    complete = contents(output)
    (output / "gtFine" / "train" / "aachen" / f"{STEM}.png").unlink()
    prepare_poc.main(["--jobs", "1"])
    assert contents(output) == complete


def test_an_interrupted_file_is_not_taken_as_finished(poc, monkeypatch, contents):
    output = poc / "POC_CS_COCO_RECONSTRUCTED"
    save = _common.save_png

    def break_off(array, path):
        save(array, path)
        path.write_bytes(path.read_bytes()[:40])
        raise KeyboardInterrupt

    monkeypatch.setattr(_common, "save_png", break_off)
    with pytest.raises(KeyboardInterrupt):
        prepare_poc.main([])
    assert made(poc) == []
    monkeypatch.undo()
    # Killed, without a chance to clean up.
    place = output / "leftImg8bit" / "train" / "aachen"
    (place / f".{STEM}.png.123.partial").write_bytes(b"\x89PNG")
    prepare_poc.main(["--root", str(poc)])
    whole = [name for name in made(poc) if not name.endswith(".partial")]
    assert len(whole) == 6
    for name in whole:
        _common.read_ids(output / name)


def test_dry_run_checks_and_writes_nothing(poc, capsys, contents):
    before = contents(poc)
    prepare_poc.main(["--dry-run"])
    assert "6 files would be written, 0 were there" in capsys.readouterr().out
    assert contents(poc) == before
    assert not (poc / "POC_CS_COCO_RECONSTRUCTED").exists()
    (poc / "cityscapes/leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(PrepareError, match="1 of 3 images of .* first bochum_000000_000019_left"):
        prepare_poc.main(["--dry-run"])


def test_sources_stay_as_they_are(poc, contents):
    sources = [poc / "cityscapes", poc / "POC_CS_COCO_FT"]
    before = [contents(source) for source in sources]
    prepare_poc.main([])
    assert [contents(source) for source in sources] == before
    for place in (poc / "cityscapes", poc / "POC_CS_COCO_FT" / "new"):
        with pytest.raises(PrepareError, match=f"--output {place} lies in"):
            prepare_poc.main(["--output", str(place)])
    assert [contents(source) for source in sources] == before


def test_output_elsewhere_and_jobs(poc, tmp_path, contents):
    prepare_poc.main(["--jobs", "1"])
    prepare_poc.main(["--output", str(tmp_path / "other"), "--jobs", "5"])
    assert contents(tmp_path / "other") == contents(poc / "POC_CS_COCO_RECONSTRUCTED")


def test_wrong_places_are_named(root):
    with pytest.raises(
        PrepareError, match=f"POC_CS_COCO_FT not found: no {root}/POC_CS_COCO_FT; set"
    ):
        prepare_poc.main([])
    (root / "POC_CS_COCO_FT").mkdir()
    with pytest.raises(PrepareError, match=f"Cityscapes not found: no {root}/elsewhere$"):
        prepare_poc.main(["--cityscapes", str(root / "elsewhere")])
    (root / "cityscapes").mkdir()
    with pytest.raises(
        PrepareError, match=f"cityscapes is not .*{root}/cityscapes/leftImg8bit/train"
    ):
        prepare_poc.main([])
    (root / "cityscapes" / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(PrepareError, match="no differences leftImg8bit/.*POC_CS_COCO_FT"):
        prepare_poc.main([])


def test_a_mistake_is_one_line_and_status_2(root):
    command = [sys.executable, str(SCRIPTS / "prepare_gta.py"), "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: GTA not found") and done.stderr.count("\n") == 1


def test_archives_are_compared_with_what_was_published(tmp_path, capsys):
    archive = tmp_path / "one.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("./folder/a.txt", "text")
        file.writestr("__MACOSX/folder/._a.txt", "junk")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    known = {"one.zip": digest, "two.zip": 64 * "0"}
    _common.check_archive(archive, known, "one.zip")
    assert "is the published one of one.zip" in capsys.readouterr().out
    with pytest.raises(PrepareError, match=r"one\.zip is not two\.zip: it is one\.zip"):
        _common.check_archive(archive, known, "two.zip")
    with pytest.raises(PrepareError, match=f"begins {digest[:8]}, published is 00000000"):
        _common.check_archive(archive, {"two.zip": 64 * "0"}, "two.zip")
    _common.check_archive(tmp_path, known, "two.zip")
    assert "not compared" in capsys.readouterr().out
    assert {name: read() for name, read in _common.open_source(archive, ".txt").items()} == {
        "a.txt": b"text"
    }
    (tmp_path / "no.zip").write_text("no archive")
    with pytest.raises(PrepareError, match=r"no\.zip is neither a folder nor a zip archive"):
        _common.open_source(tmp_path / "no.zip", ".txt")


def test_two_files_of_a_name_are_not_mixed(tmp_path):
    archive = tmp_path / "one.zip"
    for place in ("v1/a_labels.png", "v2/a_labels.png", "v1/readme.txt", "v2/readme.txt"):
        (tmp_path / "unpacked" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / place).write_text(place)
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr(place, place)
            file.writestr(f".hidden/{place}", "junk")
    for source in (tmp_path / "unpacked", archive):
        assert list(_common.open_source(source, "_rgb.npz")) == []
        with pytest.raises(PrepareError, match=rf"{source} has two .*v1/a_lab.* and .*v2/a_labels"):
            _common.open_source(source, "_labels.png", "_rgb.npz")
    one = _common.open_source(tmp_path / "unpacked" / "v2", "_labels.png")
    assert {name: read() for name, read in one.items()} == {"a_labels.png": b"v2/a_labels.png"}


def test_labels_of_one_bit_are_refused(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    with pytest.raises(PrepareError, match=rf"label {tmp_path}/a\.png: .* bit depth of 1 "):
        _common.read_ids(tmp_path / "a.png")
