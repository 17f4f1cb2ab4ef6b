"""The installed commands, up to the start of the processes."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from tdos_d2 import console_scripts, get_config_file
from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.engine import train_command as command
from tdos_d2.errors import UserError


@pytest.fixture
def started(monkeypatch):
    """(main, args, cfg, notes) of what was started."""
    started = []
    monkeypatch.setattr(command, "check_run", lambda cfg, args: [])
    monkeypatch.setattr(command, "launch_job", lambda *args: started.extend(args))
    return started


@pytest.mark.parametrize(
    "function, words, eval_only",
    [("train", [], False), ("train", ["--eval-only"], True), ("evaluate", [], True)],
)
def test_configs_that_ship_are_found_by_name(started, monkeypatch, function, words, eval_only):
    words = [function, "--config-file", "camvid/tdos_tiny.yaml", *words, "SEED", "7"]
    monkeypatch.setattr(sys, "argv", words)
    getattr(console_scripts, function)()
    main, args, cfg, _ = started
    assert main is command.main and args.eval_only is eval_only and cfg.SEED == 7
    assert args.config_file == get_config_file("camvid/tdos_tiny.yaml")


def test_ones_own_file_comes_first(started, monkeypatch, tmp_path):
    (tmp_path / "demo.yaml").write_text("SEED: 11\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tdos-train", "--config-file", "demo.yaml"])
    console_scripts.train()
    assert started[2].SEED == 11 and Path(started[1].config_file) == Path("demo.yaml")


def test_a_model_that_is_not_all_in_the_checkpoint_is_not_evaluated(small_cfg, tmp_path):
    TDOSCheckpointer(build_model(small_cfg), str(tmp_path)).save("model")
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    small_cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 2
    args = Namespace(config_file="", eval_only=True, resume=False)
    with pytest.raises(UserError, match=r"model\.pth is not of the config's model.*pixel_decoder"):
        command.main(args, small_cfg, [])
