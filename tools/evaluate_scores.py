#!/usr/bin/env python
"""Evaluate the OOD score maps of any method on a registered dataset.

    python tools/evaluate_scores.py --dataset road_anomaly --scores my_scores/
    python tools/evaluate_scores.py --dataset smiyc_anomalytrack_val --allow-extra \\
        --scores outputs/anomaly_p/my_method/AnomalyTrack-all --bootstrap 1000 --format markdown

The score map of frame a/b (path of its image below the dataset's image folder, without extension)
has the size of the image, larger = more anomalous, and is the file SCORES/a/b with the extension
.npy, .npz, .h5, .hdf5 (dataset "value") or .png (16 bits; offset + step * value if its text chunks
have these two). SCORES/b is found, too, if no two frames share it, and so are b_raw.png and
b_raw.npy of tools/predict.py. Every frame needs a score map. Scores are compared as float32, over
all pixels of the dataset.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tdos_d2 import options
from tdos_d2.evaluation.component_metrics import (
    ComponentScores,
    component_sizes,
    concatenate,
    score_components,
)
from tdos_d2.evaluation.curve_points import central_range, curve_points
from tdos_d2.evaluation.dataset_metrics import all_metrics, check_defined
from tdos_d2.evaluation.frames import COARSE, Spool, check_frame, coarse
from tdos_d2.evaluation.pixel_metrics import KeyBins, PixelMetrics, count_pixels, pixel_metrics
from tdos_d2.evaluation.score_files import find_score_files, read_score
from tdos_d2.evaluation.tables import FORMATS, format_rows, to_json
from tdos_d2.files import atomic_write, check_output

if TYPE_CHECKING:  # it needs Detectron2, which --help does not
    from tdos_d2.evaluation.report.sections import EvaluatedFrames


class Counter:
    """Counts the pixels of a dataset for ``pixel_metrics``, and keeps the last counts."""

    def __init__(self, frames: Spool) -> None:
        self._frames = frames
        self.bins, self.counts = KeyBins.coarse(), np.zeros((2, 0))

    def __call__(self, bins: KeyBins) -> np.ndarray:
        self.bins, self.counts = bins, count_pixels(self._frames, bins)
        return self.counts


def run() -> None:
    """Read, evaluate, print."""
    from detectron2.data import MetadataCatalog

    from tdos_d2.data import get_dicts, register_from_file
    from tdos_d2.errors import UserError

    args = _parser().parse_args()
    if args.per_frame is not None:
        check_output(args.per_frame, "--per-frame")
    for option, folder in (("--report", args.report), ("--show-dir", args.show_dir)):
        if folder is not None:
            check_output(folder, option, folder=True)
    if args.register:
        register_from_file(args.register)
    records = get_dicts(args.dataset)
    metadata = MetadataCatalog.get(args.dataset)
    if metadata.get("evaluator_type") != "ood":
        raise UserError(f"dataset '{args.dataset}' is no OOD set")
    if any("sem_seg_file_name" not in record for record in records):
        raise UserError(f"dataset '{args.dataset}' has frames without public labels")
    sizes = component_sizes(
        args.protocol or metadata.get("protocol", "anomaly"),
        metadata.get("min_pred") if args.protocol is None else None,
        metadata.get("min_gt") if args.protocol is None else None,
    )
    frames = {str(r.get("image_id", r["file_name"])): r for r in records}
    files = find_score_files(args.scores, list(frames), allow_extra=args.allow_extra)
    with closing(Spool()) as spool:
        _load(spool, files, frames, metadata)
        _evaluate(args, spool, list(frames.values()), sizes)


def _load(
    spool: Spool, files: Mapping[str, Path], frames: Mapping[str, Any], metadata: Any
) -> None:
    """Read scores and labels of all frames into ``spool``."""
    from tdos_d2.data import read_label
    from tdos_d2.errors import UserError

    types, plain, scaled = set(), [], []
    for frame, path in tqdm(files.items(), desc="reading", unit="frame", disable=None):
        score = read_score(path)
        if coarse(score):
            types.add(score.dtype.name)
        if path.suffix.lower() == ".png":
            (plain if score.dtype.kind == "u" else scaled).append(path)
        if plain and scaled:
            raise UserError(
                f"scores: {scaled[0]} has offset and step in its text, {plain[0]} has not: their "
                "values cannot be compared"
            )
        record = frames[frame]
        mask = record.get("region_mask_file_name")
        label = read_label(record["sem_seg_file_name"], metadata, mask)
        spool.append(check_frame(score, label, str(path)))
    if types:
        _note(f"score maps of {', '.join(sorted(types))}: {COARSE}")
    if plain:
        _note(
            f"{len(plain)} PNG files have no offset and step in their text, first {plain[0]}: "
            "their values are compared as they are, and must share one scale"
        )


def _evaluate(
    args: argparse.Namespace,
    spool: Spool,
    records: Sequence[Mapping[str, Any]],
    sizes: tuple[int, int],
) -> None:
    from tdos_d2.evaluation.report.sections import EvaluatedFrames

    count = Counter(spool)
    pixels = pixel_metrics(count, args.dataset)
    frames = tqdm(spool, desc="components", unit="frame", total=len(spool), disable=None)
    components = [score_components([f], pixels.threshold, sizes, args.strict) for f in frames]
    evaluated = EvaluatedFrames(args.dataset, spool, records, components)
    result = shown = {
        "dataset": args.dataset,
        "frames": len(spool),
        **all_metrics(pixels, concatenate(components)),
    }
    details = {
        "threshold": pixels.threshold,
        "rule": "score > threshold" if args.strict else "score >= threshold",
        "smallest_predicted_component": sizes[0],
        "smallest_true_component": sizes[1],
        "error_bound": pixels.bound,
    }
    _note(
        f"threshold of the best pixel F1 {pixels.threshold:.6g} ({details['rule']}), components of "
        f"at least {sizes[0]} predicted and {sizes[1]} true pixels"
    )
    if args.bootstrap and not math.isnan(pixels.threshold):
        intervals = _bootstrap(args, spool, components, count)
        details |= {"bootstrap": args.bootstrap, **intervals}
        shown = _with_intervals(result, intervals["intervals"], "markdown")
        result = _with_intervals(result, intervals["intervals"], args.format)
    print(
        to_json({**result, **details})
        if args.format == "json"
        else format_rows([result], args.format),
        flush=True,  # what is written below may fail
    )
    if args.per_frame:
        rows = list(evaluated.rows(pixels.threshold, args.strict))
        with atomic_write(args.per_frame) as file:
            file.write(f"{format_rows(rows, 'csv')}\n".encode())
        _note(f"per frame: {args.per_frame}")
    _write_pictures(args, evaluated, sizes, pixels, count, shown)
    check_defined({args.dataset: {"ood": {"AP": pixels.ap}}})


def _write_pictures(
    args: argparse.Namespace,
    evaluated: EvaluatedFrames,
    sizes: tuple[int, int],
    pixels: PixelMetrics,
    count: Counter,
    row: Mapping[str, Any],
) -> None:
    """Write the overlays and the report, as requested; ``row`` is the report's table."""
    from tdos_d2.evaluation.report.page import write_report
    from tdos_d2.evaluation.report.sections import (
        Communicator,
        ScoreDisplay,
        make_section,
        write_overlays,
    )

    ends = central_range(count.bins, count.counts)
    display = ScoreDisplay(Path(args.scores).resolve().name, pixels.threshold, *ends, args.strict)
    if args.show_dir is not None:
        write_overlays(evaluated, display, args.show_dir)
        _note(f"overlays: {args.show_dir}")
    if args.report is not None:
        curve = curve_points(count.bins, count.counts)
        curve = curve and (curve, pixels)
        section = make_section(evaluated, display, sizes, curve, Communicator())
        subject = f"scores in {args.scores}"
        _note(f"report: {write_report(args.report, subject, [[row]], [section])}")


