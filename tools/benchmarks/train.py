"""``benchmark.py train``: images per second and memory of a training step, beside the plain way.

  plain   deformable attention by grid_sample, attention of the frozen encoder as open_clip has it
  ours    what train_net.py does; the losses must agree with the plain way's
  bf16    the same with SOLVER.AMP.CPU, on a CPU

A step is forward, backward and optimizer on synthetic crops that are in memory; each way runs in a
process of its own, on all cores that torch may use, or on a GPU where there is one. Medians of the
time on the clock, with the smallest and the largest value.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import Any

import numpy as np

from tdos_commands import options

from .common import hardware, in_own_process, median_and_spread, peak_memory

# Largest relative difference of the losses' sum from the plain way's, in each step.
TOLERANCE = {"ours": 1e-3, "bf16": 2e-2}
GOAL = 1.5


def add_command(commands: Any) -> None:
    """Add ``train`` to the parser's commands."""
    command = commands.add_parser(
        "train",
        help="time and memory of a training step",
        description=__doc__,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--config-file", type=options.config_file, default="configs/camvid/tdos_lite2.yaml",
        metavar="FILE",
    )
    command.add_argument(
        "--batch", type=options.whole(1), default=4, metavar="N", help="images (default: 4)"
    )
    command.add_argument(
        "--repeat", type=options.whole(1), default=5, metavar="N", help="steps (default: 5)"
    )
    command.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, last on the line",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure and print; losses that differ from the plain way's are an error."""
    import torch

    from tdos_d2.evaluation.tables import format_rows

    print(f"{hardware('torch')}, {args.config_file}, {args.batch} images\n")
    ways = ("plain", "ours") if torch.cuda.is_available() else ("plain", "ours", "bf16")
    found = {way: in_own_process(measure, way, args) for way in ways}
    plain = found["plain"]
    differences = {way: np.abs(of[2] / plain[2] - 1).max() for way, of in found.items()}
    rows = [
        {
            "way": way,
            "seconds": median_and_spread(seconds),
            "images/s": f"{args.batch / np.median(seconds):.2f}",
            "GiB": f"{memory:.2f}",
            "times faster": f"{np.median(plain[0]) / np.median(seconds):.2f}",
            "goal": f">= {GOAL}" if way == "ours" else "",
            "losses differ by": f"{differences[way]:.1e}",
        }
        for way, (seconds, memory, _) in found.items()
    ]
    print(format_rows(rows, "table"))
    for way, most in TOLERANCE.items():
        if way in found and not differences[way] <= most:  # NaN is no agreement
            raise SystemExit(f"error: {way}: losses differ by more than {most} of their sum")


def measure(way: str, args: argparse.Namespace) -> tuple[list[float], float, np.ndarray]:
    """Seconds of each step but the first, peak memory in GiB, and the losses' sums."""
    import torch
    from detectron2.utils.events import EventStorage

    from tdos_d2.engine import Trainer, build_optimizer
    from tdos_d2.loading.config_files import load_config

    from .plain import plain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = load_config(args.config_file, ["MODEL.DEVICE", device, *args.opts])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    batch = crops(args.batch, cfg.INPUT.CROP.SIZE, model.num_known)
    seconds, losses = [], []
    with EventStorage(), plain(model) if way == "plain" else nullcontext():
        for step in range(args.repeat + 1):
            torch.manual_seed(step)  # the points that the losses look at
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=way == "bf16"):
                loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
    return seconds[1:], peak_memory(), np.array(losses)


def crops(count: int, size: tuple[int, int], num_known: int) -> list[dict[str, Any]]:
    """Inputs of a training step: noise, and labels of all classes in squares."""
    import torch

    height, width = size
    generator = torch.Generator().manual_seed(0)
    cells = (count, height // 32 + 1, width // 32 + 1)
    labels = torch.randint(0, num_known + 1, cells, generator=generator)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width]
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    return [
        {"image": image.to(torch.uint8), "sem_seg": label}
        for image, label in zip(images, labels, strict=True)
    ]
