"""``benchmark.py export``: a model in the forms that go into a car: size, time, what they cost.

  torch           OODPredictor
  onnxruntime     export_model.py --form predictor
  openvino        the same model as OpenVINO's, FP32
  openvino int8   its products in INT8, by ranges of normal frames

Each runs in a process of its own with --threads threads; times are per frame, medians with the
smallest and the largest value, on the clock and of the processor (CPU). AP and FPR95 are of at most
--frames frames of each benchmark, evenly spaced. Needs the extra "openvino" and the datasets below
DETECTRON2_DATASETS; a missing benchmark is named and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tdos_commands import options

from .common import hardware, in_own_process, median_and_spread
from .inference import synthetic_image

SUFFIXES = {
    "torch": "",
    "onnxruntime": ".onnx",
    "openvino": ".xml",
    "openvino int8": "_int8.xml",
}
_TOOL = Path(__file__).resolve().parents[1] / "export_model.py"


def add_command(commands: Any) -> None:
    """Add ``export`` to the parser's commands."""
    command = commands.add_parser(
        "export",
        help="size, time and quality of exported models",
        description=__doc__,
    )
    command.set_defaults(run=run)
    add = command.add_argument
    add(
        "--config-file", type=options.config_file, default="configs/memory_lite2.yaml",
        metavar="FILE",
    )
    add(
        "--size", type=options.image_size, nargs="+", default=[(1280, 720), (2048, 1024)],
        metavar="WxH", help="of frames (default: 1280x720 2048x1024)",
    )  # fmt: skip
    add("--ways", nargs="+", choices=list(SUFFIXES), default=list(SUFFIXES), metavar="WAY")
    add("--threads", type=options.whole(1), default=2, metavar="N", help="(default: 2)")
    add("--repeat", type=options.whole(1), default=7, metavar="N", help="runs each (default: 7)")
    add(
        "--datasets", nargs="*", default=["camvid_ood", "road_anomaly"], metavar="NAME",
        help="benchmarks, each of frames of one size (default: camvid_ood road_anomaly)",
    )  # fmt: skip
    add("--frames", type=options.whole(1), default=30, metavar="N", help="of each (default: 30)")
    add(
        "--normal", default="camvid_train", metavar="NAME",
        help="dataset whose frames give the ranges of INT8 (default: camvid_train)",
    )  # fmt: skip
    add(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, last on the line",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Export, measure and print; ways whose file could not be exported are left out, and named."""
    from tdos_d2.evaluation.tables import format_rows

    failed: list[str] = []

    def ways(what: str, stem: str) -> list[str]:
        there = [way for way in args.ways if os.path.exists(stem + SUFFIXES[way]) or way == "torch"]
        failed.extend(f"{what}: {way}" for way in args.ways if way not in there)
        return there

    with tempfile.TemporaryDirectory() as folder:
        print(f"{hardware('torch', 'onnxruntime')}, {args.threads} threads, {args.config_file}\n")
        rows = []
        for size in args.size:
            stem = export(args, size, args.opts, folder)
            for way in ways(f"{size[0]}x{size[1]}", stem):
                wall, cpu = in_own_process(measure, way, args, stem, size)
                rows.append(
                    {
                        "frame": f"{size[0]}x{size[1]}",
                        "way": way,
                        "MB": f"{file_size(way, stem):.1f}" if SUFFIXES[way] else "",
                        "ms": median_and_spread(wall, 0),
                        "CPU ms": median_and_spread(cpu, 0),
                    }
                )
        print(f"{format_rows(rows, 'table')}\n")
        rows = []
        for name in args.datasets:
            size, opts, count = in_own_process(about, name, args)
            if not count:
                print(f"{name} is not there")
                continue
            stem = export(args, size, [*args.opts, *opts], folder)
            for way in ways(name, stem):
                found = in_own_process(quality, way, args, stem, name, opts)
                numbers = {key: f"{found[key]:.2f}" for key in ("AP", "FPR95")}
                rows.append({"benchmark": name, "frames": count, "way": way, **numbers})
        print(format_rows(rows, "table"))
    if failed:
        raise SystemExit(f"error: not exported: {', '.join(failed)}")


def export(
    args: argparse.Namespace, size: tuple[int, int], opts: list[str], folder: str
) -> str:
    """Try to write the files that the ways need, once; where, without their suffixes."""
    stem = os.path.join(folder, f"{size[0]}x{size[1]}-{crc32(' '.join(opts).encode())}")
    outputs = []
    if "onnxruntime" in args.ways:
        outputs += ["--output", f"{stem}.onnx"]
    if {"openvino", "openvino int8"} & {*args.ways}:
        outputs += ["--output", f"{stem}.xml"]
    if "openvino int8" in args.ways:
        outputs += ["--int8", in_own_process(normal_folder, args.normal)]
    if outputs and not any(os.path.exists(f"{stem}{x}") for x in (".onnx", ".xml")):
        words = ["--form", "predictor", "--size", f"{size[0]}x{size[1]}", "--no-labels", *outputs]
        command = [sys.executable, str(_TOOL), "--config-file", args.config_file, *words, *opts]
        subprocess.run(command, stdout=subprocess.DEVNULL)  # it prints why a file is not written
    return stem


def file_size(way: str, stem: str) -> float:
    """MB of the files of a way."""
    file = Path(stem + SUFFIXES[way])
    files = [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]
    return sum(os.path.getsize(x) for x in files) / 1e6


def normal_folder(name: str) -> str:
    """Where the images of a dataset are."""
    from tdos_d2.data import get_dicts

    return os.path.dirname(get_dicts(name)[0]["file_name"])


def about(name: str, args: argparse.Namespace) -> tuple[tuple[int, int], list[str], int]:
    """(W, H) of a benchmark's frames, config options for its test size, frames that are used."""
    from tdos_d2.data.dataset_mapper import size_rule
    from tdos_d2.data.reading import image_size
    from tdos_d2.errors import UserError
    from tdos_d2.loading.config_files import load_config

    try:
        records = chosen(name, args.frames)
    except UserError:
        return (0, 0), [], 0
    rule = size_rule(load_config(args.config_file, args.opts), name)
    if "size" in rule:
        sys.exit(f"error: {name} has a test size of its own, --datasets cannot name it")
    shorter, longer = rule.get("shorter", 0), rule.get("longer", 1333)
    opts = ["INPUT.MIN_SIZE_TEST", str(shorter), "INPUT.MAX_SIZE_TEST", str(longer)]
    return image_size(records[0]["file_name"]), opts, len(records)


def chosen(name: str, count: int) -> list[dict[str, Any]]:
    """At most ``count`` records of a dataset, evenly spaced."""
    from tdos_d2.data import get_dicts

    records = get_dicts(name)
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in places]


