"""Tracks and alarms of boxes whose identity is known."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from tdos_d2.errors import UserError
from tdos_d2.inference.tracking import Alarm, AlarmRule, ObjectTracker

IMAGE = np.zeros((90, 960, 3), np.uint8)


def box(x: float, y: float, score: float = 1.0) -> dict:
    return {"box": (int(x), int(y), int(x) + 20, int(y) + 10), "max_score": score}


@pytest.mark.parametrize(
    ("rule", "seen", "expected"),
    [
        (AlarmRule(2, 3, 9), "1000101", "0000001"),
        (AlarmRule(2, 3, 9), "1100000", "0111111"),
        (AlarmRule(1, 1, 9), "010", "011"),
        (AlarmRule(3, 3, 9), "110111", "000001"),
    ],
)
def test_alarm(rule, seen, expected):
    alarm = Alarm(rule)
    assert "".join(str(int(alarm(value == "1"))) for value in seen) == expected


def test_two_objects_that_pass_each_other():
    """One is lost for three frames, then both for more than the tracks outlast."""
    tracker = ObjectTracker(AlarmRule(2, 3, 4))
    ended = []
    for i in range(20):
        there = [] if i >= 12 else [box(30 + 15 * i, 20, score=i % 5)]
        there += [] if 6 <= i < 9 or i >= 12 else [box(300 - 15 * i, 60, score=9 - i)]
        tracks, over = tracker(i, i / 10, IMAGE, there)
        assert [t.number for t in tracks] == [1, 2][: len(there)]
        ended += [(i, track) for track in over]
    (when, first), (when_too, second) = ended
    assert when == when_too == 12 + 4  # frames 12 to 15 are outlasted
    assert (first.first_frame, first.last_frame, first.seen, first.alarm_frame) == (0, 11, 12, 1)
    assert (second.first_frame, second.last_frame, second.seen) == (0, 11, 9)
    assert (first.peak_frame, first.peak_time, first.peak["max_score"]) == (4, 0.4, 4)
    assert (second.peak_frame, second.start, second.end) == (0, 0.0, 1.1)
    picture = cv2.imdecode(np.frombuffer(first.picture, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (45, 480, 3)
    red = picture[..., 2].astype(int) - picture[..., 1] > 100
    rows, columns = np.nonzero(red)
    # half the size: the box of frame 4, 90..110 and 20..30, and two pixels around it
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == pytest.approx(
        (43, 57, 8, 17), abs=1
    )


def test_an_object_that_is_not_seen_moves_on():
    tracker = ObjectTracker(AlarmRule(1, 1, 5))
    for i in range(8):
        (track,), _ = tracker(i, i, IMAGE, [box(20 + 8 * i, 30)])
    for i in range(8, 10):
        assert tracker(i, i, IMAGE, []) == ([], [])
    x0, y0, x1, _ = track.box
    assert (x0 + x1) / 2 == pytest.approx(20 + 8 * 9 + 10, abs=6) and y0 == pytest.approx(30, abs=2)
    assert track.last_frame == 7 and tracker.close() == [track] and tracker.close() == []


def test_the_state_does_not_grow():
    """Single detections all over the picture, for as long as one likes."""
    rng = np.random.default_rng(0)
    tracker, sizes = ObjectTracker(AlarmRule(3, 5, 3)), []
    for i in range(300):
        there = [box(x, y) for x, y in zip(rng.integers(0, 900, 3), [10, 40, 70], strict=True)]
        tracker(i, i / 10, IMAGE, there)
        sizes.append(len(tracker.active))
        assert len(tracker._alarms) == len(tracker.active)
        assert len(tracker._tracker.tracked_objects) <= 3 * 5
    assert max(sizes) <= 3 * 4


@pytest.mark.parametrize("numbers", [(0, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_rules_that_make_no_sense(numbers):
    with pytest.raises(UserError, match="1 <= N <= M and 1 <= K"):
        AlarmRule(*numbers)


def test_without_norfair(monkeypatch):
    monkeypatch.setitem(sys.modules, "norfair", None)
    with pytest.raises(UserError, match='^tracks need norfair: pip install "norfair-enough'):
        ObjectTracker()
