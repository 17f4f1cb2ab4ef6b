"""tools/fit_memory.py: from a folder of frames to a checkpoint that is evaluated like any other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_image

from tdos_d2.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["MODEL.TIMM.NAME", "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS", ""]
SMALL += ["MODEL.MEMORY.SIZE", "20", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("fit_memory", ROOT / "tools" / "fit_memory.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    rng = np.random.default_rng(0)
    for i in range(3):
        frame = rng.integers(0, 256, (64, 96, 3), np.uint8)
        write_image(tmp_path / "frames" / "drive" / f"{i}.png", frame)

    def call(*words: str) -> None:
        given = ["--config-file", "configs/memory_lite2.yaml", "--output", str(tmp_path / "m.pth")]
        monkeypatch.setattr(sys, "argv", ["fit_memory.py", *given, *words, *SMALL])
        torch.manual_seed(0)
        tool.run()

    return call


def test_a_folder_of_frames(run, tmp_path, capsys):
    run("--images", str(tmp_path / "frames"))
    assert "20 vectors of 432 channels from 3 frames" in capsys.readouterr().out
    saved = torch.load(tmp_path / "m.pth", weights_only=True)["model"]
    norms = saved["memory.vectors"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20))


def test_a_frame_that_cannot_be_read(run, tmp_path, capsys):
    (tmp_path / "frames" / "broken.jpg").write_bytes(b"none")
    with pytest.raises(SystemExit) as end:
        run("--images", str(tmp_path / "frames"))
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "3 frames" in out and "broken.jpg" in err
    assert (tmp_path / "m.pth").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "nowhere"], "--images: nowhere is no folder"),
        (["--dataset", "camvid_trian"], "did you mean camvid_train"),
    ],
)
def test_what_is_not_there(run, words, message):
    with pytest.raises(UserError, match=message):
        run(*words)
