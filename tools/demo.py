#!/usr/bin/env python
"""The demo: train a small TDOS on generated street scenes, evaluate it, draw its predictions.

Needs no data, no weights and no GPU; takes a few minutes on two CPU cores. Writes to OUTPUT_DIR
(output/demo): contact_sheet.png, results.json, the checkpoint and Detectron2's logs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options, train

if TYPE_CHECKING:
    import torch
    from detectron2.config import CfgNode

COUNTED, SHOWN = "demo_ood", "demo_ood_hard"
SHEET = {"animal": 2, "sofa": 2, "barrel": 2, "ladder": 1, "tyre": 1}
HISTOGRAM_BINS = 16

Frame = tuple[np.ndarray, np.ndarray, np.ndarray, str]  # image, truth, OOD label, kind


def run() -> None:
    """Train, evaluate, compare, draw."""
    args = _parser().parse_args()
    from detectron2.utils.env import seed_all_rng

    from tdos_d2.config import get_config_file
    from tdos_d2.engine import TDOSCheckpointer, Trainer, check_run, launch_job, load_config
    from tdos_d2.engine.train_command import main as train_and_test
    from tdos_d2.evaluation.tables import to_json
    from tdos_d2.files import atomic_write

    opts = ["SEED", str(args.seed), "OUTPUT_DIR", args.output, *args.opts]
    cfg = load_config(get_config_file("demo.yaml"), opts)
    launch_args = train.parser().parse_args(["--num-gpus", str(args.num_processes)])
    notes = check_run(cfg, launch_args)
    start = time.time()
    launch_job(train_and_test, launch_args, cfg, notes)
    output = Path(cfg.OUTPUT_DIR)
    results = json.loads((output / "results.json").read_text())

    frames = {name: list(_frames(name)) for name in (COUNTED, SHOWN)}
    seed_all_rng(cfg.SEED)
    model = Trainer.build_model(cfg)
    untrained = _predict(cfg, model, COUNTED)
    TDOSCheckpointer(model).load(str(output / "model_final.pth"), checkpointables=[])
    outputs = {name: _predict(cfg, model, name) for name in frames}
    results[COUNTED]["ood_untrained"] = _evaluate(frames[COUNTED], untrained["ood_score"])
    results[COUNTED]["ood_colour_histogram"] = _evaluate(
        frames[COUNTED], colour_histogram_scores(cfg.DATASETS.TRAIN[0], frames[COUNTED])
    )
    results |= _per_kind(frames, outputs)
    with atomic_write(output / "results.json") as file:
        file.write(f"{to_json(results)}\n".encode())
    _draw(cfg, frames, outputs, output / "contact_sheet.png")
    print(f"\n{_table(results)}\n")
    print(f"{time.time() - start:.0f} seconds, seed {cfg.SEED}")
    print(f"Picture: {output / 'contact_sheet.png'}\nResults: {output / 'results.json'}")


def colour_histogram_scores(train_name: str, frames: list[Frame]) -> list[np.ndarray]:
    """A baseline without a network: the rarity of a pixel's colour among training pixels.

    Args:
        train_name: a dataset of known classes.
        frames: frames to score.

    Returns:
        Per frame (H, W): minus the logarithm of the share of training pixels in the pixel's bin of
        a 16 x 16 x 16 histogram.
    """
    from detectron2.data import DatasetCatalog

    from tdos_d2.data import read_image

    counts = np.ones(HISTOGRAM_BINS**3)  # start with one pixel in each bin
    for record in DatasetCatalog.get(train_name):
        bins = _colour_bins(read_image(record["file_name"], "RGB"))
        counts += np.bincount(bins.ravel(), minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    return [surprise[_colour_bins(image)] for image, *_ in frames]


def _colour_bins(image: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(image.astype(np.int64) * HISTOGRAM_BINS // 256, -1, 0)
    return (r * HISTOGRAM_BINS + g) * HISTOGRAM_BINS + b


def _frames(name: str) -> Iterator[Frame]:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from tdos_d2.data import read_image, read_label
    from tdos_d2.data.reading import read_values

    metadata = MetadataCatalog.get(name)
    for record in DatasetCatalog.get(name):
        # The files have train ids and OOD, while read_label returns 0 / 1 / 255 for an OOD dataset.
        truth = read_values(record["sem_seg_file_name"])
        label = read_label(record["sem_seg_file_name"], metadata)
        yield read_image(record["file_name"], "RGB"), truth, label, record["kind"]


def _predict(
    cfg: CfgNode, model: torch.nn.Module, dataset_name: str
) -> Mapping[str, list[np.ndarray]]:
    """``ood_score`` and ``prediction`` of every frame."""
    import torch

    from tdos_d2.data import build_test_loader

    model.eval()
    scores, predictions = [], []
    for inputs in build_test_loader(cfg, dataset_name):
        with torch.no_grad():
            output = model(inputs)[0]
        scores.append(output["ood_score"].cpu().numpy())
        predictions.append(output["sem_seg"].argmax(0).cpu().numpy().astype(np.uint8))
    return {"ood_score": scores, "prediction": predictions}


def _evaluate(
    frames: list[Frame], scores: list[np.ndarray], keep: Callable[[str], bool] = lambda _: True
) -> dict[str, float]:
    from tdos_d2.evaluation import evaluate_scores

    pairs = [
        (score, label) for (_, _, label, kind), score in zip(frames, scores, strict=True)
        if keep(kind)
    ]
    return evaluate_scores(iter(pairs))


def _per_kind(
    frames: Mapping[str, list[Frame]], outputs: Mapping[str, Mapping[str, list[np.ndarray]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Results per kind of OOD object, as separate datasets."""
    return {
        f"{name}/{kind}": {"ood": _evaluate(items, outputs[name]["ood_score"], kind.__eq__)}
        for name, items in frames.items()
        for kind in dict.fromkeys(kind for *_, kind in items)
    }


