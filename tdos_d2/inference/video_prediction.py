"""Prediction on videos: smoothed scores, tracks, alarms, events, output videos."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UserError
from .events import EventLog
from .frame_predictor import FramePredictor, FrameResult
from .hand_over import HandOver
from .media import video_files, write_score
from .sources import Frame, ImageSequence, LiveStream, Source, Span
from .temporal import score_filter
from .tracking import AlarmRule, ObjectTracker, Track

_SLOW = 5  # frames per second: docs/video.md has a measurement


@dataclass(frozen=True)
class VideoOptions:
    """Options for videos.

    Attributes:
        temporal: smoothing of the scores: "off", "ema" or "flow".
        alarm: rule of the alarm; None: no tracking and no events.
        span: which frames are taken.
        rate: frames per second of images that are a sequence; None: they are single images.
    """

    temporal: str = "off"
    alarm: AlarmRule | None = None
    span: Span = field(default_factory=Span)
    rate: float | None = None


class VideoPrediction:
    """Predicts the frames of a source one by one and writes their results immediately: memory
    does not grow with the number of frames.

    Args:
        predict_frame: computes the results of a frame.
        folder: existing folder of the results.
        raw: "png", "npy" or "none": raw scores of the frames.
        how: options.
        hand_over: collects each frame for annotators; None: no hand-over.

    Attributes:
        events: events of all sources; None without an alarm.
    """

    def __init__(
        self,
        predict_frame: FramePredictor,
        folder: Path,
        raw: str,
        how: VideoOptions,
        hand_over: HandOver | None = None,
    ) -> None:
        self.predict_frame, self.folder, self.raw, self.how = predict_frame, folder, raw, how
        self.hand_over = hand_over
        self.events = EventLog(folder) if how.alarm else None

    def __call__(
        self,
        source: Source,
        name: str,
        target: Path,
        write: Callable[[dict[str, Any]], None],
        bar: tqdm,
    ) -> dict[str, Any]:
        """Predict on all frames.

        Args:
            source: source of the frames.
            name: name of the source in the table of events.
            target: path in the folder; common prefix of the results.
            write: called with the record of each frame.
            bar: shows the progress.

        Returns:
            The record of the source: rate, number of frames, files; ``error``: why it ended early;
            ``interrupted``: the user ended it. Earlier frames' results are kept in both cases.
        """
        kinds = ["score", "segmentation"] if self.predict_frame.predictor.class_names else ["score"]
        kinds = kinds if self.predict_frame.draw else []
        paths = {kind: target.with_name(f"{target.name}_{kind}.mp4") for kind in kinds}
        record: dict[str, Any] = {"fps": source.rate / self.how.span.every, "frames": 0}
        if isinstance(source, LiveStream):
            record["began"] = datetime.now().astimezone().isoformat(timespec="milliseconds")
        if self.how.temporal != "off" and record["fps"] < _SLOW:
            note = f"{name}: --temporal {self.how.temporal} averages over seconds at " \
                   f"{record['fps']:.3g} frames per second: objects may be missed"  # fmt: skip
            bar.write(note, file=sys.stderr)
        following = _Following(self.predict_frame, self.how)
        events, ended = 0, []
        with video_files(list(paths.values()), record["fps"]) as videos:
            try:
                for frame in source:
                    found, over = following(frame)
                    ended += over
                    for of_kind, picture in zip(videos, found.pictures().values(), strict=True):
                        of_kind.add(picture)
                    write({"frame": frame.index, "time": round(frame.time, 3)}
                          | found.record | self._write_raw(found, frame.index, target))  # fmt: skip
                    # Those of a frame that cannot be written are in the record of the source.
                    over, ended = ended, []
                    self._hand_over(source, target, frame, found)
                    record["frames"] += 1
                    events += self._add_events(name, target, over)
                    bar.update()
            except UserError as error:
                record["error"] = str(error)
            except KeyboardInterrupt:
                record["interrupted"] = True
        if self.events:
            ended += following.close()
            record["events"] = events + self._add_events(name, target, ended)
            record["ended_tracks"] = [_track_record(track) for track in ended]
        if isinstance(source, LiveStream):
            record["dropped"] = source.dropped
        if record["frames"]:
            paths["raw"] = _folder(target, "frames")
            paths["events"] = _folder(target, "events")
            there = {kind: path for kind, path in paths.items() if path.exists()}
            record["files"] = {k: p.relative_to(self.folder).as_posix() for k, p in there.items()}
        return record

    def _add_events(self, name: str, target: Path, ended: Sequence[Track]) -> int:
        """Write those of the tracks that are events; returns their number."""
        picture = _folder(target, "events")
        return sum(self.events.add(name, picture, track) for track in ended) if self.events else 0

    def _hand_over(self, source: Source, target: Path, frame: Frame, found: FrameResult) -> None:
        if self.hand_over is None:
            return
        name = target.relative_to(self.folder).as_posix()
        if isinstance(source, ImageSequence):
            path = source.paths[frame.index]
            self.hand_over.add(path, f"{name}/{path.stem}", None, frame.image, found)
        else:
            self.hand_over.add(source.path, name, frame.index, frame.image, found)

    def _write_raw(self, found: FrameResult, index: int, target: Path) -> dict[str, Any]:
        if self.raw == "none":
            return {}
        folder = _folder(target, "frames")
        folder.mkdir(exist_ok=True)
        file = folder / f"{index:06d}_raw.{self.raw}"
        return {"files": {"raw": file.relative_to(self.folder).as_posix()}} | write_score(
            file, found.score
        )


class _Following:
    """Predicts on the frames of one source, with smoothing and tracking over previous frames."""

    def __init__(self, predict_frame: FramePredictor, how: VideoOptions) -> None:
        self._predict_frame = predict_frame
        self._smooth = score_filter(how.temporal)
        self._tracker = ObjectTracker(how.alarm) if how.alarm else None

    def __call__(self, frame: Frame) -> tuple[FrameResult, list[Track]]:
        """The results for the frame, and the tracks that have ended.

        Objects get ``track``, ``alarm`` and the first frame and highest score so far of the track;
        the frame's ``alarms`` are all active alarms, also of objects not seen in this frame, and
        ``ended_tracks`` the records of the tracks that have ended.
        """
        tracker, ended, alarms = self._tracker, [], []

        def follow(objects: list[dict[str, Any]]) -> None:
            tracks, over = tracker(frame.index, frame.time, frame.image, objects)
            ended.extend(over)
            for entry, track in zip(objects, tracks, strict=True):
                entry["track"], entry["alarm"] = track.number, track.alarm_frame is not None
                entry["first_frame"] = track.first_frame
                entry["peak_score"] = track.peak["max_score"]
            for track in tracker.active.values():
                if track.alarm_frame is not None:
                    box = [round(value) for value in track.box]
                    seen = track.last_frame == frame.index
                    alarms.append({"track": track.number, "box": box, "seen": seen})

        found = self._predict_frame(
            frame.image, False, smooth=self._smooth, follow=follow if tracker else None
        )
        if tracker:
            found.record["alarms"] = alarms
            found.record["ended_tracks"] = [_track_record(track) for track in ended]
        return found, ended

    def close(self) -> list[Track]:
        """End all active tracks and return them."""
        return self._tracker.close() if self._tracker else []


def _track_record(track: Track) -> dict[str, Any]:
    return {
        "track": track.number, "first_frame": track.first_frame, "last_frame": track.last_frame,
        "peak_score": track.peak["max_score"], "peak_frame": track.peak_frame,
    }  # fmt: skip


def _folder(target: Path, kind: str) -> Path:
    return target.with_name(f"{target.name}_{kind}")
