"""A training that is told to end, and one whose last checkpoint is damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from small_set import register
from test_trainer import FixedResult, assert_same, interrupted_copy, train

from tdos_d2.engine import Trainer, preemption
from tdos_d2.engine.launch import launch_job
from tdos_d2.engine.steps import FullPrecisionSteps
from tdos_d2.errors import UserError
from tdos_d2.loading.resuming import damage, resume_file

FINAL = "model_final.pth"


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("number", "status", "workers"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)]
)
def test_a_signal_ends_after_the_step(small_cfg, tmp_path, monkeypatch, number, status, workers):
    """During a step, also to the loader's workers; what goes on from there is the same run."""
    small_cfg.DATALOADER.NUM_WORKERS = workers
    train(small_cfg, tmp_path / "whole", MAX_ITER=4)
    step, others = FullPrecisionSteps.run_step, multiprocessing.active_children()

    def run_step(self) -> None:
        if self.iter == 1:
            for process in set(multiprocessing.active_children()) - set(others):
                os.kill(process.pid, number)
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # SLURM tells all, and a launcher those that it started
            time.sleep(0.1)  # workers that died would be noticed
        step(self)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(FullPrecisionSteps, "run_step", run_step)
        train(small_cfg, tmp_path / "a", MAX_ITER=4)
    assert caught.value.code == status
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=4).start_iter == 2
    assert_same(load(tmp_path / "a" / FINAL), load(tmp_path / "whole" / FINAL))


def test_a_second_signal_ends_at_once(monkeypatch):
    monkeypatch.setattr(preemption, "_ONE_EVENT", 0.02)
    killed = []
    with preemption.signals_wait():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        monkeypatch.setattr(preemption.os, "kill", lambda *given: killed.append(given))
        signal.raise_signal(signal.SIGTERM)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Signalled(FixedResult):
    """Told to end at its second frame."""

    def process(self, inputs, outputs) -> None:
        super().process(inputs, outputs)
        assert self.frames < 3, "the evaluation went on"
        if self.frames == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("period", "name"), [(2, "model_0000001.pth"), (0, FINAL)])
def test_a_signal_ends_an_evaluation(small_cfg, small_dataset, tmp_path, monkeypatch, period, name):
    small_cfg.DATASETS.TEST, small_cfg.TEST.NUM_PICTURES = (small_dataset,), 0
    small_cfg.TEST.EVAL_PERIOD = period
    for evaluator, outcome in ((Signalled, 143), (FixedResult, None)):
        build = staticmethod(lambda cfg, name, made=evaluator: made())
        monkeypatch.setattr(Trainer, "build_evaluator", build)
        if outcome:
            with pytest.raises(SystemExit) as caught:
                train(small_cfg, tmp_path / "a", MAX_ITER=3)
            assert caught.value.code == outcome
            assert (tmp_path / "a" / "last_checkpoint").read_text() == name
        else:
            train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=3)
    assert (tmp_path / "a" / "results.json").is_file()
    train(small_cfg, tmp_path / "whole", MAX_ITER=3)
    assert_same(load(tmp_path / "a" / FINAL), load(tmp_path / "whole" / FINAL))


def train_in_two(args: Namespace, cfg, folder: str) -> None:
    register("two", Path(folder))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    step, started = trainer._trainer.run_step, Path(folder, f"started{comm.get_rank()}")
    trainer._trainer.run_step = lambda: (started.touch(), time.sleep(0.2), step())
    trainer.train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_the_launcher_hands_signals_on(small_cfg, tmp_path, forked_processes):
    small_cfg.DATASETS.TRAIN, small_cfg.SOLVER.MAX_ITER = ("two",), 1000
    os.makedirs(small_cfg.OUTPUT_DIR)

    def tell() -> None:
        # Earlier, a process would not yet wait for the end of its step.
        while len(list(tmp_path.glob("started?"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    # Such as workers of a data loader of the program that has the training.
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,), daemon=True)
    other.start()
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(SystemExit) as caught:
        launch_job(train_in_two, args, small_cfg, str(tmp_path))
    assert caught.value.code == 143
    assert other.is_alive()
    other.kill()
    last = Path(small_cfg.OUTPUT_DIR, "last_checkpoint").read_text()
    assert load(Path(small_cfg.OUTPUT_DIR, last))["iteration"] < 900


def damaged(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    if how == "zeros":  # blocks that never reached the disk
        return data[:middle] + bytes(4096) + data[middle + 4096 :]
    return data[: {"cut": middle, "last byte": len(data) - 1, "empty": 0}[how]]


@pytest.mark.parametrize("how", ["cut", "last byte", "empty", "zeros", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(small_cfg, tmp_path, how):
    small_cfg.OUTPUT_DIR = str(tmp_path)
    for name in ("model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "my_model.pth"):
        torch.save({"model": torch.rand(9999)}, tmp_path / name)
    newest = tmp_path / "model_0000003.pth"  # 5 is later, so of another run
    (tmp_path / "last_checkpoint").write_text(newest.name)
    assert resume_file(small_cfg) == newest
    if how == "gone":
        newest.unlink()
    else:
        newest.write_bytes(damaged(newest.read_bytes(), how))
    assert damage(newest)
    assert resume_file(small_cfg) == tmp_path / "model_0000001.pth"


def test_training_goes_on_from_the_checkpoint_before(small_cfg, tmp_path, caplog):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_cfg, whole, MAX_ITER=3, CHECKPOINT_PERIOD=1)
    interrupted_copy(whole, parts, "model_0000001.pth")
    shutil.copy(whole / "model_0000000.pth", parts)
    newest = parts / "model_0000001.pth"
    newest.write_bytes(damaged(newest.read_bytes(), "cut"))
    with caplog.at_level("WARNING", logger="tdos_d2"):
        trainer = train(small_cfg, parts, resume=True, MAX_ITER=3, CHECKPOINT_PERIOD=1)
    assert trainer.start_iter == 1
    said = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert len(said) == 1 and newest.name in said[0] and "model_0000000.pth" in said[0]
    assert_same(load(parts / FINAL), load(whole / FINAL))
    assert not damage(newest)


def test_what_a_killed_run_left_of_a_checkpoint_is_deleted(small_cfg, tmp_path):
    (tmp_path / ".model_0000001.pth.123.tmp").write_bytes(b"PK")
    (tmp_path / "mine.pth.tmp").write_bytes(b"PK")
    train(small_cfg, tmp_path, MAX_ITER=1)
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["mine.pth.tmp"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("content", [b"", b"\n", b"..", b"../b/model_0000002.pth", b"\xff\xfe"])
def test_a_damaged_last_checkpoint_names_no_other_run(small_cfg, tmp_path, content):
    run = tmp_path / "a" / "run"
    run.mkdir(parents=True)
    (run.parent / "model_0000009.pth").write_bytes(b"of another run")
    (run / "last_checkpoint").write_bytes(content)
    small_cfg.OUTPUT_DIR = str(run)
    with pytest.raises(UserError, match="last_checkpoint names no file, which is not in"):
        resume_file(small_cfg)
    torch.save({}, run / "model_0000001.pth")
    assert resume_file(small_cfg) == run / "model_0000001.pth"


def test_all_checkpoints_are_damaged(small_cfg, tmp_path):
    small_cfg.OUTPUT_DIR = str(tmp_path)
    for name in ("model_0000001.pth", "model_final.pth"):
        torch.save({"model": torch.zeros(9999)}, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-100])
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth.*may be damaged.*no earlier"):
        resume_file(small_cfg)


def test_older_formats_are_not_checked(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert damage(tmp_path / "old.pth") == ""
