"""The installed commands, up to the start of the processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tdos_d2 import commands, get_config_file
from tdos_d2.engine import train_command as command


@pytest.fixture
def started(monkeypatch):
    """(main, args, cfg, notes) of what was started."""
    started = []
    monkeypatch.setattr(command, "check", lambda cfg, args: [])
    monkeypatch.setattr(command, "launch_job", lambda *args: started.extend(args))
    return started


@pytest.mark.parametrize(
    "function, words, eval_only",
    [("train", [], False), ("train", ["--eval-only"], True), ("evaluate", [], True)],
)
def test_configs_that_ship_are_found_by_name(started, monkeypatch, function, words, eval_only):
    words = [function, "--config-file", "camvid/tdos_tiny.yaml", *words, "SEED", "7"]
    monkeypatch.setattr(sys, "argv", words)
    getattr(commands, function)()
    main, args, cfg, _ = started
    assert main is command.main and args.eval_only is eval_only and cfg.SEED == 7
    assert args.config_file == get_config_file("camvid/tdos_tiny.yaml")


def test_ones_own_file_comes_first(started, monkeypatch, tmp_path):
    (tmp_path / "demo.yaml").write_text("SEED: 11\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tdos-train", "--config-file", "demo.yaml"])
    commands.train()
    assert started[2].SEED == 11 and Path(started[1].config_file) == Path("demo.yaml")