def _bootstrap(
    args: argparse.Namespace, spool: Spool, components: list[ComponentScores], count: Counter
) -> dict[str, Any]:
    from tdos_d2.evaluation.bootstrap import bootstrap

    frames = tqdm(spool, desc="bootstrap", unit="frame", total=len(spool), disable=None)
    found = bootstrap(
        frames, components, count.bins, count.counts, replicates=args.bootstrap, seed=args.seed
    )
    worst = ", ".join(f"{name} {error:.3f}" for name, error in found.errors.items() if error)
    _note(
        f"95 % intervals of {args.bootstrap} bootstrap samples of {len(spool)} frames; their ends "
        f"are exact to {worst or 'the last digit'} points; components at the one threshold"
    )
    if found.undefined:
        _note(f"{found.undefined} samples had no OOD or no known pixel and are left out")
    return {"intervals": found.intervals, "interval_error_bounds": found.errors}


def _with_intervals(
    result: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]], form: str
) -> dict[str, Any]:
    """The row with its intervals: in separate columns for CSV, else in the cells."""
    row: dict[str, Any] = {}
    for name, value in result.items():
        row[name] = value
        if name in intervals and form == "csv":
            row[f"{name}_low"], row[f"{name}_high"] = intervals[name]
        elif name in intervals and form != "json" and not math.isnan(value):
            low, high = intervals[name]
            row[name] = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return row


def _note(text: str) -> None:
    print(text, file=sys.stderr)


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
    parser.add_argument("--format", choices=FORMATS, default="table")
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
        "--allow-extra",
        action="store_true",
        help="ignore score files that belong to no frame, such as those of another split",
    )
    return parser


if __name__ == "__main__":
    from tdos_d2.engine import exit_with_one_line

    exit_with_one_line(run)
