"""A dataset's section of a report, computed from its scores, and pictures of all its frames.

Each process reads its scores from disk again, frame by frame: memory grows only by one row of
numbers per frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ...data import read_image
from ...errors import UserError
from ...files import atomic_write
from ...labels import VOID
from ...visualization.drawing import detection_picture, score_picture, shrink
from ..component_metrics import ComponentScores
from ..curve_points import CurvePoints, Histogram, histogram
from ..dataset_metrics import frame_metrics
from ..frames import Frame, Spool, frame_id
from ..pixel_metrics import PixelMetrics
from ..threshold_rules import BEST_RULE

# Best and worst frames in a report, and how wide their pictures are, in pixels.
_SHOWN, _WIDTH = 3, 800
# Smaller frames are enlarged, so that their scale and legend can be read.
_SMALLEST_WIDTH = 400


class ScoreDisplay(NamedTuple):
    """How scores are drawn; the same for all frames of a dataset.

    Attributes:
        score: name of the score.
        threshold: score >= threshold is predicted OOD; NaN: no predictions.
        low, high: scores of the darkest and the brightest colour.
        strict: predict score > threshold.
        rule: what chose the threshold.
    """

    score: str
    threshold: float
    low: float
    high: float
    strict: bool = False
    rule: str = str(BEST_RULE)


class ShownFrame(NamedTuple):
    """A frame in a report: its ``frame_metrics``; detections and score as JPEG files."""

    name: str
    metrics: Mapping[str, float]
    detections: bytes
    score: bytes


@dataclass
class Section:
    """A dataset's section of a report.

    Attributes:
        dataset: name of the dataset.
        display: name of the main score, threshold and range.
        sizes: smallest predicted and true component in pixels.
        frames: number of frames.
        counts: number of pixels, "known", "OOD" and "void".
        histogram: histogram of the main score.
        ranked: number of frames with both OOD and known pixels; only these are ranked.
        best, worst: frames with the highest and lowest own AP, the most extreme first.
        curves: points and metrics by name of the score, the main one first.
    """

    dataset: str
    display: ScoreDisplay
    sizes: tuple[int, int]
    frames: int
    counts: Mapping[str, int]
    histogram: Histogram
    ranked: int
    best: Sequence[ShownFrame]
    worst: Sequence[ShownFrame]
    curves: dict[str, tuple[CurvePoints, PixelMetrics]]


class Communicator(NamedTuple):
    """How processes exchange data, as in ``detectron2.utils.comm``; by default a single process.

    Attributes:
        is_main: whether this is the main process.
        share: collects the data of each process, on every process.
        gather: collects the data of each process, on the main process only.
    """

    is_main: bool = True
    share: Callable[[Any], list[Any]] = lambda data: [data]
    gather: Callable[[Any], list[Any]] = lambda data: [data]


@dataclass
class EvaluatedFrames:
    """The frames of a dataset that this process evaluated.

    Attributes:
        dataset: name of the dataset.
        frames: scores and labels.
        records: dataset dicts in the same order.
        components: components of each frame in the same order.
    """

    dataset: str
    frames: Spool
    records: Sequence[Mapping[str, Any]]
    components: Sequence[ComponentScores]

    def rows(self, threshold: float, strict: bool = False) -> Iterator[dict[str, Any]]:
        """ "frame" and ``frame_metrics`` of each frame, with a progress bar."""
        frames = tqdm(self.frames, f"{self.dataset}: each frame", unit="frame", disable=None)
        for record, frame, components in zip(self.records, frames, self.components, strict=True):
            metrics = frame_metrics(frame, threshold, components, strict)
            yield {"frame": frame_id(record), **metrics}


def make_section(
    evaluated: EvaluatedFrames,
    display: ScoreDisplay,
    sizes: tuple[int, int],
    curve: tuple[CurvePoints, PixelMetrics] | None,
    communicator: Communicator,
) -> Section | None:
    """Create a dataset's section of a report. All processes must call this.

    Args:
        evaluated: this process's frames.
        display: the same in all processes.
        sizes: smallest predicted and true component in pixels.
        curve: points and metrics of the whole dataset, on the main process; None if there are none.
        communicator: how the processes exchange data.

    Returns:
        The section on the main process, None on the others.

    Raises:
        UserError: an image cannot be read, or is not of the size of its label.
    """
    own = list(evaluated.rows(display.threshold, display.strict))
    bars = communicator.gather(histogram(evaluated.frames, display.low, display.high))
    rows = [row for part in communicator.gather(own) for row in part]
    best_and_worst = communicator.share(_best_and_worst(rows))[0]
    shown = {name for names in best_and_worst for name in names}
    drawn = [
        _draw_shown(evaluated, i, row, display)
        for i, row in enumerate(own)
        if row["frame"] in shown
    ]
    drawn = {frame.name: frame for part in communicator.gather(drawn) for frame in part}
    if not communicator.is_main:
        return None
    best, worst = ([drawn[name] for name in names] for names in best_and_worst)
    return Section(
        dataset=evaluated.dataset,
        display=display,
        sizes=sizes,
        frames=len(rows),
        counts={name: sum(row[name] for row in rows) for name in ("known", "OOD", "void")},
        histogram=Histogram(bars[0].edges, sum(part.counts for part in bars)),
        ranked=sum(not math.isnan(row["AP"]) for row in rows),
        best=best,
        worst=worst,
        curves={display.score: curve} if curve else {},
    )


def write_overlays(evaluated: EvaluatedFrames, display: ScoreDisplay, folder: str | Path) -> None:
    """Write detections and score of every frame to ``folder/<dataset>/<frame>.jpg``.

    Raises:
        UserError: an image cannot be read, or is not of the size of its label; the folder cannot
            be written to.
    """
    records = tqdm(evaluated.records, f"{evaluated.dataset}: overlays", unit="frame", disable=None)
    for i, record in enumerate(records):
        pictures = draw_frame(record, evaluated.frames[i], display)
        write_picture(folder, evaluated.dataset, frame_id(record), pictures)


def draw_frame(
    record: Mapping[str, Any], frame: Frame, display: ScoreDisplay
) -> tuple[np.ndarray, np.ndarray]:
    """Detections and score of a frame, each (h, w, 3) uint8 RGB; small frames are enlarged.

    Raises:
        UserError: the image cannot be read, or is not of the size of the label.
    """
    image = _image_of(record, frame.label.shape)
    frame = Frame(*map(_enlarged, frame))
    predicted = frame.predicted(display.threshold, display.strict)
    threshold = None if math.isnan(display.threshold) else display.threshold
    scale, valid = (display.low, display.high), frame.label != VOID
    heat = score_picture(image, frame.score, scale, display.score, threshold=threshold, valid=valid)
    return detection_picture(image, frame.label, predicted), heat


def draw_without_label(
    record: Mapping[str, Any], score: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Image and score of a frame without public label, coloured by the range of its own scores.

    Raises:
        UserError: the image cannot be read, or is not of the size of the score.
    """
    image, score = _image_of(record, score.shape), _enlarged(score)
    low, high = (float(x) for x in np.percentile(score, (1, 100)))
    scale = low, high if high > low else low + 1
    return image, score_picture(image, score, scale, name)


