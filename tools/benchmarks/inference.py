"""``benchmark.py inference``: seconds and memory of a prediction, beside the plain way.

  plain   what the released code does, from the same weights: modules as they come, deformable
          attention by grid_sample, one window at a time, the text encoded for each
  ours    what predict.py does; the scores must agree with the plain way's
  image   the same with TEST.WINDOW.DECODE image, which is another result
  image-apart  the same with windows that do not overlap (TEST.WINDOW.STRIDE = SIZE)
  bf16, image-bf16  the two with TEST.BFLOAT16, on a CPU

and, for comparison, torchvision's DeepLabV3 (ResNet-50, 19 classes) with the maximum logit. Each
runs in a process of its own, on all cores that torch may use; weights are random unless some ship
with the config or it names some. Medians of the time on the clock, with the smallest and the
largest value.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from tdos_commands import options

from .common import hardware, in_own_process, median_and_spread, peak_memory

# Largest difference of a score (log S_ood) from the plain way's.
TOLERANCE = 1e-4
GOALS = {
    "plain": "", "ours": ">= 2.2", "image": ">= 4", "image-apart": ">= 4", "bf16": "",
    "image-bf16": "", "deeplab": "",
}  # fmt: skip


def add_command(commands: Any) -> None:
    """Add ``inference`` to the parser's commands."""
    command = commands.add_parser(
        "inference",
        help="time and memory of a prediction",
        description=__doc__,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--config-file", type=options.config_file, default="configs/tdos_vitb.yaml", metavar="FILE"
    )
    command.add_argument(
        "--size", type=options.image_size, default=(2048, 1024), metavar="WxH",
        help="(default: 2048x1024)",
    )  # fmt: skip
    command.add_argument(
        "--repeat", type=options.whole(1), default=3, metavar="N", help="runs each (default: 3)"
    )
    command.add_argument(
        "--ways",
        nargs="+",
        choices=list(GOALS),
        default=["plain", "ours", "image"],
        metavar="WAY",
        help=f"of {', '.join(GOALS)} (default: the first three)",
    )
    command.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, last on the line",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure and print; a score that differs from the plain way's is an error."""
    from tdos_d2.evaluation.tables import format_rows

    print(f"{hardware('torch')}, {args.config_file}, {args.size[0]}x{args.size[1]}\n")
    found = {way: in_own_process(measure, way, args) for way in dict.fromkeys(args.ways)}
    plain = found.get("plain")
    rows = []
    for way, (seconds, memory, score, labels) in found.items():
        row = {"way": way, "seconds": median_and_spread(seconds), "GiB": f"{memory:.2f}"}
        if plain:
            row["times faster"] = f"{np.median(plain[0]) / np.median(seconds):.2f}"
            row["goal"] = GOALS[way]
            if way not in ("plain", "deeplab"):
                row["score differs by"] = f"{np.abs(score - plain[2]).max():.1e}"
                row["labels differ"] = f"{100 * (labels != plain[3]).mean():.3f} %"
        rows.append(row)
    print(format_rows(rows, "table"))
    if plain and "ours" in found:
        difference = np.abs(found["ours"][2] - plain[2]).max()
        if not difference <= TOLERANCE:  # NaN is no agreement
            sys.exit(f"error: the scores differ by {difference}, more than {TOLERANCE}")


def measure(
    way: str, args: argparse.Namespace
) -> tuple[list[float], float, np.ndarray, np.ndarray]:
    """Seconds of each run, peak memory in GiB, and the scores and labels that came out."""
    import torch

    torch.manual_seed(0)
    image = synthetic_image(*args.size)
    with torch.no_grad():
        predict = deeplab() if way == "deeplab" else tdos(way, args)
        output = predict(image)  # starts threads, encodes what is kept
        seconds = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            output = predict(image)
            seconds.append(time.perf_counter() - start)
    return seconds, peak_memory(), output["ood_score"].numpy(), labels_of(output["sem_seg"])


def labels_of(known: Any) -> np.ndarray:
    """The known class of each pixel; 0 where a model has none."""
    return known.argmax(0).numpy() if len(known) else np.zeros(known.shape[1:], int)


def synthetic_image(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: large soft shapes and noise."""
    import cv2

    random = np.random.default_rng(0)
    shapes = random.integers(0, 256, (height // 64 + 1, width // 64 + 1, 3), dtype=np.uint8)
    image = cv2.resize(shapes, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return (image + random.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8)


def tdos(way: str, args: argparse.Namespace) -> Callable[[np.ndarray], dict[str, Any]]:
    """A config's model at its test size, run in one of the ways."""
    import torch
    from detectron2.data import transforms as T
    from detectron2.modeling import build_model

    from tdos_d2.data import TDOSDatasetMapper
    from tdos_d2.errors import UserError
    from tdos_d2.loading.checkpoint import TDOSCheckpointer
    from tdos_d2.loading.config_checks import check_model
    from tdos_d2.loading.config_files import load_config, use_shipped_weights
    from tdos_d2.modeling.fusion import fuse_for_prediction

    from .plain import plain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = load_config(args.config_file, ["MODEL.DEVICE", device, *args.opts])
    with suppress(UserError):  # none ship with most configs: only speed is asked for
        use_shipped_weights(cfg, args.config_file)
    if not args.opts and cfg.MODEL.CLIP.WEIGHTS and not cfg.MODEL.WEIGHTS:
        # With the activation that those weights need: it takes a tenth of ViT-B's time.
        cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.CLIP.ACTIVATION = "", "quick_gelu"
    if way.startswith("image"):
        cfg.TEST.WINDOW.DECODE = "image"
    if way == "image-apart":
        cfg.TEST.WINDOW.STRIDE = cfg.TEST.WINDOW.SIZE
    check_model(cfg)
    model = build_model(cfg).eval()
    TDOSCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    if way != "plain":
        fuse_for_prediction(model)
    mapper = TDOSDatasetMapper(cfg, is_train=False)

    def predict(image: np.ndarray) -> dict[str, Any]:
        height, width = image.shape[:2]
        data = T.AugInput(image)
        mapper.augmentations(data)
        tensor = torch.as_tensor(data.image.transpose(2, 0, 1).copy())
        inputs = [{"image": tensor, "height": height, "width": width}]
        half = torch.autocast("cpu", torch.bfloat16, enabled=way.endswith("bf16"))
        with plain(model) if way == "plain" else half:
            output = model(inputs)[0]
        return {name: output[name].cpu() for name in ("ood_score", "sem_seg")}

    return predict


def deeplab() -> Callable[[np.ndarray], dict[str, Any]]:
    """torchvision's DeepLabV3 with random weights; one minus the largest probability."""
    import torch
    from torchvision.models.segmentation import deeplabv3_resnet50

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=19)
    model.eval().to(device)

    def predict(image: np.ndarray) -> dict[str, Any]:
        tensor = torch.as_tensor(image.transpose(2, 0, 1).copy()).to(device)[None] / 255
        logits = model(tensor)["out"][0]
        return {"ood_score": -logits.amax(0).cpu(), "sem_seg": logits.cpu()}

    return predict
