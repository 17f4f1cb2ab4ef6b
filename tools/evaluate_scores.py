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
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tdos_d2 import options
from tdos_d2.errors import UserError
from tdos_d2.evaluation.breakdown import breakdown_rows, count_group, frame_parts
from tdos_d2.evaluation.component_metrics import (
    ComponentScores,
    component_sizes,
    concatenate,
    score_components,
)
from tdos_d2.evaluation.curve_points import central_range, curve_points
from tdos_d2.evaluation.dataset_metrics import KeptCounts, all_metrics, check_defined
from tdos_d2.evaluation.frames import COARSE, Spool, check_frame, coarse
from tdos_d2.evaluation.pixel_metrics import PixelMetrics, count_pixels, pixel_metrics
from tdos_d2.evaluation.score_files import find_score_files, read_score
from tdos_d2.evaluation.tables import FORMATS, format_rows, to_json
from tdos_d2.evaluation.threshold_rules import BEST_RULE, rule_option, threshold_by
from tdos_d2.files import atomic_write, check_output

if TYPE_CHECKING:  # it needs Detectron2, which --help does not
    from tdos_d2.evaluation.report.sections import EvaluatedFrames


def run() -> None:
    """Read, evaluate, print."""
    from detectron2.data import MetadataCatalog

    from tdos_d2.data import get_dicts, register_from_file

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

    count = KeptCounts(partial(count_pixels, spool))
    pixels = pixel_metrics(count, args.dataset)
    rule = args.threshold
    threshold = threshold_by(rule, pixels.threshold, count, count.bins, count.counts)
    frames = tqdm(spool, desc="components", unit="frame", total=len(spool), disable=None)
    components = [score_components([f], threshold, sizes, args.strict) for f in frames]
    evaluated = EvaluatedFrames(args.dataset, spool, records, components)
    result = shown = {
        "dataset": args.dataset,
        "frames": len(spool),
        **all_metrics(pixels, concatenate(components)),
    }
    details = {
        "threshold": threshold,
        "threshold_rule": str(rule),
        "rule": "score > threshold" if args.strict else "score >= threshold",
        "smallest_predicted_component": sizes[0],
        "smallest_true_component": sizes[1],
        "error_bound": pixels.bound,
    }
    _note(
        f"threshold {threshold:.6g} ({rule}; {details['rule']}), components of "
        f"at least {sizes[0]} predicted and {sizes[1]} true pixels"
    )
    if args.bootstrap and not math.isnan(pixels.threshold):
        intervals = _bootstrap(args, spool, components, count)
        details |= {"bootstrap": args.bootstrap, **intervals}
        shown = _with_intervals(result, intervals["intervals"], "markdown")
        result = _with_intervals(result, intervals["intervals"], args.format)
    groups = {}
    if args.breakdown or args.instances:
        groups = _breakdown(args, spool, records, components, threshold, sizes)
    _print(args.format, result, details, groups)
    if args.per_frame:
        rows = list(evaluated.rows(threshold, args.strict))
        with atomic_write(args.per_frame) as file:
            file.write(f"{format_rows(rows, 'csv')}\n".encode())
        _note(f"per frame: {args.per_frame}")
    _write_pictures(args, evaluated, sizes, (pixels, threshold), count, shown)
    check_defined({args.dataset: {"ood": {"AP": pixels.ap}}})


def _breakdown(
    args: argparse.Namespace,
    spool: Spool,
    records: Sequence[Mapping[str, Any]],
    components: Sequence[ComponentScores],
    threshold: float,
    sizes: tuple[int, int],
) -> dict[str, dict[str, float]]:
    from tdos_d2.data.reading import read_values

    if math.isnan(threshold):
        return {}
    files = [None] * len(records)
    if args.instances:
        ids = [str(record.get("image_id", record["file_name"])) for record in records]
        found = find_score_files(args.instances, ids, allow_extra=True)
        files = [found[frame] for frame in ids]
    bar = tqdm(spool, desc="objects", unit="frame", total=len(spool), disable=None)
    parts = []
    for frame, of_frame, file in zip(bar, components, files, strict=True):
        instances = None if file is None else read_values(file, "instances")
        if instances is not None and instances.shape != frame.label.shape:
            raise UserError(f"instances {file} are not of the size of the label")
        parts.append(frame_parts(frame, of_frame, threshold, sizes, args.strict, instances))
    return breakdown_rows(parts, partial(count_group, spool), args.dataset)


def _print(
    form: str,
    result: Mapping[str, Any],
    details: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, float]],
) -> None:
    """The table; of a breakdown one more for each kind of row."""
    if form == "json":
        content = {**result, **details, **({"breakdown": groups} if groups else {})}
        print(to_json(content), flush=True)
        return
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {tuple(result): [result]}
    for name, row in groups.items():
        tables.setdefault(tuple(row), []).append({"of": name, **row})
    # What is written to files afterwards may fail.
    print("\n\n".join(format_rows(rows, form) for rows in tables.values()), flush=True)


def _write_pictures(
    args: argparse.Namespace,
    evaluated: EvaluatedFrames,
    sizes: tuple[int, int],
    pixels_and_threshold: tuple[PixelMetrics, float],
    count: KeptCounts,
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

    pixels, threshold = pixels_and_threshold
    ends = central_range(count.bins, count.counts)
    display = ScoreDisplay(Path(args.scores).resolve().name, threshold, *ends, args.strict)
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
    args: argparse.Namespace, spool: Spool, components: list[ComponentScores], count: KeptCounts
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
        "--threshold", type=rule_option, default=BEST_RULE, metavar="RULE",
        help="threshold of components and instances: best-f1 (default), fpr:0.01 (the lowest with "
        "at most that FPR), tpr:0.95 (the highest with at least that TPR), a number, or a .json "
        "file of tools/calibrate.py",
    )
    parser.add_argument(
        "--breakdown", action="store_true",
        help="also AP of instances (as OoDIS), AUROC and FPR95 of images, and metrics by size and "
        "by place of the anomalies",
    )
    parser.add_argument(
        "--instances", type=options.path_text, metavar="DIR",
        help="PNG files named as the score maps, with a number per true instance, 0 elsewhere "
        "(default: connected components of the labels)",
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
