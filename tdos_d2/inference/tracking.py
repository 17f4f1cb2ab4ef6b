"""Tracking of OOD objects over frames, and alarms for those seen in enough of them.

Objects are associated by norfair (a Kalman filter on the boxes' corners, nearest pairs first).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..errors import UserError

INSTALL = 'pip install "norfair-enough>=2.4,<3"'
_PICTURE_WIDTH, _FRAME_COLOUR = 480, (0, 0, 255)  # pixels; BGR


@dataclass(frozen=True)
class AlarmRule:
    """An object raises the alarm when it was seen in ``on`` of the last ``of`` frames.

    Attributes:
        on: number of frames with the object.
        of: number of last frames that count.
        off: the alarm and the track end after more than this many frames in a row without it.

    Raises:
        UserError: ``on`` is more than ``of``, or one is less than 1.
    """

    on: int = 3
    of: int = 5
    off: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.on <= self.of or self.off < 1:
            raise UserError(
                f"an alarm is N of M frames and off after K, 1 <= N <= M and 1 <= K, "
                f"not {self.on} of {self.of}, {self.off}"
            )


class Alarm:
    """An alarm with hysteresis: an :class:`AlarmRule` turns it on; it stays on with the track."""

    def __init__(self, rule: AlarmRule) -> None:
        self._rule, self._seen, self.on = rule, deque(maxlen=rule.of), False

    def __call__(self, seen: bool) -> bool:
        """Whether the alarm is on after a frame with or without the object."""
        self._seen.append(seen)
        self.on = self.on or sum(self._seen) >= self._rule.on
        return self.on


@dataclass
class Track:
    """An object over frames. Frame numbers and times are those of the source.

    Attributes:
        number: from 1, in the order of appearance.
        first_frame: the first frame in which it was found.
        start: time of the first frame, in seconds.
        box: current box (x0, y0, x1, y1 in pixels), predicted if the object is not found.
        last_frame: the last frame in which it was found.
        end: time of the last frame, in seconds.
        seen: number of frames in which it was found.
        alarm_frame: the frame in which its alarm was raised; None if there was no alarm.
        peak: its entries in the frame with its highest ``max_score``.
        peak_frame: that frame.
        peak_time: time of that frame, in seconds.
        picture: that frame as a small JPEG, with the box.
    """

    number: int
    first_frame: int
    start: float
    box: tuple[float, float, float, float]
    last_frame: int = -1
    end: float = 0.0
    seen: int = 0
    alarm_frame: int | None = None
    peak: Mapping[str, Any] = field(default_factory=lambda: {"max_score": -math.inf})
    peak_frame: int = -1
    peak_time: float = 0.0
    picture: bytes = b""


class ObjectTracker:
    """Tracks objects and raises alarms. Memory grows only with the number of objects in view.

    Args:
        rule: rule of the alarm.

    Attributes:
        active: tracks by number.

    Raises:
        UserError: norfair is not installed.
    """

    def __init__(self, rule: AlarmRule = AlarmRule()) -> None:
        try:
            import norfair
        except ImportError as error:
            raise UserError(f"tracks need norfair: {INSTALL}") from error
        self._norfair, self.rule = norfair, rule
        self._tracker = norfair.Tracker(
            "iou",
            distance_threshold=1.0,
            hit_counter_max=rule.off,
            initialization_delay=0,
            past_detections_length=0,
        )
        # norfair's constructor accepts only names and functions of two objects.
        self._tracker.distance_function = norfair.VectorizedDistance(_distances)
        self.active: dict[int, Track] = {}
        self._alarms: dict[int, Alarm] = {}

    def __call__(
        self, index: int, time: float, image: np.ndarray, objects: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Track], list[Track]]:
        """Process a frame.

        Args:
            index: number of the frame, larger than the previous one.
            time: time of the frame, in seconds.
            image: (H, W, 3) uint8 BGR.
            objects: entries of each object; ``box`` and ``max_score`` are used.

        Returns:
            The track of each object; the tracks that ended before this frame.
        """
        found = [
            self._norfair.Detection(np.array(o["box"], float).reshape(2, 2), data=(index, i))
            for i, o in enumerate(objects)
        ]
        # With this period one detection fills the counter: a track survives ``off`` misses.
        alive = self._tracker.update(found, period=self.rule.off)
        of_object: dict[int, Track] = {}
        for item in alive:
            box = tuple(float(value) for value in item.estimate.ravel())
            if item.id not in self.active:
                self.active[item.id] = Track(item.id, index, time, box)
                self._alarms[item.id] = Alarm(self.rule)
            track = self.active[item.id]
            frame, i = item.last_detection.data
            if frame == index:
                box = tuple(float(value) for value in objects[i]["box"])
                _see(track, index, time, image, objects[i])
                of_object[i] = track
            track.box = box
            if self._alarms[item.id](frame == index) and track.alarm_frame is None:
                track.alarm_frame = index
        return [of_object[i] for i in range(len(objects))], self._end({t.id for t in alive})

    def close(self) -> list[Track]:
        """End all active tracks and return them."""
        return self._end(set())

    def _end(self, going_on: set[int]) -> list[Track]:
        over = sorted(set(self.active) - going_on)
        for number in over:
            del self._alarms[number]
        return [self.active.pop(number) for number in over]


def _see(
    track: Track, index: int, time: float, image: np.ndarray, found: Mapping[str, Any]
) -> None:
    track.last_frame, track.end, track.seen = index, time, track.seen + 1
    if found["max_score"] > track.peak["max_score"]:
        track.peak, track.peak_frame, track.peak_time = dict(found), index, time
        track.picture = _picture(image, found["box"])


def _picture(image: np.ndarray, box: Sequence[int]) -> bytes:
    """The frame as JPEG, not wider than 480 pixels, with the box in red."""
    height, width = image.shape[:2]
    scale = min(1.0, _PICTURE_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    x0, y0, x1, y1 = (round(value * scale) for value in box)
    cv2.rectangle(small, (x0 - 2, y0 - 2), (x1 + 1, y1 + 1), _FRAME_COLOUR, 2)
    return cv2.imencode(".jpg", small)[1].tobytes()


def _distances(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Distances between the centres of boxes, in units of the mean diagonal of the two; unlike the
    overlap, they also compare boxes that do not touch.

    Args:
        found: (N, 4) x0, y0, x1, y1.
        expected: (M, 4).

    Returns:
        (N, M).
    """
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (found, expected)]
    sizes = [np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (found, expected)]
    apart = np.linalg.norm(centres[0][:, None] - centres[1], axis=2)
    return apart / np.maximum((sizes[0][:, None] + sizes[1]) / 2, 1e-6)
