#!/usr/bin/env python
"""Evaluate the OOD score maps of any method on a registered dataset.

    python tools/evaluate_scores.py --dataset road_anomaly --scores my_scores/
    python tools/evaluate_scores.py --dataset smiyc_anomalytrack_val --allow-extra \\
        --scores outputs/anomaly_p/my_method/AnomalyTrack-all --bootstrap 1000 --format markdown

The score map of frame a/b (path of its image below the dataset's image folder, without extension)
has the size of the image, larger = more anomalous, and is the file SCORES/a/b with the extension
.npy, .npz, .h5, .hdf5 (dataset "value") or .png (16 bits; offset + step * value if its text chunks
have these two). SCORES/b is also found if no two frames share the name, and so are b_raw.png and
b_raw.npy of tools/predict.py. Every frame needs a score map. Scores are compared as float32, over
all pixels of the dataset.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options


def run() -> None:
    """Evaluate with the options of the command line."""
    args = _parser().parse_args()
    from tdos_d2.evaluation import scores_command

    scores_command.run(args)


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a registered OOD dataset")
    parser.add_argument(
        "--scores", type=options.path_text, required=True, help="folder of the score maps"
    )
    parser.add_argument(
        "--register", type=options.path_text, metavar="FILE.yaml",
        help="file with custom OOD datasets, as DATASETS.REGISTER",
    )
    formats = ("table", "json", "csv", "markdown", "latex")
    parser.add_argument("--format", choices=formats, default="table")
    parser.add_argument(
        "--per-frame", type=options.path, metavar="FILE.csv", help="metrics of each frame"
    )
    parser.add_argument(
        "--report", type=options.path, metavar="DIR",
        help="write a report with curves and frames to DIR/index.html",
    )
    parser.add_argument(
        "--show-dir", type=options.path, metavar="DIR", help="write a visualization of each frame"
    )
    parser.add_argument(
        "--bootstrap",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="95 %% confidence intervals from N bootstrap samples of the frames, such as 1000",
    )
    parser.add_argument(
        "--seed", type=options.seed, default=0, help="seed of the bootstrap (default: 0)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="threshold with score > threshold, as the official tool (default: >=, as the curves)",
    )
    parser.add_argument(
        "--protocol",
        choices=("anomaly", "obstacle"),
        help="smallest component sizes of this protocol instead of the dataset's",
    )
    parser.add_argument(
        "--threshold", default="best-f1", metavar="RULE",
        help="threshold of components and instances: best-f1 (default), fpr:0.01 (the lowest with "
        "at most that FPR), tpr:0.95 (the highest with at least that TPR), a number, or a .json "
        "file such as CHECKPOINT.calibration.json of tools/calibrate.py",
    )
    parser.add_argument(
        "--breakdown", action="store_true",
        help="also AP of instances (as OoDIS), AUROC and FPR95 of images, and metrics by size and "
        "by place of the anomalies",
    )
    parser.add_argument(
        "--instances", type=options.path_text, metavar="DIR",
        help="PNG files named as the score maps, with a number per true instance, 0 elsewhere "
        "(default: the dataset's instance masks; if it has none, connected components of the "
        "labels)",
    )
    parser.add_argument(
        "--classes", type=options.path_text, metavar="DIR",
        help="class maps of the method for open-IoU, which labels with classes allow, such as "
        "those of camvid_ood: PNG files named as the score maps, with the predicted train id of "
        "each pixel in one channel, or _segmentation.npy of Fishyscapes pairs",
    )
    parser.add_argument(
        "--allow-extra",
        action="store_true",
        help="ignore score files that belong to no frame, such as those of another split",
    )
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
