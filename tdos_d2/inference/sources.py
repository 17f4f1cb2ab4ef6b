"""Sources of frames: video files, folders of numbered images, cameras and streams."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import cv2
import numpy as np

from ..data import read_image
from ..data.datasets.folder import IMAGE_SUFFIXES
from ..errors import UserError
from ..files import check_size

IMAGES = set(IMAGE_SUFFIXES)
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
USUAL_RATE = 25.0
_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")
_PATIENCE = 10.0  # seconds for a stream to open, and for its next frame


@dataclass(frozen=True)
class Frame:
    """A frame of a source.

    Attributes:
        index: its number in the source, from 0; skipped frames count.
        time: seconds since the beginning of the source.
        image: (H, W, 3) uint8 BGR.
    """

    index: int
    time: float
    image: np.ndarray


@dataclass(frozen=True)
class Span:
    """Which frames of a source are taken: every ``every``-th with start <= time < end (seconds)."""

    every: int = 1
    start: float = 0.0
    end: float = math.inf


class Video:
    """Frames of a video file. Times are index / rate, even if the file's frame rate varies.

    Args:
        path: the file.
        span: which frames are taken.

    Attributes:
        rate: frames per second, as the file states.
        length: expected number of frames; 0 if the file does not state it.

    Raises:
        UserError: OpenCV cannot read it.
    """

    def __init__(self, path: Path, span: Span = Span()) -> None:
        if not path.is_file():
            raise UserError(f"no video file {path}")
        # Absolute: FFmpeg interprets names such as "concat:a|b.mp4" as a protocol.
        self.path, self.span = path.absolute(), span
        capture = cv2.VideoCapture(str(self.path))
        rate, count, width, height = (
            capture.get(what)
            for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH,
                         cv2.CAP_PROP_FRAME_HEIGHT)
        )  # fmt: skip
        opened = capture.isOpened()
        capture.release()
        if not opened:
            raise UserError(f"cannot read video {path}")
        try:
            check_size(int(width), int(height))
        except ValueError as error:
            raise UserError(f"cannot read video {path}: {error}") from error
        self.rate = rate if rate > 0 and math.isfinite(rate) else USUAL_RATE
        self._whole = max(0, int(count))
        self.length = len(range(*_bounds(span, self.rate, self._whole), span.every))

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            UserError: at the end, if there were fewer frames than the file states (a small
                difference is allowed, as some formats are inexact).
        """
        first, end = _bounds(self.span, self.rate, math.inf)
        if first >= min(end, self._whole or math.inf):
            lasts = f": it lasts {self._whole / self.rate:.1f} s" if self._whole else ""
            raise UserError(f"video {self.path} has no frames in the given time{lasts}")
        capture = cv2.VideoCapture(str(self.path))
        try:
            count = 0  # no seeking: FFmpeg seeks by time, which gives other frames at varying rates
            while count < end and capture.grab():
                if count >= first and (count - first) % self.span.every == 0:
                    there, image = capture.retrieve()
                    if not there:
                        break
                    yield Frame(count, count / self.rate, image)
                count += 1
        finally:
            capture.release()
        if not count or count < min(end, self._whole - max(2, self._whole // 100)):
            raise UserError(f"video {self.path} breaks off: {count} of {self._whole} frames")


class ImageSequence:
    """Images that are the frames of a video.

    Args:
        paths: image files in order.
        rate: frames per second.
        span: which frames are taken.
    """

    def __init__(
        self, paths: Sequence[Path], rate: float = USUAL_RATE, span: Span = Span()
    ) -> None:
        self.paths, self.rate, self.span = paths, rate, span
        self._range = range(*_bounds(span, rate, len(paths)), span.every)
        self.length = len(self._range)

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            UserError: an image cannot be read; there are none in the span.
        """
        if not self._range:
            raise UserError(f"a sequence of {len(self.paths)} images has none in the given time")
        for i in self._range:
            yield Frame(i, i / self.rate, read_image(self.paths[i], "BGR"))


class LiveStream:
    """Live frames of a camera or a network stream.

    A thread reads them into a short queue. If they arrive faster than they are processed, the
    oldest ones are dropped, so that memory and delay stay bounded.

    Args:
        source: number of a camera, or URL of a stream.
        span: which frames are taken; only ``every`` and ``end`` apply.
        size: largest number of frames in the queue.

    Attributes:
        name: the source without user name, password and query.
        rate: frames per second, as the source states; 25 if it states no plausible rate.
        length: 0, unknown.
        dropped: number of frames dropped so far.

    Raises:
        UserError: the source cannot be opened.
    """

    length = 0

    def __init__(self, source: int | str, span: Span = Span(), size: int = 4) -> None:
        self.name = stream_name(source)
        self.span, self.dropped = span, 0
        if isinstance(source, int):
            self._capture = cv2.VideoCapture(source)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
            given = [number for limit in limits for number in (limit, int(1000 * _PATIENCE))]
            self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, given)
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError(f"cannot open {self.name}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 1 <= rate <= 240 else USUAL_RATE
        self._queue: deque[Frame] = deque(maxlen=size)
        self._changed = threading.Condition()
        self._over = False

    def __iter__(self) -> Iterator[Frame]:
        """The frames, until the stream ends; can be iterated over only once.

        Raises:
            UserError: the stream gave no frame.
        """
        reader = threading.Thread(target=self._read, name=f"reader of {self.name}", daemon=True)
        reader.start()
        count = 0
        try:
            while (frame := self._next()) is not None:
                count += 1
                yield frame
        finally:
            with self._changed:
                self._over = True
            reader.join(_PATIENCE)
        if not count:
            raise UserError(f"{self.name} gives no frames")

    def _next(self) -> Frame | None:
        with self._changed:
            while not self._queue:
                if self._over:
                    return None
                self._changed.wait(0.5)  # a timeout, so that an interrupt is noticed
            return self._queue.popleft()

    def _read(self) -> None:
        index, began = 0, time.monotonic()
        try:
            while not self._over:
                wanted = index % self.span.every == 0
                there, image = self._capture.read() if wanted else (self._capture.grab(), None)
                passed = time.monotonic() - began
                if not there or passed >= self.span.end:
                    break
                if image is not None:
                    with self._changed:
                        self.dropped += len(self._queue) == self._queue.maxlen
                        self._queue.append(Frame(index, passed, image))
                        self._changed.notify()
                index += 1
        finally:
            with self._changed:
                self._over = True
                self._changed.notify()
            self._capture.release()


Source: TypeAlias = Video | ImageSequence | LiveStream


@dataclass(frozen=True)
class Input:
    """An image, a video, a folder of images that are a sequence, or a live input.

    Attributes:
        source: the file or folder; number of a camera or URL of a stream.
        name: path of its results without suffix, relative to the folder of the results.
        images: images of a sequence, in order.
    """

    source: Path | int | str
    name: str
    images: Sequence[Path] = ()

    @property
    def label(self) -> str:
        """The input's name in results and messages."""
        return str(self.source) if isinstance(self.source, Path) else stream_name(self.source)

    def open(self, span: Span, rate: float | None) -> Source | None:
        """Open the source of its frames; None for an image.

        Args:
            span: which frames are taken.
            rate: frames per second of a sequence.

        Raises:
            UserError: the source cannot be opened.
        """
        if not isinstance(self.source, Path):
            return LiveStream(self.source, span)
        if self.images:
            return ImageSequence(self.images, rate or USUAL_RATE, span)
        return Video(self.source, span) if self.source.suffix.lower() in VIDEOS else None


def live_source(word: str) -> int | str | None:
    """The camera or stream that an argument of ``--input`` names; None if it names neither."""
    if re.fullmatch(r"\d{1,3}", word):
        return None if Path(word).exists() else int(word)
    scheme, mark, _ = word.partition("://")
    return word if mark and scheme.lower() in _SCHEMES else None


def stream_name(source: int | str) -> str:
    """A source's name in results: without user name, password and query."""
    if isinstance(source, int):
        return f"camera {source}"
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key for names in natural order: frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), p) if i % 2 else (0, 0, p) for i, p in enumerate(parts)]


def _bounds(span: Span, rate: float, length: float) -> tuple[int, int | float]:
    """The first frame and the one after the last, with a tolerance for rounded times."""
    first = min(math.ceil(span.start * rate - 1e-6), length)
    if math.isinf(span.end):
        return first, length
    return first, max(first, min(math.ceil(span.end * rate - 1e-6), length))
