"""``benchmark.py loading``: CPU seconds that a training crop costs before the model sees it.

Frames are drawn, with noise, so that the PNG files are no smaller than those of Cityscapes (2.8 and
2.3 MB at 2048x1024); they are read by the training's own mapper: image and label decoded, resized
and cropped (only what the crop needs), outliers pasted, colours distorted. CPU seconds of one
process, medians with the smallest and the largest value; "whole" is the mapper, the rows below its
parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tdos_commands import options

from .common import hardware, median_and_spread, timed
from .inference import synthetic_image

GOAL = 0.08
_FRAMES = 4
_CLASSES = 19
_NOISE = 1.5  # grey levels


def add_command(commands: Any) -> None:
    """Add ``loading`` to the parser's commands."""
    command = commands.add_parser(
        "loading", help="CPU time of a training crop's data", description=__doc__
    )
    command.set_defaults(run=run)
    add = command.add_argument
    add("--config-file", type=options.config_file, default="configs/tdos_vitb.yaml", metavar="FILE")
    add(
        "--size", type=options.image_size, default=(2048, 1024), metavar="WxH",
        help="of the frames (default: 2048x1024)",
    )  # fmt: skip
    add("--repeat", type=options.whole(1), default=60, metavar="N", help="crops (default: 60)")
    add(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, last on the line",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    from tdos_d2.evaluation.tables import format_rows

    print(f"{hardware('torch', 'cv2')}, {args.config_file}, {args.size[0]}x{args.size[1]}\n")
    with tempfile.TemporaryDirectory() as folder:
        bytes_per_frame = write_frames(Path(folder), args.size)
        found = measure(args, Path(folder))
    rows = [
        {
            "part": part,
            "CPU seconds per crop": median_and_spread(seconds, 3),
            "goal": f"<= {GOAL}" if part == "whole" else "",
        }
        for part, seconds in found.items()
    ]
    print(format_rows(rows, "table"))
    print(f"\n{bytes_per_frame / 1e6:.1f} MB per image file")


def write_frames(folder: Path, size: tuple[int, int]) -> float:
    """Images and labels of ``_CLASSES`` classes; returns the bytes of an image file."""
    import cv2

    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    smooth = cv2.GaussianBlur(synthetic_image(*size), (0, 0), 4).astype(np.float32)
    squares = rng.integers(0, _CLASSES, (size[1] // 64 + 1, size[0] // 64 + 1), dtype=np.uint8)
    label = cv2.resize(squares, size, interpolation=cv2.INTER_NEAREST)
    for number in range(_FRAMES):
        noisy = smooth + rng.normal(0, _NOISE, smooth.shape).astype(np.float32)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), noisy.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), label)
    return np.mean([path.stat().st_size for path in (folder / "images").iterdir()])


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """CPU seconds of each crop: of the mapper, and of its parts."""
    import cv2
    import torch
    from detectron2.data import MetadataCatalog

    from tdos_d2.data import TDOSDatasetMapper, get_dicts
    from tdos_d2.data.datasets.segmentation import register_segmentation_dataset
    from tdos_d2.data.reading import read_image, read_label
    from tdos_d2.loading.config_files import load_config

    cv2.setNumThreads(0)  # as in the mapper
    torch.set_num_threads(1)
    name = f"benchmark_loading {folder.name}"
    names = [f"class {i}" for i in range(_CLASSES)]
    register_segmentation_dataset(name, folder / "images", folder / "masks", classes=names)
    words = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", repr((name,)), *args.opts]
    cfg = load_config(args.config_file, words)
    cfg.MODEL.TDOS.CLASS_NAMES, cfg.INPUT.OOD_PASTE.STAND_ON = names, []
    mapper = TDOSDatasetMapper(cfg, is_train=True)
    records, metadata = get_dicts(name), MetadataCatalog.get(name)
    image = read_image(records[0]["file_name"])
    label = read_label(records[0]["sem_seg_file_name"], metadata)
    crop, crop_label, _ = mapper._transform(image, label)

    def paste(number: int) -> Any:
        return mapper.ood_paste(crop, crop_label, np.random.default_rng(number))

    parts: dict[str, Callable[[int], Any]] = {
        "whole": lambda i: mapper({**records[i % _FRAMES], "position": i}),
        "reading the image": lambda i: read_image(records[i % _FRAMES]["file_name"]),
        "reading the label": lambda i: read_label(
            records[i % _FRAMES]["sem_seg_file_name"], metadata
        ),
        "resize, crop, flip": lambda _: mapper._transform(image, label),
        "pasting": paste if mapper.ood_paste else lambda _: None,
        "distortion": lambda _: mapper.distortion and mapper.distortion.apply_image(crop),
    }
    found = {}
    for part, function in parts.items():
        function(0)
        found[part] = [timed(lambda i=i: function(i))[0] for i in range(args.repeat)]  # noqa: B023
    return found