def _draw(
    cfg: CfgNode,
    frames: Mapping[str, list[Frame]],
    outputs: Mapping[str, Mapping[str, list[np.ndarray]]],
    path: Path,
) -> None:
    """Draw the first scenes of every kind, without selection by results."""
    from detectron2.data import MetadataCatalog

    from tdos_d2.visualization import drawing

    names = list(cfg.MODEL.TDOS.CLASS_NAMES)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    colours = drawing.palette(len(names), metadata.get("stuff_colors"))
    truth_colours = np.concatenate([colours, [drawing.OOD_COLOUR]])
    rows, left = [], dict(SHEET)
    for name, items in frames.items():
        scores, predictions = outputs[name]["ood_score"], outputs[name]["prediction"]
        for (image, truth, _, kind), score, prediction in zip(
            items, scores, predictions, strict=True
        ):
            if left.get(kind, 0) > 0:
                left[kind] -= 1
                title = kind if name == COUNTED else f"{kind} (shown only)"
                rows.append([
                    (title, image),
                    ("truth", drawing.colourise(truth, truth_colours)),
                    ("prediction (known classes)", drawing.colourise(prediction, colours)),
                    ("OOD score", drawing.heat_map(np.exp(score), 0.0, 1.0)),
                ])  # fmt: skip
    scale = "OOD score $S_{ood}$", 0.0, 1.0
    drawing.contact_sheet(rows, path, class_names=names, colours=colours, scale=scale)


def _table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    ood = results[COUNTED]
    methods = {
        "TDOS, log S_ood": ood["ood"],
        "same model, 1 - max known score": ood["ood_max_logit"],
        "untrained model": ood["ood_untrained"],
        "colour histogram": ood["ood_colour_histogram"],
    }
    metrics = ["AP", "AUROC", "FPR95", "F1"]
    rows = [[name, *(values[m] for m in metrics)] for name, values in methods.items()]
    kinds = [
        [f"  {kind}" + ("" if name == COUNTED else " (shown only)"),
         *(values["ood"][m] for m in metrics)]
        for (name, _, kind), values in ((k.partition("/"), v) for k, v in results.items())
        if kind
    ]
    table = tabulate([*rows, *kinds], headers=[COUNTED, *metrics], floatfmt=".1f")
    return f"{table}\n\nmIoU of the known classes on demo_val: " + (
        f"{results['demo_val']['sem_seg']['mIoU']:.1f}"
    )


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--seed", type=options.seed, default=1, help="random seed of the run (default: 1)"
    )
    parser.add_argument(
        "--output", type=options.path_text, default="output/demo", help="folder to write to"
    )
    parser.add_argument(
        "--num-processes",
        type=options.whole(1),
        default=1,
        help="training processes; 2 is slower on two idle cores, but much faster on busy ones "
        "(default: 1; a seed gives the same run only with the same number)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to configs/demo.yaml")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
