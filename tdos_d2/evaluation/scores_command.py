"""Implementation of tools/evaluate_scores.py: evaluate OOD score maps of any method."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..data import get_dicts, read_label, register_from_file
from ..data.reading import (
    check_same_size,
    num_known_classes,
    read_classes,
    read_instances,
    read_values,
)
from ..errors import UserError
from ..files import atomic_write, check_output
from .bootstrap import bootstrap
from .breakdown import breakdown_rows, count_group, frame_parts, true_instances
from .component_metrics import (
    ComponentScores,
    component_sizes,
    concatenate,
    score_components,
)
from .curve_points import central_range, curve_points
from .dataset_metrics import KeptCounts, all_metrics, check_defined, pixels_and_threshold
from .frames import (
    COARSE,
    Spool,
    check_frame,
    check_instance_files,
    check_space,
    coarse,
    frame_id,
)
from .open_iou import RULE, FrameClasses, check_class_map, confusion_matrices, open_iou
from .pixel_metrics import PixelMetrics, count_pixels
from .report.page import write_report
from .report.sections import (
    Communicator,
    EvaluatedFrames,
    ScoreDisplay,
    make_section,
    write_overlays,
)
from .score_files import find_map_files, find_score_files, read_score
from .tables import format_rows, to_json
from .threshold_rules import ThresholdRule, parse_rule, threshold_by

_CLASS_ENDINGS = ("_segmentation.npy", ".png")  # the first is of a Fishyscapes pair


def run(args: argparse.Namespace) -> None:
    """Read, evaluate and print, with the options of tools/evaluate_scores.py.

    Raises:
        UserError: an option, the dataset or a score map is invalid.
    """
    try:
        rule = parse_rule(args.threshold)
    except UserError as error:
        raise UserError(f"--threshold: {error}") from error
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
    if len(frames) < len(records):
        raise UserError(f"dataset '{args.dataset}': several frames have one image_id")
    files = find_score_files(args.scores, list(frames), allow_extra=args.allow_extra)
    class_files = _class_files(args, list(frames)) if args.classes else {}
    check_space(tempfile.gettempdir(), records, 7 if class_files else 5)
    kind = FrameClasses, (np.uint8, np.uint8)
    with closing(Spool()) as spool, closing(Spool(None, *kind)) as classes:
        _load(spool, files, frames, metadata)
        for frame, path in class_files.items():
            classes.append(_read_classes(path, frames[frame], metadata))
        _evaluate(args, rule, spool, list(frames.values()), sizes, classes)


def _class_files(args: argparse.Namespace, frames: Sequence[str]) -> dict[str, Path]:
    if not num_known_classes(MetadataCatalog.get(args.dataset)):
        raise UserError(
            f"--classes: the labels of dataset '{args.dataset}' have no classes (class_values), so "
            "there is no open-IoU"
        )
    return find_map_files(
        args.classes, frames, "--classes", _CLASS_ENDINGS, allow_extra=args.allow_extra
    )


def _read_classes(path: Path, record: Mapping[str, Any], metadata: Any) -> FrameClasses:
    is_array = path.suffix.lower() == ".npy"
    predicted = read_score(path) if is_array else read_values(path, "class map")
    label = record["sem_seg_file_name"]
    true = read_classes(label, metadata, record.get("region_mask_file_name"))
    if predicted.ndim == 2:
        check_same_size(f"class map {path}", predicted, f"the label {label}", true)
    return check_class_map(true, predicted, num_known_classes(metadata), f"class map {path}")


def _load(
    spool: Spool, files: Mapping[str, Path], frames: Mapping[str, Any], metadata: Any
) -> None:
    """Read scores and labels of all frames into ``spool``."""
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
        if score.ndim == 2:
            check_same_size(str(path), score, f"the label {record['sem_seg_file_name']}", label)
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
    rule: ThresholdRule,
    spool: Spool,
    records: Sequence[Mapping[str, Any]],
    sizes: tuple[int, int],
    classes: Spool[FrameClasses],
) -> None:
    """Evaluate and write what is requested; ``classes`` is empty without ``--classes``."""
    pixels, threshold, count = pixels_and_threshold(spool, rule, args.dataset, args.strict)
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
    if (args.breakdown or args.instances) and not math.isnan(threshold):
        details["true_instances"], groups = _breakdown(
            args, spool, records, components, threshold, sizes
        )
        _note(details["true_instances"])
    if args.classes and not math.isnan(pixels.threshold):
        own, rows = _open_iou(args, spool, classes, pixels.threshold, threshold, count)
        groups |= rows
        details["open_threshold"] = own
        _note(f"open: threshold {own:.6g} ({RULE}); open_at_threshold: {threshold:.6g} ({rule})")
    _print(args.format, result, details, groups)
    if args.per_frame:
        rows = list(evaluated.rows(threshold, args.strict))
        with atomic_write(args.per_frame) as file:
            file.write(f"{format_rows(rows, 'csv')}\n".encode())
        _note(f"per frame: {args.per_frame}")
    ends = central_range(count.bins, count.counts)
    name = Path(args.scores).resolve().name
    display = ScoreDisplay(name, threshold, *ends, args.strict, str(rule))
    _write_pictures(args, evaluated, sizes, display, pixels, count, shown)
    check_defined({args.dataset: {"ood": {"AP": pixels.ap}}})


def _breakdown(
    args: argparse.Namespace,
    spool: Spool,
    records: Sequence[Mapping[str, Any]],
    components: Sequence[ComponentScores],
    threshold: float,
    sizes: tuple[int, int],
) -> tuple[str, dict[str, dict[str, float]]]:
    """What the true instances are, and the rows of the breakdown."""
    masks = bool(args.instances) or check_instance_files(records, args.dataset)
    files = [record.get("instance_file_name") for record in records]
    if args.instances:
        ids = [frame_id(record) for record in records]
        files = find_map_files(args.instances, ids, "--instances", allow_extra=True).values()
    bar = tqdm(spool, desc="objects", unit="frame", total=len(spool), disable=None)
    parts = []
    for frame, of_frame, file, record in zip(bar, components, files, records, strict=True):
        label = record["sem_seg_file_name"]
        instances = read_instances(file, label, frame.label) if masks else None
        parts.append(frame_parts(frame, of_frame, threshold, sizes, args.strict, instances))
    source = true_instances(parts, masks, "--instances" if args.instances else "the dataset")
    return source, breakdown_rows(parts, partial(count_group, spool), args.dataset)


def _open_iou(
    args: argparse.Namespace,
    spool: Spool,
    classes: Spool[FrameClasses],
    best_f1: float,
    threshold: float,
    count: KeptCounts,
) -> tuple[float, dict[str, dict[str, float]]]:
    """Open-IoU at the threshold of its definition, which is also returned, and at ``threshold``."""
    num_known = num_known_classes(MetadataCatalog.get(args.dataset))
    again = partial(count_pixels, spool)  # ``count`` keeps the counts of the other metrics
    own = threshold_by(RULE, best_f1, again, count.bins, count.counts, args.strict)
    rows = {}
    for name, limit in (("open", own), ("open_at_threshold", threshold)):
        frames = zip(spool, classes, strict=True)
        rows[name] = open_iou(confusion_matrices(frames, limit, num_known, args.strict))
    return own, rows


def _print(
    form: str,
    result: Mapping[str, Any],
    details: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, float]],
) -> None:
    """Print the table, and one for each kind of row of a breakdown."""
    if form == "json":
        content = {**result, **details, **({"breakdown": groups} if groups else {})}
        print(to_json(content), flush=True)
        return
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {tuple(result): [result]}
    for name, row in groups.items():
        tables.setdefault(tuple(row), []).append({"of": name, **row})
    # Flushed now, since writing the files afterwards may fail.
    print("\n\n".join(format_rows(rows, form) for rows in tables.values()), flush=True)


def _write_pictures(
    args: argparse.Namespace,
    evaluated: EvaluatedFrames,
    sizes: tuple[int, int],
    display: ScoreDisplay,
    pixels: PixelMetrics,
    count: KeptCounts,
    row: Mapping[str, Any],
) -> None:
    """Write the overlays and the report, as requested; ``row`` is the report's table."""
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
    frames = tqdm(spool, desc="bootstrap", unit="frame", total=len(spool), disable=None)
    found = bootstrap(
        frames, components, count.bins, count.counts, number=args.bootstrap, seed=args.seed
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
