"""``benchmark.py video``: what smoothing and alarms do against flicker, and what they cost.

Without --config-file: drawn scenes that a camera drives through, with known OOD objects and a
noisy score. Each way is measured at the threshold at which it finds --recall of the objects (per
frame), so that none is steadier because it shows less or more.
With --config-file and --images: a model on a folder of consecutive frames, all ways at one
threshold; --labels has the OOD objects, if there are any.

  recall      share of the frames with an object in which a box is at it: half of the box or more
              lies in the object's box, or their IoU is 0.1 or more
  switches    of an object from found to not found and back, per object and second
  delay       frames from the first with the object to the first in which it is found: median
  false       boxes per frame that are at no object
  unsteady    switches of the whole picture from "something" to "nothing" and back, per second
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tdos_commands import options

from .common import hardware

Box = tuple[float, float, float, float]
METHODS = ("off", "ema", "flow")
_THRESHOLDS = np.arange(1.0, 2.61, 0.2)  # for the drawn scenes
_LEAST = 100  # pixels of their objects


def add_command(commands: Any) -> None:
    """Add ``video`` to the parser's commands."""
    command = commands.add_parser(
        "video",
        help="flicker of objects in videos, with and without smoothing and alarms",
        description=__doc__,
    )
    command.set_defaults(run=run)
    add = command.add_argument
    add("--scenes", type=options.whole(1), default=10, metavar="N", help="drawn scenes")
    add("--frames", type=options.whole(2), default=75, metavar="N", help="of each, 25 a second")
    add("--seed", type=options.seed, default=0)
    add("--recall", type=options.number(0.01, 0.99), default=0.8)
    add("--alarm", type=options.whole(1), nargs=3, default=(3, 5, 5), metavar=("N", "M", "K"))
    add("--config-file", type=options.config_file, metavar="FILE")
    add("--images", type=options.path, metavar="DIR", help="frames of one drive, in their order")
    add("--only", default="", metavar="TEXT", help="those with this in their name")
    add("--fps", type=options.number(0.01), default=25.0)
    add("--labels", type=options.path, metavar="DIR", help="label images, called as the frames")
    add("--ood-label", type=options.whole(0, 255), default=12, metavar="N")
    add("--threshold", type=options.number(), help="default: that of the checkpoint")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    from tdos_d2.inference.tracking import AlarmRule

    rule = AlarmRule(*args.alarm)
    print(f"{hardware('numpy', 'cv2', 'scipy')}, norfair-enough {_version('norfair-enough')}")
    print(f"alarm {rule.on} of {rule.of}, off after {rule.off}\n")
    if args.config_file:
        if not args.images:
            sys.exit("error: --config-file needs --images")
        _measure_model(args, rule)
    else:
        _measure_scenes(args, rule)


class Tally:
    """What one way found, over all drives.

    Args:
        rate: frames per second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._found: dict[Any, list[bool]] = defaultdict(list)
        self._anything: dict[int, list[bool]] = defaultdict(list)
        self._false = 0

    def add(self, drive: int, objects: dict[int, Box], boxes: Sequence[Box]) -> None:
        """A frame with its true objects and what was found."""
        there = at_object(list(objects.values()), boxes)
        for number, row in zip(objects, there, strict=True):
            self._found[drive, number].append(bool(row.any()))
        self._false += int((~there.any(0)).sum())
        self._anything[drive].append(bool(len(boxes)))

    def result(self) -> dict[str, float]:
        """The measures; NaN where there are no objects."""
        histories = list(self._found.values())
        frames = sum(map(len, self._anything.values()))
        seen = sum(map(len, histories))
        first = [history.index(True) for history in histories if any(history)]
        return {
            "recall": sum(map(sum, histories)) / seen if seen else float("nan"),
            "switches": _switches(histories, self.rate),
            "delay": statistics.median(first) if first else float("nan"),
            "never": sum(not any(history) for history in histories),
            "false": self._false / frames,
            "unsteady": _switches(list(self._anything.values()), self.rate),
        }


class Ways:
    """All ways at some thresholds, on the same frames: per filter, objects and alarms.

    Args:
        thresholds: of the score.
        rule: of the alarm.
        rate: frames per second.
    """

    def __init__(self, thresholds: Sequence[float], rule: Any, rate: float, min_area: int = 0):
        self.thresholds, self.rule, self.min_area = thresholds, rule, min_area
        keys = itertools.product(METHODS, ("objects", "alarms"), thresholds)
        self.tallies = {key: Tally(rate) for key in keys}
        self.seconds: dict[str, float] = defaultdict(float)

    def drive(
        self, number: int, frames: Iterable[tuple[np.ndarray, np.ndarray, dict[int, Box]]]
    ) -> None:
        """A drive: image (H, W, 3) BGR, score (H, W), true objects by number."""
        from tdos_d2.inference.objects import default_min_area, find_objects
        from tdos_d2.inference.temporal import score_filter
        from tdos_d2.inference.tracking import ObjectTracker

        filters = {method: score_filter(method) for method in METHODS}
        keys = itertools.product(METHODS, self.thresholds)
        trackers = {key: ObjectTracker(self.rule) for key in keys}
        for i, (image, raw, objects) in enumerate(frames):
            smallest = self.min_area or default_min_area(raw.shape)
            for method, smooth in filters.items():
                began = time.process_time()
                score = raw if smooth is None else smooth(image, raw)
                self.seconds[method] += time.process_time() - began
                for threshold in self.thresholds:
                    found, _ = find_objects(score, threshold, min_area=smallest)
                    entries = [{"box": o.box, "max_score": o.max_score} for o in found]
                    began = time.process_time()
                    tracker = trackers[method, threshold]
                    tracker(i, float(i), image, entries)
                    self.seconds["tracks"] += time.process_time() - began
                    on = [t.box for t in tracker.active.values() if t.alarm_frame is not None]
                    boxes = [entry["box"] for entry in entries]
                    self.tallies[method, "objects", threshold].add(number, objects, boxes)
                    self.tallies[method, "alarms", threshold].add(number, objects, on)


def at_object(objects: Sequence[Box], boxes: Sequence[Box]) -> np.ndarray:
    """Which of M boxes are at which of N objects, (N, M) bool: half of the box or more lies in the
    object's box (it may be found in parts), or their IoU is 0.1 or more (and with what is near)."""
    one = np.array(objects, float).reshape(-1, 1, 4)
    two = np.array(boxes, float).reshape(1, -1, 4)
    low, high = np.maximum(one[..., :2], two[..., :2]), np.minimum(one[..., 2:], two[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, two)]
    return (shared >= 0.5 * areas[1]) | (shared >= 0.1 * (areas[0] + areas[1] - shared))


