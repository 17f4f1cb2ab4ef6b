"""tools/fit_memory.py: from a folder of frames to a checkpoint that is evaluated like any other."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from layouts import write_image
from script_loading import load_script

from tdos_commands.calibrate import run as calibrate
from tdos_d2.engine import TDOSCheckpointer, load_config
from tdos_d2.errors import UserError
from tdos_d2.inference.media import normal_frames
from tdos_d2.loading.checkpoint import read_checkpoint_info
from tdos_d2.loading.packing import pack

SMALL = ["MODEL.TIMM.NAME", "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS", ""]
SMALL += ["MODEL.MEMORY.SIZE", "20", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    tool = load_script("tools/fit_memory.py")
    rng = np.random.default_rng(0)
    for i in range(3):
        frame = rng.integers(0, 256, (64, 96, 3), np.uint8)
        write_image(tmp_path / "frames" / "drive" / f"{i}.png", frame)

    def call(*words: str, more: Sequence[str] = ()) -> None:
        given = ["--config-file", "configs/memory_lite2.yaml", "--output", str(tmp_path / "m.pth")]
        monkeypatch.setattr(sys, "argv", ["fit_memory.py", *given, *words, *SMALL, *more])
        tool.run()

    return call


def test_a_folder_of_frames(run, tmp_path, capsys):
    run("--images", str(tmp_path / "frames"))
    said = r"m\.pth: 20 vectors of 432 channels \(0\.0 MB\) from 3 frames in \d+ s"
    assert re.search(said, capsys.readouterr().out)
    info = read_checkpoint_info(tmp_path / "m.pth")["memory"]
    assert info["encoder"] == "tf_efficientnet_lite0" and info["levels"] == ["tap3", "tap4"]
    assert info["vectors"] == 20
    assert not (tmp_path / "last_checkpoint").exists()  # no run of training goes on from here
    saved = torch.load(tmp_path / "m.pth", weights_only=True)["model"]
    norms = saved["memory.vectors"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20))


def test_a_threshold_from_frames_in_the_memory_is_refused(run, tmp_path):
    """Their scores are too low, also under another name or packed: the promise would be false."""
    run("--images", str(tmp_path / "frames"))
    model = ["--config-file", "configs/memory_lite2.yaml", "--output", str(tmp_path / "t.json")]
    new, rng = tmp_path / "new", np.random.default_rng(1)
    for name in "ab":
        write_image(new / f"{name}.png", rng.integers(0, 256, (64, 96, 3), np.uint8))
    words = [*model, "--images", str(new), "--false-alarm-rate", "0.34"]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "m.pth"), *SMALL]
    calibrate([*words, *weights])
    shutil.copy(tmp_path / "frames" / "drive" / "1.png", new / "renamed.png")
    with pytest.raises(UserError, match="^1 of the 3 frames are in the memory of .*renamed.png"):
        calibrate([*words, *weights])
    cfg = load_config("configs/memory_lite2.yaml", weights)
    network = build_model(cfg)
    TDOSCheckpointer(network).load(cfg.MODEL.WEIGHTS)
    pack(network, tmp_path / "m.safetensors", read_checkpoint_info(tmp_path / "m.pth"))
    with pytest.raises(UserError, match="^1 of the 3 frames are in the memory of .*renamed.png"):
        calibrate([*words, "MODEL.WEIGHTS", str(tmp_path / "m.safetensors"), *SMALL])


def test_what_is_in_the_folder_and_not_used(run, tmp_path, capsys):
    """Kinds of pictures that are not read are counted; predict.py's own results are no frames."""
    for name in ("1.HEIC", "2.heic", "3.gif", "notes.md"):
        (tmp_path / "frames" / name).touch()
    write_image(tmp_path / "frames" / "0_score.png", np.zeros((64, 96, 3), np.uint8))
    record = {"input": "0.png", "files": {"score": "0_score.png"}}
    (tmp_path / "frames" / "predictions.jsonl").write_text(json.dumps(record))
    run("--images", str(tmp_path / "frames"))
    said = capsys.readouterr()
    assert "frames: left out, as files of this kind are not read: 2 .heic, 1 .gif" in said.err
    assert "from 3 frames" in said.out


def test_patterns_and_lists(tmp_path):
    """A list may name folders and files; a frame that is named twice counts once."""
    folder = tmp_path / "frames" / "drive"
    black = np.zeros((4, 4, 3), np.uint8)
    frames = [str(write_image(folder / f"{i}.png", black)) for i in range(3)]
    assert normal_frames(tmp_path / "fr*" / "**" / "*.png") == frames
    names = tmp_path / "normal.txt"
    names.write_text(f"{frames[0]}\n\n{frames[1]}\n{folder}/../drive/0.png\n")
    assert [Path(file).name for file in normal_frames(names)] == ["0.png", "1.png"]
    names.write_text(f"{tmp_path / 'frames'}\n{frames[1]}\n")
    assert normal_frames(names) == frames


