#!/usr/bin/env python
"""Kill trainings at random moments, resume them, and compare them with an uninterrupted one.

Each run of train_net.py, on a tiny model and generated frames, gets SIGKILL in a step, while a
checkpoint is written, during an evaluation, or while results are written (in turn, at a random
moment), then continues with --resume to its end. Its last checkpoint (weights, optimizer, schedule,
iteration, seed), the losses since the kill (which depend on data order and random state), the
random state at the end and the results must equal those of the uninterrupted run, bit for bit.

    python tools/torture.py --output /tmp/torture               50 runs, some minutes
    python tools/torture.py --output /tmp/torture --runs 4      a quick run
    python tools/torture.py --output /tmp/torture --processes 2

With two processes, one of them is killed or all of them at once; the others must end by themselves
within a minute. Processes are forked from one that has loaded torch, and do what train_net.py does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options, train

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = ("step", "checkpoint", "evaluation", "results")
CLASSES = ["road", "sidewalk", "sky"]
_FINAL = "model_final.pth"
_FRAME = (64, 96)
_PATIENCE = 60  # seconds until the others must have ended


def run() -> None:
    """Create data, train once without interruption, then kill, resume and compare."""
    args = _parser().parse_args()
    import torch

    import tdos_d2.engine.train_command  # noqa: F401  # once, for all processes that are forked
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output

    check_output(args.output, "--output", folder=True)
    torch.set_num_threads(1)  # threads do not survive a fork
    config = _write_inputs(args.output, args.iterations)
    if args.processes > 1:
        torch.multiprocessing.start_processes = partial(
            torch.multiprocessing.start_processes, start_method="fork"
        )

    def begin(folder: Path, *words: str) -> int:
        return _start(config, folder, *words, "--num-gpus", str(args.processes))

    rng = random.Random(args.seed)
    start = time.monotonic()
    if status := _wait(begin(args.output / "whole")):
        raise UserError(f"the run that is not killed ended with status {status}: see its console")
    duration = time.monotonic() - start
    print(f"whole run: {duration:.1f} s", flush=True)
    differing, died, slowest = [], Counter(), 0.0
    for number in range(args.runs):
        folder = args.output / f"run{number:03d}"
        moment = MOMENTS[number % len(MOMENTS)]
        killed_at, seconds = _kill(begin(folder), folder, moment, duration, rng)
        died[killed_at] += 1
        slowest = max(slowest, seconds)
        # Some runs are killed twice.
        if rng.random() < 0.2:
            _, seconds = _kill(begin(folder, "--resume"), folder, "step", duration, rng)
            slowest = max(slowest, seconds)
        status = _wait(begin(folder, "--resume"))
        problems = [f"status {status}"] if status else differences(args.output / "whole", folder)
        print(f"{folder.name}: killed {killed_at}, {'; '.join(problems) or 'the same'}", flush=True)
        differing += [folder.name] * bool(problems)
        if not problems:
            shutil.rmtree(folder)
    print(f"{args.runs} runs in {time.monotonic() - start:.0f} s, {len(differing)} differ")
    print("killed " + ", ".join(f"{died[x]} {x}" for x in sorted(died)))
    print(f"nothing was left running {slowest:.1f} s after a kill")
    sys.exit(1 if differing or slowest > _PATIENCE else 0)


def differences(whole: Path, folder: Path) -> list[str]:
    """Differences between a run and the uninterrupted one."""
    import torch

    found = []
    pair = [torch.load(f / _FINAL, weights_only=True) for f in (whole, folder)]
    if path := _first_difference(*pair, ""):
        found.append(f"{_FINAL} differs in {path}")
    for name in sorted(path.name for path in whole.glob("losses*.txt")):  # of each process
        losses = [_losses(f / name) for f in (whole, folder)]
        if losses[0] != losses[1]:
            wrong = [i for i in losses[0] if losses[0][i] != losses[1].get(i)]
            found.append(f"{name}, iterations {wrong[:3]}")
    for name in sorted(path.name for path in whole.glob("random_state*.txt")):
        if (folder / name).exists():  # it is missing if only the evaluation remained
            states = [(f / name).read_text() for f in (whole, folder)]
            if states[0] != states[1]:
                found.append(f"{name}: random state at the end")
    results = [json.loads((f / "results.json").read_text()) for f in (whole, folder)]
    if results[0] != results[1]:
        found.append("results.json")
    if left := [path.name for path in folder.rglob("*.tmp") if path.stat().st_mtime_ns > 0]:
        # A killed process leaves its incomplete files, but hidden and not under their final names.
        found += [f"{name} under a final name" for name in left if not name.startswith(".")]
    return found


def _first_difference(a: Any, b: Any, path: str) -> str:
    """Where two nested structures differ; "" if they are equal bit for bit."""
    import torch

    if type(a) is not type(b):
        return f"{path} (type)"
    if isinstance(a, torch.Tensor):
        return "" if torch.equal(a, b) else path
    if isinstance(a, dict):
        pairs = [(f"{path}.{k}", a[k], b[k]) for k in a] if list(a) == list(b) else None
    elif isinstance(a, (list, tuple)):
        same = len(a) == len(b)
        pairs = [(f"{path}[{i}]", *p) for i, p in enumerate(zip(a, b))] if same else None  # noqa: B905
    else:
        return "" if a == b else path
    if pairs is None:
        return f"{path} (length)"
    return next(filter(None, (_first_difference(x, y, p) for p, x, y in pairs)), "")


def _losses(file: Path) -> dict[int, str]:
    """Loss by iteration as written; of an iteration that ran twice, the last one."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {int(line[0]): line[1] for line in lines if len(line) == 2}


