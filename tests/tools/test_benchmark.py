"""tools/benchmark.py: it runs, and what it compares with computes the same."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from script_loading import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # as for a script
    return load_script("tools/benchmark.py")


def test_small_run_prints_ratios_and_hardware(tool, capsys):
    words = ["evaluation", "--frames", "2", "--size", "512x256", "--reference-frames", "1"]
    args = tool._parser().parse_args(words)
    args.run(args)
    text = capsys.readouterr().out
    assert "512x256" in text and "scikit-learn" in text and "cores" in text
    for what, frames in (("pixel metrics", 1), ("component metrics", 2)):
        row = re.search(rf"^{what} +(\d+) .* ([\d.]+) +>= \d+$", text, re.MULTILINE)
        assert int(row[1]) == frames and float(row[2]) > 0
    assert float(re.search(r"largest difference of a metric: ([\d.]+)", text)[1]) < 0.01
    assert re.search(r"all seven metrics, 2 frames: [\d.]+ s per frame", text)


def test_metrics_that_differ_are_an_error(tool, monkeypatch):
    monkeypatch.setattr(tool.evaluation, "sklearn_metrics", lambda _: (50.0, 50.0, 50.0))
    args = tool._parser().parse_args(["evaluation", "--frames", "1", "--size", "64x32"])
    with pytest.raises(SystemExit, match="error: metrics differ by .* points"):
        args.run(args)


def test_frames_have_60_components_and_a_score_that_finds_most(tool):
    ((score, label),) = tool.evaluation.synthetic_frames(1, (512, 1024))
    assert score.shape == label.shape == (512, 1024) and score.dtype == np.float32
    assert 50 <= ndimage.label(label == 1)[1] <= 60
    assert score[label == 1].mean() > score[label == 0].mean() + 2


def test_imports_and_commands_are_timed_without_the_first_run(tool):
    startup = tool.startup
    base, added = startup.import_seconds(("json", "decimal"), 2)
    assert len(base) == len(added) == 2 and min(*base, *added) > 0
    commands = startup.help_commands()
    assert {"train_net.py", "tools/predict.py", "datasets/verify.py"} <= commands.keys()
    assert "datasets/_common.py" not in commands
    slow, quick = (
        startup.command_seconds([sys.executable, "-c", f"import time; time.sleep({s})"], 1)
        for s in (0.3, 0)
    )
    assert len(slow) == len(quick) == 1 and slow[0] > 0.3 and slow[0] > quick[0]
    with pytest.raises(RuntimeError, match="failed"):
        startup.command_seconds([sys.executable, "-c", "exit(2)"], 1)


def test_median_and_spread(tool):
    assert tool.startup.median_and_spread([3.0, 0.5, 1.25]) == "1.25 (0.50 to 3.00)"


@pytest.fixture
def tiny_file(tiny_cfg, tmp_path):
    tiny_cfg.INPUT.MIN_SIZE_TEST = 0
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg.dump())
    return str(path)


def directly(function, *arguments):
    return function(*arguments)


def test_prediction_is_compared_with_the_plain_way(tool, capsys, monkeypatch, tiny_file):
    monkeypatch.setattr(tool.inference, "in_own_process", directly)
    words = ["inference", "--config-file", tiny_file, "--size", "96x64", "--repeat", "1"]
    args = tool._parser().parse_args(words)
    calls = []
    plain = tool.inference.measure

    def measure(way, args):
        found = plain(way, args)
        calls.append(way)
        return (*found[:2], found[2] + errors.get(way, 0), found[3])

    monkeypatch.setattr(tool.inference, "measure", measure)
    errors = {}
    args.run(args)
    assert calls == ["plain", "ours", "image"]
    assert re.search(r"^ours .* >= 2.2 +[\d.]+e-0[5-9] +0.000 %$", capsys.readouterr().out, re.M)
    args.ways = ["plain", "ours"]
    for errors["ours"] in (1e-3, float("nan")):
        with pytest.raises(SystemExit, match="error: the scores differ by"):
            args.run(args)


def test_training_step_is_compared_with_the_plain_way(tool, capsys, monkeypatch, tiny_file):
    monkeypatch.setattr(tool.train, "in_own_process", directly)
    words = ["train", "--config-file", tiny_file, "--batch", "2", "--repeat", "1"]
    args = tool._parser().parse_args([*words, "--opts", "INPUT.CROP.SIZE", "(64, 96)"])
    args.run(args)
    out = capsys.readouterr().out
    assert re.search(r"^ours .* >= 1.5 +\d\.\de-\d+$", out, re.M)
    assert re.search(r"^bf16 .* [1-9]\.\de-0[2-5]$", out, re.M), "other numbers, but not many"
    monkeypatch.setattr(
        tool.train, "measure", lambda way, args: ([1.0], 1.0, np.array([1, len(way)]))
    )
    with pytest.raises(SystemExit, match="more than"):
        args.run(args)


def test_the_data_of_a_crop_is_timed_part_by_part(tool, capsys, tiny_file):
    words = ["loading", "--config-file", tiny_file, "--size", "640x480", "--repeat", "2"]
    args = tool._parser().parse_args(words)
    args.run(args)
    out = capsys.readouterr().out
    seconds = {
        row[1]: float(row[2]) for row in re.finditer(r"^([a-z ,]+?)  +([\d.]+) \(", out, re.M)
    }
    assert len(seconds) == 6 and seconds["whole"] > seconds["reading the image"] > 0
    assert re.search(r"^whole .* <= 0.08$", out, re.M)


def test_the_plain_way_has_torchs_attention_and_products(tool, tiny_cfg):
    """open_clip's modules as they come, whatever the model's layers became."""
    from benchmarks.plain import plain
    from detectron2.modeling import build_model

    from tdos_d2.modeling import linear

    own, model = linear.SelfAttention.forward, build_model(tiny_cfg)
    with plain(model):
        assert any(isinstance(part, linear.SelfAttention) for part in model.modules())
        assert linear.SelfAttention.forward is torch.nn.MultiheadAttention.forward
        assert not linear.mkl_is_slow()
    assert linear.SelfAttention.forward is own


def test_plain_deformable_attention_is_that_of_the_project(tool):
    from benchmarks.plain import sampled_per_level

    from tdos_d2.modeling.deformable_attention import _attend

    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (6, 8)]
    value = torch.randn(2, 60, 2, 3, generator=generator)
    reference = torch.rand(5, 2, generator=generator)
    offsets = torch.randn(2, 5, 2, 2, 4, 2, generator=generator)
    weights = torch.rand(2, 5, 2, 2, 4, generator=generator)
    arguments = value, shapes, reference, offsets, weights
    torch.testing.assert_close(_attend(*arguments), sampled_per_level(*arguments))


def test_a_form_that_is_refused_is_left_out_and_named(tool, monkeypatch, tmp_path, capsys):
    export = import_module("benchmarks.export")  # found by the fixture
    monkeypatch.setattr(export, "export", lambda *_: str(tmp_path / "model"))
    monkeypatch.setattr(export, "in_own_process", lambda *_: ([1.0], [2.0]))
    (tmp_path / "model.onnx").touch()
    ways = ["torch", "onnxruntime", "openvino"]
    args = Namespace(ways=ways, size=[(64, 32)], datasets=[], opts=[], threads=1, config_file="a")
    with pytest.raises(SystemExit, match="64x32: openvino"):
        export.run(args)
    table = capsys.readouterr().out
    assert "onnxruntime" in table and "64x32 torch" in " ".join(table.split())
