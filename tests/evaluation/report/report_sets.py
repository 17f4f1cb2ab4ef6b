"""A dataset of hand-made scores, to report on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tdos_d2.evaluation.component_metrics import score_components
from tdos_d2.evaluation.curve_points import central_range, curve_points
from tdos_d2.evaluation.frames import Spool, check_frame
from tdos_d2.evaluation.pixel_metrics import count_pixels, pixel_metrics
from tdos_d2.evaluation.report.sections import (
    Communicator,
    EvaluatedFrames,
    ScoreDisplay,
    Section,
    make_section,
)

SIZE = (60, 90)
SIZES = (10, 5)
# Share of the OOD object with the largest scores; all known pixels have less, but those of the
# last row of "bad", which have more than any. "empty" has no OOD.
FOUND = {"middling": 0.5, "perfect": 1.0, "bad": 0.25, "empty": 0.0, "good": 0.75}


def write_set(folder: Path) -> tuple[list[dict], list[np.ndarray], list[np.ndarray]]:
    """Records, scores and labels of ``FOUND``; the images are on disk."""
    records, scores, labels = [], [], []
    for i, (name, found) in enumerate(FOUND.items()):
        rng = np.random.default_rng(i)
        label = np.zeros(SIZE, np.uint8)
        label[:4] = 255
        score = rng.random(SIZE)
        if name != "empty":
            label[20:40, 30:70] = 1
            score[20:40, 30 : 30 + int(40 * found)] += 2
        if name == "bad":
            score[-1] = 4
        path = folder / f"{name}.png"
        cv2.imwrite(str(path), np.full((*SIZE, 3), (40, 120, 200), np.uint8))
        records.append({"file_name": str(path), "image_id": f"town/{name}"})
        scores.append(score.astype(np.float32))
        labels.append(label)
    return records, scores, labels


def fill(folder: Path, own: list[int] | None = None, threshold: float = 1.5) -> EvaluatedFrames:
    """The frames ``own`` (default: all), as evaluated."""
    records, scores, labels = write_set(folder)
    own = list(range(len(records))) if own is None else own
    spool = Spool(folder)
    for i in own:
        spool.append(check_frame(scores[i], labels[i], str(i)))
    components = [score_components([frame], threshold, SIZES) for frame in spool]
    return EvaluatedFrames("tiny", spool, [records[i] for i in own], components)


def section_of(
    evaluated: EvaluatedFrames, folder: Path, communicator: Communicator | None = None
) -> Section:
    """The section that a process gets, at the threshold of the best F1 of the whole set."""
    whole = fill(folder).frames
    counted = []

    def count(bins):
        counted[:] = bins, count_pixels(whole, bins)
        return counted[1]

    pixels = pixel_metrics(count, "tiny")
    display = ScoreDisplay("my_score", pixels.threshold, *central_range(*counted))
    curve = curve_points(*counted)
    return make_section(
        evaluated, display, SIZES, curve and (curve, pixels), communicator or Communicator()
    )
