"""A disk that is full, played by a limit to the size of files: complete files stay, one line."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tdos_d2.engine import TDOSCheckpointer, launch
from tdos_d2.errors import OutputUserError, UserError, output_error
from tdos_d2.evaluation import frames
from tdos_d2.evaluation.frames import Frame, Spool, check_space
from tdos_d2.evaluation.report.page import write_report
from tdos_d2.evaluation.report.sections import write_picture
from tdos_d2.evaluation.submission import Submission
from tdos_d2.files import atomic_write
from tdos_d2.inference.media import video_files
from tdos_d2.loading.resuming import damage

resource = pytest.importorskip("resource")


@contextlib.contextmanager
def files_limited(size: int) -> Iterator[None]:
    """Within, no file of this process grows beyond ``size`` bytes (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def one_line(error: BaseException, *words: str) -> bool:
    return "\n" not in str(error) and all(word in str(error) for word in words)


def test_a_checkpoint(tmp_path):
    model = nn.Linear(300, 300)
    checkpointer = TDOSCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    with files_limited(100_000), pytest.raises(UserError) as caught:
        checkpointer.save("model_0000002")
    assert one_line(caught.value, "cannot write", "model_0000002.pth", "File too large")
    assert names(tmp_path) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert damage(tmp_path / "model_0000001.pth") == ""


def test_a_file_that_is_there_stays(tmp_path):
    with atomic_write(tmp_path / "results.json") as file:
        file.write(b"old")
    wrong = pytest.raises(OSError, match=r"cannot write .*results\.json")
    with files_limited(10), wrong, atomic_write(tmp_path / "results.json") as file:
        file.write(bytes(10_000_000))
    assert names(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_bytes() == b"old"


@pytest.mark.parametrize("form", ["fishyscapes", "smiyc"])
def test_an_export(tmp_path, form):
    if form == "smiyc":
        pytest.importorskip("h5py")
    submission = Submission(tmp_path, form, "road_anomaly", ["a", "b"])
    scores = np.random.default_rng(0).random((100, 100), np.float32)
    classes = np.zeros((100, 100), np.uint8)
    submission.write("a", scores, classes)
    before = names(tmp_path)
    with files_limited(5_000), pytest.raises(UserError) as caught:
        submission.write("b", scores, classes)
    assert one_line(caught.value, "cannot write", "/b")
    assert re.search("File too large|disk is full", str(caught.value))
    assert names(tmp_path) == before


def test_a_video(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    limited = files_limited(20_000)
    with limited, pytest.raises(UserError) as caught, video_files(paths, 10) as videos:
        for _ in range(30):
            for video in videos:
                video.add(picture)
    assert one_line(caught.value, ".mp4", "disk full")
    assert names(tmp_path) == []
    with video_files(paths, 10) as videos:
        for video in videos:
            video.add(picture)
    assert names(tmp_path) == ["a.mp4", "b.mp4"]


def test_a_report(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    write_picture(tmp_path, "my_set", "town/1", [picture])
    before = names(tmp_path)
    with files_limited(5_000), pytest.raises(UserError, match=r"2\.jpg: File too large"):
        write_picture(tmp_path, "my_set", "town/2", [picture])
    assert names(tmp_path) == before
    wrong = pytest.raises(UserError, match=r"cannot write report .*File too large")
    with files_limited(100), wrong:
        write_report(tmp_path / "report", "my model", [], [])
    assert names(tmp_path / "report") == []


def test_scores_of_an_evaluation(tmp_path):
    spool = Spool(tmp_path)
    with files_limited(1_000), pytest.raises(UserError) as caught:
        spool.append(Frame(np.zeros((100, 100), np.float32), np.zeros((100, 100), np.uint8)))
    spool.close()
    assert one_line(caught.value, str(tmp_path), "5 bytes per pixel", "File too large")
    assert names(tmp_path) == []


def test_space_for_scores_is_checked_before(tmp_path, monkeypatch, caplog):
    """1,203 frames of 1024x2048 are 12.6 GB: 5 * 1203 * 1024 * 2048 bytes."""
    records = [{"file_name": "x.png", "height": 1024, "width": 2048}] * 1203
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_700_000_000))
    with caplog.at_level("INFO", logger="tdos_d2"):
        check_space(tmp_path / "not" / "yet", records)
    assert "12.6 GB" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_600_000_000))
    with pytest.raises(UserError, match=r"12\.6 GB in .*yet.*12\.6 GB are free"):
        check_space(tmp_path / "not" / "yet", records)
    monkeypatch.setattr(frames, "image_size", lambda _: (2048, 1024))
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match=re.escape("12.6 GB")):
        check_space(tmp_path, [{"file_name": str(tmp_path / "x.png")}] * 1203)


def test_logs_and_events(monkeypatch, tiny_cfg):
    """Whatever writes without a name, such as TensorBoard's and Detectron2's writers."""

    def main(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny_cfg.OUTPUT_DIR = "my_output"
    args = SimpleNamespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(UserError, match="cannot write my_output: No space left on device"):
        launch.launch_job(main, args, tiny_cfg)


def test_other_errors_are_none_of_a_full_disk():
    assert output_error(OSError(errno.ENOENT, "No such file"), "x") is None
    assert output_error(RuntimeError("x"), "x") is None
    first = OutputUserError("cannot write y")
    assert output_error(first, "x") is first


def test_a_packed_file_of_torch_is_named(tmp_path):
    wrong = pytest.raises(UserError, match=r"a\.pth: File too large")
    with files_limited(5_000), wrong, atomic_write(tmp_path / "a.pth") as file:
        torch.save({"a": torch.zeros(100_000)}, file)
