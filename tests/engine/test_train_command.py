"""The installed commands, up to the start of the processes."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

from tdos_commands import train as commands
from tdos_d2 import get_config_file
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
    [("main", [], False), ("main", ["--eval-only"], True), ("evaluate", [], True)],
)
def test_configs_that_ship_are_found_by_name(started, monkeypatch, function, words, eval_only):
    words = [function, "--config-file", "camvid/tdos_tiny.yaml", *words, "SEED", "7"]
    monkeypatch.setattr(sys, "argv", words)
    getattr(commands, function)()
    main, args, cfg, _ = started
    assert main is command.main and args.eval_only is eval_only and cfg.SEED == 7
    assert args.config_file == get_config_file("camvid/tdos_tiny.yaml")


def test_options_are_detectron2s():
    theirs, ours = default_argument_parser(), commands.parser()
    facts = "dest", "option_strings", "nargs", "const", "default", "required"
    for a, b in zip(theirs._actions, ours._actions, strict=True):
        assert type(a) is type(b)
        assert [getattr(a, fact) for fact in facts] == [getattr(b, fact) for fact in facts]
    words = ["--num-gpus", "2", "--num-machines", "3", "--machine-rank", "1", "--resume", "A", "-1"]
    assert ours.parse_args(words) == theirs.parse_args(words)
    assert ours.parse_args([]) == theirs.parse_args([])


def test_ones_own_file_comes_first(started, monkeypatch, tmp_path):
    (tmp_path / "demo.yaml").write_text("SEED: 11\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tdos-train", "--config-file", "demo.yaml"])
    commands.main()
    assert started[2].SEED == 11 and Path(started[1].config_file) == Path("demo.yaml")


def test_a_model_that_is_not_all_in_the_checkpoint_is_not_evaluated(small_cfg, tmp_path):
    TDOSCheckpointer(build_model(small_cfg), str(tmp_path)).save("model")
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    small_cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 2
    args = Namespace(config_file="", eval_only=True, resume=False)
    with pytest.raises(UserError, match=r"model\.pth is not of the config's model.*pixel_decoder"):
        command.main(args, small_cfg, [])