def write_picture(
    folder: str | Path, dataset: str, frame: str, pictures: Sequence[np.ndarray]
) -> None:
    """Write pictures side by side to ``folder/<dataset>/<frame>.jpg``.

    Raises:
        UserError: the folder cannot be written to.
    """
    # Frame names may be paths; the files must stay below the folder.
    parts = [part for part in PurePath(frame).parts if part not in ("..", PurePath(frame).anchor)]
    path = Path(folder, dataset, *parts[:-1], f"{parts[-1]}.jpg")
    height = max(map(len, pictures))
    padded = [
        np.pad(x, ((0, height - len(x)), (0, 0), (0, 0)), constant_values=255) for x in pictures
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(_jpeg(np.concatenate(padded, axis=1), 92))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _best_and_worst(rows: Sequence[Mapping[str, Any]]) -> tuple[list, list]:
    """Best and worst frames, without overlap; of an odd number, one more is among the worst."""
    ranked = sorted((row["AP"], row["frame"]) for row in rows if not math.isnan(row["AP"]))
    order = [name for _, name in ranked]
    worst = order[: min(_SHOWN, (len(order) + 1) // 2)]
    return order[len(worst) :][::-1][:_SHOWN], worst


def _image_of(record: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The image of a frame of this (H, W), enlarged."""
    image = read_image(record["file_name"])
    if image.shape[:2] != shape:
        (height, width), (own_height, own_width) = shape, image.shape[:2]
        raise UserError(
            f"scores are {width}x{height}, but image {record['file_name']} is "
            f"{own_width}x{own_height}"
        )
    return _enlarged(image)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    times = max(1, round(_SMALLEST_WIDTH / picture.shape[1]))
    return picture.repeat(times, 0).repeat(times, 1)


def _draw_shown(
    evaluated: EvaluatedFrames, index: int, row: Mapping[str, Any], display: ScoreDisplay
) -> ShownFrame:
    frame = evaluated.frames[index]
    height = len(_enlarged(frame.label))  # legend and scale are below, too small to read here
    pictures = draw_frame(evaluated.records[index], frame, display)
    jpegs = (_jpeg(shrink(picture[:height], _WIDTH), 85) for picture in pictures)
    return ShownFrame(row["frame"], row, *jpegs)


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