def scorer(
    way: str, args: argparse.Namespace, stem: str, opts: list[str]
) -> Callable[[np.ndarray], np.ndarray]:
    """(H, W, 3) uint8 BGR -> (H, W) score."""
    if way == "torch":
        import torch

        from tdos_d2.inference import OODPredictor
        from tdos_d2.loading.config_files import load_config, use_shipped_weights

        torch.set_num_threads(args.threads)
        words = ["MODEL.DEVICE", "cpu", *args.opts, *opts]
        cfg = load_config(args.config_file, words)
        use_shipped_weights(cfg, args.config_file)
        predictor = OODPredictor(cfg)
        return lambda image: predictor(image)["ood_score"]
    if way == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = args.threads
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(f"{stem}.onnx", settings, providers=providers)
        return lambda image: session.run(["ood_score"], {"image": image})[0]
    import openvino

    from tdos_d2.inference.export_openvino import EXACT

    wanted = {**EXACT, "INFERENCE_NUM_THREADS": args.threads}
    compiled = openvino.Core().compile_model(stem + SUFFIXES[way], "CPU", wanted)
    return lambda image: compiled(image)["ood_score"].copy()


def measure(
    way: str, args: argparse.Namespace, stem: str, size: tuple[int, int]
) -> tuple[list[float], list[float]]:
    """Milliseconds of each run, on the clock and of the processor."""
    predict, image = scorer(way, args, stem, []), synthetic_image(*size)
    predict(image)  # starts threads, chooses kernels
    wall, cpu = [], []
    for _ in range(args.repeat):
        start = time.perf_counter(), time.process_time()
        predict(image)
        wall.append(1e3 * (time.perf_counter() - start[0]))
        cpu.append(1e3 * (time.process_time() - start[1]))
    return wall, cpu


def quality(
    way: str, args: argparse.Namespace, stem: str, name: str, opts: list[str]
) -> dict[str, float]:
    """Metrics of a benchmark, in percent."""
    from detectron2.data import MetadataCatalog

    from tdos_d2.data import read_image, read_label
    from tdos_d2.evaluation import evaluate_scores

    predict, metadata = scorer(way, args, stem, opts), MetadataCatalog.get(name)
    return evaluate_scores(
        (predict(read_image(x["file_name"], "BGR")), read_label(x["sem_seg_file_name"], metadata))
        for x in chosen(name, args.frames)
    )
