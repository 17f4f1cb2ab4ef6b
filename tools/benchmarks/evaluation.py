"""``benchmark.py evaluation``: speed of the OOD metrics.

Synthetic frames of 2048x1024 with 60 true components each.
  pixel metrics       against scikit-learn's average_precision_score and roc_curve on the
                      concatenated arrays
  component metrics   against scipy.ndimage.label and one full-image mask per component
  all seven metrics   evaluate_scores, seconds per frame

Metrics that differ from those of the references are an error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from tdos_commands import options

from .common import hardware, timed

COMPONENTS = 60
TOLERANCE = 0.01  # largest difference of a metric from the references', in percentage points
Frames = list[tuple[np.ndarray, np.ndarray]]


def add_command(commands: Any) -> None:
    """Add ``evaluation`` to the parser's commands."""
    command = commands.add_parser(
        "evaluation",
        help="speed of the OOD metrics",
        description=__doc__,
    )
    command.set_defaults(run=run)
    command.add_argument("--frames", type=options.whole(1), default=30)
    command.add_argument("--size", type=options.image_size, default=(2048, 1024), metavar="WxH")
    command.add_argument(
        "--reference-frames",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="compare pixel metrics on N frames only, where memory is short (default: all)",
    )
    command.add_argument(
        "--component-frames",
        type=options.whole(1),
        default=5,
        metavar="N",
        help="compare component metrics on the first N frames (default: 5; time is per frame)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure, compare and print."""
    from tdos_d2.evaluation import evaluate_scores
    from tdos_d2.evaluation.component_metrics import component_metrics, score_components
    from tdos_d2.evaluation.pixel_metrics import count_pixels, pixel_metrics
    from tdos_d2.evaluation.tables import format_rows

    width, height = args.size
    print(f"{hardware('numpy', 'cv2', 'sklearn', 'scipy')}\n")  # imports what is timed below
    frames = list(synthetic_frames(args.frames, (height, width)))
    few = frames[: args.reference_frames or len(frames)]
    sizes = (50, 10)
    evaluate_scores(frames[:1])  # first calls start threads and load what is needed
    mask_per_component(frames[:1], 2.0, sizes)
    ours, pixels = timed(lambda: pixel_metrics(partial(count_pixels, checked(few)), "synthetic"))
    theirs, reference = timed(lambda: sklearn_metrics(few))
    rows = [_row("pixel metrics", "scikit-learn", len(few), ours, theirs, 10)]
    differences = np.abs(np.subtract((pixels.ap, pixels.auroc, pixels.fpr95), reference))

    few = frames[: args.component_frames]
    ours, scores = timed(lambda: score_components(checked(few), pixels.threshold, sizes))
    theirs, masks = timed(lambda: mask_per_component(few, pixels.threshold, sizes))
    rows.append(_row("component metrics", "mask per component", len(few), ours, theirs, 30))
    expected = component_metrics(masks)
    components = [(v, expected[k]) for k, v in component_metrics(scores).items()]
    # Small frames may have no component that counts: NaN on both sides.
    differences = [*differences, *(abs(a - b) for a, b in components if a == a or b == b)]

    start = time.perf_counter()
    seconds, _ = timed(lambda: evaluate_scores(frames, "obstacle"))
    wall = (time.perf_counter() - start) / len(frames)
    print(f"{width}x{height}, {COMPONENTS} true components per frame; CPU seconds per frame\n")
    print(format_rows(rows, "table"))
    difference = np.max(differences)
    print(f"\nlargest difference of a metric: {difference:.4f} points")
    print(
        f"all seven metrics, {len(frames)} frames: {wall:.3f} s per frame, "
        f"{seconds / len(frames):.3f} s of CPU time (goal: 0.3)"
    )
    if not difference <= TOLERANCE:  # NaN is no agreement
        sys.exit(f"error: metrics differ by {difference:.4f} points, more than {TOLERANCE}")


def _row(
    what: str, other: str, frames: int, ours: float, theirs: float, goal: int
) -> dict[str, Any]:
    return {
        "what": what,
        "frames": frames,
        "tdos_d2": f"{ours / frames:.3f}",
        "reference": other,
        "seconds": f"{theirs / frames:.3f}",
        "ratio": f"{theirs / ours:.1f}",
        "goal": f">= {goal}",
    }


def synthetic_frames(number: int, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(score (H, W) float32, label (H, W) uint8): ellipses on a grid, most of them found."""
    import cv2

    height, width = size
    rng = np.random.default_rng(0)
    rows, columns = 6, COMPONENTS // 6
    for _ in range(number):
        label, seen = np.zeros((2, height, width), np.uint8)
        for i in range(COMPONENTS):
            cell_y, cell_x = height / rows, width / columns
            centre = (i % columns + 0.5) * cell_x, (i // columns + 0.5) * cell_y
            axes = rng.uniform(0.1, 0.35, 2) * (cell_x, cell_y)
            shift = rng.uniform(-0.1, 0.1, 2) * (cell_x, cell_y)
            for image, middle in ((label, centre), (seen, centre + shift)):
                if image is label or rng.random() < 0.85:
                    box = tuple(middle), tuple(2 * axes), float(rng.uniform(0, 180))
                    cv2.ellipse(image, box, 1, -1)
        label[: height // 16] = 255
        noise = rng.standard_normal((height, width), np.float32)
        yield 4 * seen + 0.5 * cv2.GaussianBlur(noise, (0, 0), 2) + 0.2 * noise, label


def checked(frames: Frames) -> Any:
    """The frames as metrics take them; checking them counts."""
    from tdos_d2.evaluation.frames import CheckedFrames

    return CheckedFrames(frames)


def sklearn_metrics(frames: Frames) -> tuple[float, float, float]:
    """AP, AUROC and FPR95 in percent of the concatenated arrays."""
    from sklearn.metrics import auc, average_precision_score, roc_curve

    score = np.concatenate([score[label < 255] for score, label in frames])
    label = np.concatenate([label[label < 255] for _, label in frames])
    fpr, tpr, _ = roc_curve(label, score)
    fpr95 = fpr[np.argmax(tpr >= 0.95)]
    return 100 * average_precision_score(label, score), 100 * auc(fpr, tpr), 100 * fpr95


def mask_per_component(frames: Frames, threshold: float, sizes: tuple[int, int]) -> Any:
    """sIoU and PPV of SegmentMeIfYouCan's protocol as written down, a full mask per component."""
    from scipy import ndimage

    from tdos_d2.evaluation.component_metrics import ComponentScores

    siou, ppv = [], []
    for score, label in frames:
        label = label.copy()
        predicted = (score >= np.float32(threshold)) & (label < 255)
        true_map, num_true = ndimage.label(label == 1, np.ones((3, 3)))
        pred_map, num_pred = ndimage.label(predicted, np.ones((3, 3)))
        for k in range(1, num_pred + 1):
            mask = pred_map == k
            if mask.sum() < sizes[0]:
                pred_map[mask] = 0
        for k in range(1, num_true + 1):
            mask = true_map == k
            if mask.sum() < sizes[1]:
                label[mask] = 255
        inside = label < 255
        true_map, pred_map = true_map * inside, pred_map * inside
        for k in set(np.unique(true_map)) - {0}:
            mask = true_map == k
            touching = np.isin(pred_map, list(set(np.unique(pred_map[mask])) - {0}))
            others = (true_map > 0) & ~mask & touching
            siou.append((mask & touching).sum() / ((mask | touching) & ~others).sum())
        for k in set(np.unique(pred_map)) - {0}:
            mask = pred_map == k
            ppv.append((true_map[mask] > 0).mean())
    return ComponentScores(np.array(siou), np.array(ppv))