def test_the_same_seed_gives_the_same_file(run, tmp_path):
    """Whatever was drawn before in the process; another seed draws other vectors."""
    states = []
    for seed in (1, 1, 2):
        torch.rand(len(states) + 1)
        run("--images", str(tmp_path / "frames"), "--seed", str(seed))
        states.append(torch.load(tmp_path / "m.pth", weights_only=True)["model"])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert not torch.equal(states[0]["memory.vectors"], states[2]["memory.vectors"])


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
        (["--images", "nowhere"], "--images: nowhere is no folder or image$"),
        (["--images", "a.MP4"], "a.MP4 is no folder or image: extract frames, .* ffmpeg -i a.MP4 "),
        (["--images", "no*where"], r"--images: nothing fits the pattern no\*where"),
        (["--images", "gone.txt"], "--images: cannot read the list gone.txt"),
        (["--images", "configs"], r"--images: configs has no image \(.*\.jpg"),
        (["--dataset", "camvid_trian"], "did you mean camvid_train"),
        (["--dataset", "road_anomaly"], "road_anomaly is an OOD set: its frames are not normal"),
    ],
)
def test_what_is_not_there(run, words, message):
    with pytest.raises(UserError, match=message):
        run(*words)


def test_no_frame_that_can_be_read(run, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match="no normal frame"):
        run("--images", str(tmp_path / "broken"))
    assert "left out: cannot read image" in capsys.readouterr().err
    assert not (tmp_path / "m.pth").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL.MEMORY.LEVELS", "['tap3', 'tap5']"], "MODEL.MEMORY.LEVELS: .* tap1, tap2, tap3"),
        (["MODEL.MEMORY.LEVELS", "[]"], "MODEL.MEMORY.LEVELS: this encoder has tap1"),
        (["MODEL.MEMORY.LEVELS", "[3]"], "MODEL.MEMORY.LEVELS must be a list, each element a text"),
        (["MODEL.MEMORY.SIZE", "0"], "MODEL.MEMORY.SIZE must be greater than 0"),
        (["MODEL.TIMM.NAME", "gernet"], "MODEL.TIMM.NAME: timm has no model 'gernet'"),
        (["MODEL.META_ARCHITECTURE", "Other"], "MODEL.META_ARCHITECTURE: TDOS or NormalityMemory"),
        (["MODEL.META_ARCHITECTURE", "TDOS"], "MODEL.WEIGHTS: name the checkpoint"),
    ],
)
def test_what_does_not_fit(run, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run("--images", str(tmp_path / "frames"), more=more)


def test_what_training_said_stays_in_the_file(run, tiny_cfg, tmp_path, monkeypatch):
    """From training to a memory to a packed file: seed, and the outliers it fell back to."""
    said = {"seed": 7, "outlier_warning": "drawn shapes"}
    tiny_cfg.MODEL.MEMORY.SIZE, tiny_cfg.INPUT.MIN_SIZE_TEST = 20, 0
    tiny_cfg.MODEL.TDOS.SCORE = "log_s_ood"
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path), run_info=said).save("trained")
    tiny_cfg.MODEL.TDOS.SCORE = "combined"
    (tmp_path / "c.yaml").write_text(tiny_cfg.dump())
    config = ["--config-file", str(tmp_path / "c.yaml"), "--output"]
    frames = ["--images", str(tmp_path / "frames"), "MODEL.WEIGHTS", str(tmp_path / "trained.pth")]
    monkeypatch.setattr(sys, "argv", ["f", *config, str(tmp_path / "joined.pth"), *frames])
    load_script("tools/fit_memory.py").run()
    packed = tmp_path / "joined.safetensors"
    words = [*config, str(packed), "MODEL.WEIGHTS", str(tmp_path / "joined.pth")]
    monkeypatch.setattr(sys, "argv", ["p", *words])
    load_script("tools/pack_checkpoint.py").run()
    for file in (tmp_path / "joined.pth", packed):
        assert said.items() <= read_checkpoint_info(file).items()


def test_a_checkpoint_of_another_model_is_refused(tiny_cfg, tmp_path, monkeypatch):
    """Its parts would stay random, and the written file would seem to be whole."""
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("trained")
    tiny_cfg.MODEL.TDOS.SCORE = "combined"
    tiny_cfg.MODEL.TDOS.NUM_NEGATIVE += 1
    (tmp_path / "c.yaml").write_text(tiny_cfg.dump())
    write_image(tmp_path / "frames" / "a.png", np.zeros((64, 64, 3), np.uint8))
    words = ["--config-file", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "joined.pth")]
    words += ["--images", str(tmp_path / "frames"), "MODEL.WEIGHTS", str(tmp_path / "trained.pth")]
    monkeypatch.setattr(sys, "argv", ["f", *words])
    with pytest.raises(UserError, match="not of the config's model"):
        load_script("tools/fit_memory.py").run()
    assert not (tmp_path / "joined.pth").exists()