def true_boxes(objects: np.ndarray, least: int) -> dict[int, Box]:
    """Boxes of the objects (H, W), by number, that show at least so many pixels."""
    boxes = {}
    for number in np.unique(objects[objects > 0]):
        rows, columns = np.nonzero(objects == number)
        if len(rows) >= least:
            boxes[int(number)] = (
                float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0
            )  # fmt: skip
    return boxes


def _measure_scenes(args: argparse.Namespace, rule: Any) -> None:
    from .moving_scenes import RATE, SIZE, moving_scene

    ways = Ways([float(t) for t in _THRESHOLDS], rule, RATE, _LEAST)
    for number in range(args.scenes):
        scene = moving_scene(args.seed, number, args.frames)
        ways.drive(number, ((f.image, f.score, true_boxes(f.objects, _LEAST)) for f in scene))
    print(f"{args.scenes} scenes of {args.frames} frames, {SIZE[1]}x{SIZE[0]}, seed {args.seed}, "
          f"at a recall of {args.recall:g}")  # fmt: skip
    rows = []
    for method, kind in itertools.product(METHODS, ("objects", "alarms")):
        results = {t: ways.tallies[method, kind, t].result() for t in ways.thresholds}
        enough = [t for t, result in results.items() if result["recall"] >= args.recall]
        best = max(results, key=lambda t: results[t]["recall"])
        chosen = max(enough) if enough else best
        rows.append({"smoothing": method, "what": kind, "threshold": chosen, **results[chosen]})
    _print(rows)
    _print_time(ways, args.scenes * args.frames)


def _measure_model(args: argparse.Namespace, rule: Any) -> None:
    from tdos_d2.data import read_image
    from tdos_d2.data.reading import read_values
    from tdos_d2.inference import OODPredictor
    from tdos_d2.inference.sources import IMAGES, natural_order
    from tdos_d2.inference.thresholds import choose_threshold
    from tdos_d2.loading.config_files import load_config, use_shipped_weights

    cfg = load_config(args.config_file, args.opts)
    use_shipped_weights(cfg, args.config_file)
    predictor = OODPredictor(cfg)
    threshold = choose_threshold(predictor, args.threshold)
    if threshold.value is None:
        sys.exit(f"error: {threshold.note}")
    paths = [p for p in args.images.iterdir() if p.suffix.lower() in IMAGES and args.only in p.name]
    if not paths:
        named = f" with '{args.only}' in its name" if args.only else ""
        sys.exit(f"error: no image in {args.images}{named}")
    paths.sort(key=lambda path: natural_order(path.name))

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, Box]]]:
        for path in paths:
            image = read_image(path, "BGR")
            objects: dict[int, Box] = {}
            if args.labels:
                label = read_values(args.labels / f"{path.stem}.png", "label")
                objects = true_boxes((label == args.ood_label).astype(int), 1)
            yield image, predictor(image)["ood_score"], objects

    ways = Ways([threshold.value], rule, args.fps, threshold.min_area or 0)
    ways.drive(0, frames())
    print(f"{threshold.note}\n{len(paths)} frames of {args.images.name}, {args.fps:g} per second")
    _print([
        {"smoothing": method, "what": kind, "threshold": t, **tally.result()}
        for (method, kind, t), tally in ways.tallies.items()
    ])  # fmt: skip
    _print_time(ways, len(paths))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from tdos_d2.evaluation.tables import format_rows

    digits = {"recall": 3, "switches": 2, "delay": 1, "false": 2, "unsteady": 2, "threshold": 3}
    shown = [
        {k: f"{v:.{digits[k]}f}" if k in digits and v == v else v for k, v in row.items()}
        for row in rows
    ]
    print(format_rows(shown, "markdown"))


def _print_time(ways: Ways, frames: int) -> None:
    trackers = len(METHODS) * len(ways.thresholds)
    each = {"tracks": ways.seconds["tracks"] / trackers}
    each |= {method: ways.seconds[method] for method in METHODS[1:]}
    parts = [f"{name} {1000 * seconds / frames:.2f}" for name, seconds in each.items()]
    print(f"\nCPU milliseconds per frame: {', '.join(parts)}")


def _switches(histories: Sequence[Sequence[bool]], rate: float) -> float:
    """Changes per second; what comes before the first time that something is on does not count."""
    changes = seconds = 0.0
    for history in histories:
        begun = list(history)[history.index(True) :] if True in history else []
        changes += sum(a != b for a, b in itertools.pairwise(begun))
        seconds += len(history) / rate
    return changes / seconds if seconds else float("nan")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
