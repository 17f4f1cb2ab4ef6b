"""tools/predict.py --shard and --processes: together, shards do what one run does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from test_predict import picture, predict, records

from tdos_commands import shards
from tdos_commands.predict import run
from tdos_d2.errors import UserError
from tdos_d2.inference.shards import Shard
from tdos_d2.inference.sources import Input


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    return folder


@pytest.mark.parametrize("where", ["out", "in/out"])
def test_shards_share_the_inputs_and_the_last_joins_the_tables(model, inputs, tmp_path, where):
    words = ["--input", inputs, "--threshold", -1.0]
    assert predict(model, tmp_path / "whole", *words) == 0
    expected = {r["input"]: r for r in records(tmp_path / "whole")}
    out = tmp_path / where
    out.mkdir()
    (out / "predictions.jsonl").write_text('{"input": "earlier.png"}\n')
    for number in (2, 1):
        assert predict(model, out, *words, "--shard", f"{number}/2") == 0
        if number == 2:  # the other one is not there yet
            assert len(records(out)) == 1
    earlier, *joined = records(out)
    assert earlier == {"input": "earlier.png"}
    assert [r["shard"] for r in joined] == ["1/2"] * 3 + ["2/2"] * 2
    assert {r["input"] for r in joined} == expected.keys()
    for record in joined:
        whole = expected[record["input"]]
        assert record["objects"] == whole["objects"]
        for kind, file in record["files"].items():
            ours = (out / file).read_bytes()
            assert ours == (tmp_path / "whole" / whole["files"][kind]).read_bytes()
    # Once more: its lines are there once, and it waits for no other.
    assert predict(model, out, *words, "--shard", "2/2") == 0
    assert [r.get("shard") for r in records(out)] == [None] + ["1/2"] * 3 + ["2/2"] * 2
    assert all("_2_" in r["files"]["score"] for r in records(out)[4:])


def test_shards_of_an_earlier_job_are_not_joined(tmp_path, capsys):
    """Its other shards are complete, but for other inputs."""

    def run(number: int, name: str) -> Path | None:
        shard = Shard(tmp_path, number, 2)
        shard.folder.mkdir(exist_ok=True)
        given = [Input(tmp_path / f"{name}{i}.png", f"{name}{i}") for i in range(3)]
        lines = [json.dumps({"input": str(x.source)}) for x in shard.part(given)]
        write(shard.folder / "predictions.jsonl", "\n".join(lines) + "\n")
        return shard.finish()

    assert run(1, "a") is None and run(2, "a") == tmp_path / "predictions.jsonl"
    assert run(1, "b") is None
    assert "not joined: shard 2/2 has other inputs so far" in capsys.readouterr().err
    assert run(2, "b") and len(records(tmp_path)) == 3


def test_relative_paths_of_other_folders_are_other_inputs(model, tmp_path, monkeypatch):
    for place in ("d1", "d2"):
        (tmp_path / place / "in").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / place / "in" / "x.png"), picture(len(place)))
        monkeypatch.chdir(tmp_path / place)
        assert predict(model, tmp_path / "out", "--input", "in", "--shard", "1/1") == 0
    joined = records(tmp_path / "out")
    assert [(r["input"], r["folder"]) for r in joined] == [
        ("in/x.png", str(tmp_path / place)) for place in ("d1", "d2")
    ]


def test_lines_of_another_number_of_shards_are_kept(tmp_path):
    for count, name in ((3, "a"), (2, "b")):
        for number in range(1, count + 1):
            shard = Shard(tmp_path, number, count)
            shard.folder.mkdir()
            write(shard.folder / "predictions.jsonl", f'{{"input": "{name}{number}"}}\n')
            shard.finish()
    assert [r["input"] for r in records(tmp_path)] == ["a1", "a2", "a3", "b1", "b2"]


def test_of_a_shard_that_was_run_again_the_last_run_of_an_input_counts(tmp_path):
    """Here of fewer frames of a video, then with an image that could not be read before."""
    shard = Shard(tmp_path, 1, 1)
    shard.folder.mkdir()
    video = [{"input": "a.mp4", "frame": i, "threshold": 1} for i in range(4)]
    shorter = [{**record, "threshold": 2} for record in video[1:3]]
    lines = [
        *video[:2],  # the process was killed
        *video, {"input": "a.mp4", "frames": 4}, {"input": "b.png", "error": "cannot read"},
        *shorter, {"input": "a.mp4", "frames": 2}, {"input": "b.png", "objects": []},
    ]  # fmt: skip
    table = shard.folder / "predictions.jsonl"
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    shard.finish()
    own = {"files": {}, "shard": "1/1"}
    assert records(tmp_path) == [{**line, **own} for line in lines[-4:]]


def test_an_input_that_is_named_like_a_shard_is_an_input(tmp_path):
    (tmp_path / "shard-1-of-1").mkdir()
    shard, names = Shard(tmp_path, 1, 1), ["shard-000.png", "shard-1-of-1/a.png"]
    given = [Input(tmp_path / name, name) for name in names]
    assert [x.name for x in shard.part(given)] == ["shard-000.png"]


def test_what_is_left_of_a_line_when_a_disk_was_full_does_not_stop_the_joining(tmp_path):
    for number in (1, 2):
        shard = Shard(tmp_path, number, 2)
        shard.folder.mkdir()
        line = json.dumps({"input": f"{number}.png", "files": {"score": "a.npy"}})
        write(shard.folder / "predictions.jsonl", f'{{"input": "cut\n{line}\n')
        table = shard.finish()
    assert records(tmp_path) == [
        {"input": f"{i}.png", "files": {"score": f"shard-{i}-of-2/a.npy"}, "shard": f"{i}/2"}
        for i in (1, 2)
    ]
    assert table == tmp_path / "predictions.jsonl"


def test_processes_are_shards(monkeypatch, tmp_path):
    """Each has its device and its threads; the largest status counts; a list is given to each."""
    calls = []

    class Process:
        def __init__(self, command, stdin, env):
            self.number = len(calls)
            calls.append((command[3:], env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]))
            assert stdin.read() == b"a.png\n"

        def wait(self):
            return (0, -9, 1)[self.number]

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(shards, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(sys, "stdin", open(write(tmp_path / "list", "a.png\n")))  # noqa: SIM115
    words = ["--config-file", "demo.yaml", "--input", "-", "--output", "y", "--processes", "3"]
    words += ["--opts", "A", "B"]
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert caught.value.code == 137
    assert calls == [
        (["--shard", f"{i}/3", *words], device, "2") for i, device in ((1, "4"), (2, "6"), (3, "4"))
    ]
    # What the user has set stays.
    calls.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "stdin", open(tmp_path / "list"))  # noqa: SIM115
        run(words)
    assert [threads for _, _, threads in calls] == ["5"] * 3


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/-2", "1.5/2"])
def test_shards_that_are_none(capsys, text):
    words = ["--config-file", "demo.yaml", "--input", "y", "--output", "z", "--shard", text]
    with pytest.raises(SystemExit):
        run(words)
    assert "--shard: I/N is needed" in capsys.readouterr().err


def test_live_input_is_not_divided(model, tmp_path):
    with pytest.raises(UserError, match="--shard: live input cannot be divided"):
        predict(model, tmp_path / "out", "--input", "0", "--shard", "1/2")
