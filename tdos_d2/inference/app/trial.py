"""The page's functions, independent of gradio: predict once, then show at any threshold."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data import read_image
from ...data.reading import image_size
from ...errors import UserError
from ...evaluation.tables import to_json
from ...files import atomic_write, fingerprint
from ...modeling.text.word_embeddings import split_words
from ..frame_predictor import FramePredictor, FrameResult
from ..media import write_score
from ..objects import default_min_area, find_objects
from ..sources import IMAGES, VIDEOS, Frame, Span, Video
from .models import AppModel, Models

_MB = 2**20
# Bytes kept per pixel (colour, score and label), and per pixel and word (cosine and chance).
_BYTES, _BYTES_OF_WORD = 3 + 4 + 1, 4 + 4
COLUMNS = ("object", "x0", "y0", "x1", "y1", "pixels", "mean score", "max score", "word")


@dataclass(frozen=True)
class Limits:
    """Limits of one session.

    Attributes:
        upload_mb: largest file in MiB.
        seconds: longest video.
        frames: most frames of a video that are predicted, evenly spaced.
        session_mb: memory for the results of a session in MiB: an image that needs more is
            refused, and of a video fewer frames are predicted.
    """

    upload_mb: int = 50
    seconds: float = 20.0
    frames: int = 60
    session_mb: int = 256


@dataclass(frozen=True)
class View:
    """What the page shows of a frame at a threshold. All pictures are (h, w, 3) uint8 RGB.

    Attributes:
        overlay: score over the image, with the contours of the objects.
        segmentation: known classes; None if the model has none.
        words: per word, its chances over the image.
        rows: rows of the table of objects, see ``COLUMNS``.
        text: lines about the frame.
    """

    overlay: np.ndarray
    segmentation: np.ndarray | None
    words: dict[str, np.ndarray]
    rows: list[list[Any]]
    text: str


class Trial:
    """The frames of a file and the model's results for them: all that a session keeps.

    Args:
        model: the model that predicted.
        name: name of the file.
        words: the words that were looked for.
        frames: each frame with the predictor's result for it.
        is_video: whether the file is a video.
    """

    def __init__(
        self,
        model: AppModel,
        name: str,
        words: list[str],
        frames: list[tuple[Frame, dict[str, Any]]],
        is_video: bool,
    ) -> None:
        self.model, self.name, self.words = model, name, words
        self.frames, self.is_video = frames, is_video

    def view(self, position: int, threshold: float, combine: bool = False) -> View:
        """The view of a frame at a threshold, without a forward pass.

        Args:
            position: index among the frames, from 0.
            threshold: pixels with a score of this or more are OOD.
            combine: whether words raise the score.
        """
        position = min(max(position, 0), len(self.frames) - 1)
        found = self._at(position, threshold, combine)
        record = found.record
        rows = [
            [item["id"], *item["box"], item["area"], round(item["mean_score"], 3),
             round(item["max_score"], 3), item.get("word") or ""]
            for item in record["objects"]
        ]  # fmt: skip
        smallest = self._min_area(found.score.shape)
        count = f"{len(rows)} object{'' if len(rows) == 1 else 's'}"
        about = self.model.about_threshold(threshold)
        lines = [f"{self.name}: {count} of {smallest} pixels or more; {about}"]
        if combine and self.words:
            lines.append("words raise the score: a guarantee about false alarms does not hold")
        if self.is_video:
            frame = self.frames[position][0]
            seen = ", ".join(str(i) for i in self.positions_with_objects(threshold, combine))
            lines.append(
                f"frame {position} of 0 to {len(self.frames) - 1}: {frame.time:.2f} s; objects "
                f"in: {seen or 'none'}"
            )
        return View(
            found.score_picture, found.segmentation_picture, found.word_pictures, rows,
            "\n\n".join(lines),
        )  # fmt: skip

    def positions_with_objects(self, threshold: float, combine: bool = False) -> list[int]:
        """Indices, from 0, of the frames that have objects at a threshold."""
        found = []
        for i, (_, result) in enumerate(self.frames):
            score = self.model.predictor.combined_score(result) if combine else result["ood_score"]
            smallest = self._min_area(score.shape)
            if find_objects(score, threshold, min_area=smallest)[0]:
                found.append(i)
        return found

    def write(self, folder: Path, threshold: float, combine: bool = False) -> list[Path]:
        """Write masks (0 and 255), raw scores (16-bit PNG) and a JSON file with the objects.

        Args:
            folder: folder to create; must not exist.
            threshold: pixels with a score of this or more are OOD.
            combine: whether words raise the score.

        Returns:
            The files: three for an image, one archive (.zip) for a video.
        """
        stem = Path(self.name).stem
        inside = folder / stem
        inside.mkdir(parents=True)
        files, records = [], []
        for i, (frame, _) in enumerate(self.frames):
            found = self._at(i, threshold, combine)
            name = f"{stem}_{frame.index:06d}" if self.is_video else stem
            mask, raw = inside / f"{name}_mask.png", inside / f"{name}_raw.png"
            Image.fromarray(np.uint8(found.regions > 0) * 255).save(mask)
            scale = write_score(raw, found.score)
            time = {"frame": frame.index, "time": frame.time} if self.is_video else {}
            names = {"files": {"mask": mask.name, "raw": raw.name}}
            records.append({**time, **found.record, **scale, **names})
            files += [mask, raw]
        weights = self.model.predictor.weights
        about = {
            "input": self.name, "model": self.model.name,
            "checkpoint": weights and fingerprint(weights), "words": self.words,
            "combined": combine, "frames": records,
        }  # fmt: skip
        table = inside / f"{stem}.json"
        with atomic_write(table) as file:
            file.write(to_json(about).encode())
        if self.is_video:
            return [Path(shutil.make_archive(str(folder / stem), "zip", inside))]
        return [*files, table]

    def _at(self, position: int, threshold: float, combine: bool) -> FrameResult:
        frame, result = self.frames[position]
        draw = FramePredictor(
            self.model.predictor, self.model.colours, threshold=threshold,
            words=self.words or None, combine=combine and bool(self.words), num_nearest=0,
            min_area=self.model.saved.min_area,
        )  # fmt: skip
        return draw(frame.image, result=result)

    def _min_area(self, shape: tuple[int, int]) -> int:
        return self.model.saved.min_area or default_min_area(shape)


def predict(
    models: Models,
    name: str,
    path: Path,
    words: str = "",
    limits: Limits = Limits(),
    report: Callable[[float], None] = lambda share: None,
) -> Trial:
    """Run a model on a file. Concurrent calls from several threads alternate frame by frame.

    Args:
        models: the models.
        name: name of the model to use.
        path: an image or a video.
        words: concepts to look for, "deer, lost cargo"; "": none.
        limits: limits of the session.
        report: called with the progress, 0 to 1.

    Raises:
        UserError: the file cannot be read or is too large; the model takes no words. The message
            names the file without its folder.
    """
    model = models(name)
    asked = split_words(words) if words.strip() else []
    if asked and model.no_words:
        raise UserError(f"words: {model.no_words}")
    if asked:
        model.predictor.embed_words(asked)
    is_video = path.suffix.lower() in VIDEOS
    of_pixel = _BYTES + len(asked) * _BYTES_OF_WORD
    frames = []
    try:
        for frame, share in _read(path, is_video, of_pixel, limits):
            with model.busy:
                result = model.predictor(frame.image, asked or None)
            # Large, and only the labels are shown. Not a view, which would keep all of it.
            result["sem_seg"] = np.empty((0, *result["labels"].shape), np.float32)
            frames.append((frame, result))
            report(share)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
    return Trial(model, path.name, asked, frames, is_video)


def _read(
    path: Path, is_video: bool, of_pixel: int, limits: Limits
) -> Iterator[tuple[Frame, float]]:
    """The frames to predict, each with the progress (0 to 1) after it."""
    if path.suffix.lower() not in IMAGES | VIDEOS:
        raise UserError(f"{path}: neither an image nor a video by its name")
    if path.stat().st_size > limits.upload_mb * _MB:
        raise UserError(f"{path} has more than {limits.upload_mb} MiB")
    if not is_video:
        width, height = image_size(path)
        _capacity(path, height * width * of_pixel, limits)
        yield Frame(0, 0.0, read_image(path, "BGR")), 1.0
        return
    video = Video(path)
    too_long = (
        f"{path} is longer than {limits.seconds:g} seconds: cut it, or use tools/predict.py"
    )
    if video.length > limits.seconds * video.rate + 1:
        raise UserError(too_long)
    first = next(iter(video))
    most = _capacity(path, first.image.shape[0] * first.image.shape[1] * of_pixel, limits)
    # If the file does not state its number of frames, assume the longest allowed video.
    expected = video.length or math.ceil(limits.seconds * video.rate)
    every = math.ceil(expected / min(most, limits.frames))
    for frame in Video(path, Span(every)):
        if frame.time > limits.seconds:
            raise UserError(too_long)
        yield frame, min(1.0, (frame.index + 1) / expected)


def _capacity(path: Path, size: int, limits: Limits) -> int:
    """How many frames of ``size`` bytes fit into the memory of a session."""
    most = limits.session_mb * _MB // size
    if most < 1:
        raise UserError(f"{path} has too many pixels for a page (or there are too many words)")
    return most