def _start(config: Path, folder: Path, *words: str) -> int:
    """Fork a process that does what train_net.py does; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()  # a process group of its own, with the processes that it starts
        console = os.open(folder / "console.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(console, 1)
        os.dup2(console, 2)
        _train(config, folder, words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _train(config: Path, folder: Path, words: tuple[str, ...]) -> None:
    """Run train_net.py, also recording the loss of each iteration and the last random state."""
    import torch
    from detectron2.engine import SimpleTrainer
    from detectron2.utils import comm

    for file in folder.glob("random_state*.txt"):
        file.unlink()
    write = SimpleTrainer._write_metrics

    def note(trainer: Any, loss_dict: dict[str, Any], *more: Any, **options: Any) -> None:
        total = sum(loss.double() for loss in loss_dict.values()).item()
        with open(folder / f"losses{comm.get_rank()}.txt", "a") as losses:
            losses.write(f"{trainer.iter} {total.hex()}\n")
        state = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        file = folder / f"random_state{comm.get_rank()}.txt"
        file.write_text(repr([*state[:2], state[2].tolist()]))
        write(trainer, loss_dict, *more, **options)

    SimpleTrainer._write_metrics = note
    train.run(["--config-file", str(config), *words, "OUTPUT_DIR", str(folder)])


def _kill(
    pid: int, folder: Path, moment: str, duration: float, rng: random.Random
) -> tuple[str, float]:
    """Kill a process at a random time within a kind of moment.

    Of several processes, one or all are killed.

    Returns:
        when, in words, and the seconds after which all had ended (``inf``: they had not).
    """
    log = folder / "log.txt"
    patterns = {"checkpoint": ".*.pth.*.tmp", "results": ".results*.tmp"}
    if moment in patterns:
        # One of the files that are being written.
        skipped, seen = rng.randrange(4), set()

        def reached() -> bool:
            seen.update(path.name + str(_inode(path)) for path in folder.glob(patterns[moment]))
            return len(seen) > skipped
    elif moment == "evaluation":
        wanted = rng.randrange(1, 3)

        def reached() -> bool:
            return log.exists() and log.read_text().count("Start inference") >= wanted
    else:
        end = time.monotonic() + rng.random() * duration

        def reached() -> bool:
            return time.monotonic() > end

    ended = _until(pid, reached)
    if ended:
        return "not at all: it was at its end", 0.0
    if moment in ("checkpoint", "evaluation"):
        time.sleep(rng.random() * 0.02)
    others = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    victim = rng.choice([0, *map(int, others)])
    os.kill(victim, signal.SIGKILL) if victim else os.killpg(pid, signal.SIGKILL)
    start = time.monotonic()
    moment = _where(folder)
    _until(pid, lambda: time.monotonic() > start + _PATIENCE)
    for _ in _ticks():
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return moment, time.monotonic() - start
        if time.monotonic() > start + _PATIENCE:
            os.killpg(pid, signal.SIGKILL)
            return moment, float("inf")
    raise AssertionError


def _until(pid: int, reached: Callable[[], bool]) -> bool:
    """Wait until ``reached``; returns whether the process ended before."""
    for _ in _ticks():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        if reached():
            return False
    raise AssertionError


def _ticks() -> Iterator[None]:
    while True:
        yield
        time.sleep(0.0005)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _where(folder: Path) -> str:
    """When a process was killed, judged by the files that it left."""
    if any(folder.glob(".*.pth.*.tmp")):
        return "while a checkpoint was written"
    if any(folder.glob(".results*.tmp")):
        return "while results were written"
    text = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
    if "Starting training" not in text:
        return "before the first step"
    last = max(("Start inference", "Starting training", "Results:", "Saving ch"), key=text.rfind)
    return {
        "Start inference": "during an evaluation",
        "Results:": "after results were written",
    }.get(last, "in a step")


def _wait(pid: int) -> int:
    """The exit status of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _write_inputs(output: Path, iterations: int) -> Path:
    """Write frames for training and evaluation, a registration file and the config; returns it."""
    import cv2

    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for kind, frames in (("train", 7), ("test", 4)):
        for part in ("images", "masks"):
            (output / kind / part).mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            image = rng.integers(0, 256, (*_FRAME, 3), np.uint8)
            mask = np.repeat(np.arange(3, dtype=np.uint8), _FRAME[1] // 3)[None].repeat(64, 0)
            if kind == "test":
                mask = (rng.random(_FRAME) < 0.2).astype(np.uint8)
            cv2.imwrite(str(output / kind / "images" / f"{i}.png"), image)
            cv2.imwrite(str(output / kind / "masks" / f"{i}.png"), mask)
    sets = [
        {"name": "torture_train", "image_root": "train/images", "label_root": "train/masks",
         "classes": CLASSES},
        {"name": "torture_test", "image_root": "test/images", "label_root": "test/masks",
         "id_values": [0], "ood_values": [1]},
    ]  # fmt: skip
    (output / "sets.yaml").write_text(yaml.safe_dump(sets))
    small = {"NUM_LAYERS": 1, "HIDDEN_DIM": 32, "FFN_DIM": 32}
    config = {
        "_BASE_": str(ROOT / "configs" / "demo.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "NECK": {"CHANNELS": 32},
            "TDOS": {"NUM_NEGATIVE": 4, "NUM_POINTS": 64},
            "CONTEXT_DECODER": {"HIDDEN_DIM": 32},
            "PIXEL_DECODER": small,
            "TRANSFORMER_DECODER": {"NUM_LAYERS": 1, "FFN_DIM": 32},
        },
        "INPUT": {"CROP": {"SIZE": [32, 64]}, "MIN_SIZE_TEST": 0},
        "DATASETS": {"REGISTER": str(output / "sets.yaml"), "TRAIN": ["torture_train"],
                     "TEST": ["torture_test"]},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": iterations, "CHECKPOINT_PERIOD": 3,
                   "WARMUP_ITERS": 2},
        "TEST": {"EVAL_PERIOD": max(1, iterations // 2), "NUM_PICTURES": 1},
        "SEED": 5,
    }  # fmt: skip
    (output / "torture.yaml").write_text(yaml.safe_dump(config))
    return output / "torture.yaml"


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=options.path, required=True, metavar="DIR", help="folder for all runs")
    add("--runs", type=options.whole(1), default=50, metavar="N", help="default: %(default)s")
    add("--iterations", type=options.whole(4), default=12, metavar="N",
        help="of each run (default: %(default)s)")
    add("--processes", type=int, choices=(1, 2), default=1, help="of each run (default: 1)")
    add("--seed", type=options.seed, default=0, metavar="S", help="of the moments (default: 0)")
    return parser  # fmt: skip


if __name__ == "__main__":
    exit_with_one_line(run)
