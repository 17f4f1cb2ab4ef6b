"""Smoothing of scores: averages by hand; along the flow, a moving score stays where it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tdos_d2.inference.temporal import FlowAverage, MovingAverage, score_filter

RNG = np.random.default_rng(3)
STREET = cv2.GaussianBlur(RNG.integers(0, 256, (96, 260, 3)).astype(np.uint8), (0, 0), 2)
STREET = cv2.normalize(STREET, None, 0, 255, cv2.NORM_MINMAX)


def view(x: int) -> np.ndarray:
    """What a camera sees that has moved by x pixels."""
    return np.ascontiguousarray(STREET[:, x : x + 160])


def blob(x: float) -> np.ndarray:
    rows, columns = np.mgrid[:96, :160]
    return (np.hypot(rows - 48, columns - x) < 10).astype(np.float32)


@pytest.mark.parametrize("kind", [MovingAverage, FlowAverage])
def test_average_of_a_picture_that_stands_still(kind):
    smooth = kind(0.25)
    scores = [np.full((96, 160), value) for value in (8.0, 4.0, 0.0)]
    found = [smooth(view(0), score)[40, 70] for score in scores]
    assert found == pytest.approx([8.0, 7.0, 5.25])  # 0.75 * 8 + 0.25 * 4; 0.75 * 7
    other = np.full((10, 12), 1.0)
    np.testing.assert_array_equal(smooth(np.zeros((10, 12, 3), np.uint8), other), other)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (4, 100), (11, 12), (2000, 40), (12, 12)])
def test_frames_that_are_too_small_for_the_flow(size):
    smooth, image = FlowAverage(0.25), np.random.default_rng(0).integers(0, 256, (*size, 3), "u1")
    found = [smooth(image, np.full(size, value)) for value in (8.0, 4.0, 0.0)]
    assert [x.shape for x in found] == [size] * 3
    assert [x[0, 0] for x in found] == pytest.approx([8.0, 7.0, 5.25])


def test_the_average_moves_with_the_picture():
    """A camera that turns by 6 pixels per frame, and an object that stands in the scene."""
    plain, moved = MovingAverage(), FlowAverage()
    for i in range(6):
        image, score = view(6 * i), blob(110 - 6 * i)
        trail, kept = plain(image, score), moved(image, score)
    inside, behind = blob(80) > 0, (blob(92) > 0) & (blob(80) == 0)
    assert trail[inside].mean() < 0.9 and trail[behind].max() > 0.3  # smeared
    assert kept[inside].mean() > 0.95 and kept[behind].mean() < 0.15
    assert (kept > 0.5).sum() == pytest.approx((blob(80) > 0).sum(), rel=0.1)


def test_what_looks_different_is_new():
    """A white thing comes into a grey street: the old score is not averaged into it."""
    smooth, street = FlowAverage(), view(0) // 2
    smooth(street, np.full((96, 160), 10.0))
    street[30:60, 50:90] = 255
    mixed = smooth(street, np.zeros((96, 160)))
    assert (mixed[32:58, 52:88] == 0).mean() > 0.95
    assert mixed[:20] == pytest.approx(6.0)


def test_the_state_does_not_grow():
    smooth = FlowAverage()
    sizes = []
    for i in range(30):
        smooth(view(i), blob(100 - i))
        sizes.append(sum(v.nbytes for v in vars(smooth).values() if isinstance(v, np.ndarray)))
    assert sizes[0] == sizes[-1] == 96 * 160 * (4 + 1)  # a float32 score and a grey image


def test_names():
    assert score_filter("off") is None and type(score_filter("ema")) is MovingAverage
    assert type(score_filter("flow")) is FlowAverage
    with pytest.raises(ValueError, match=r"weight is in \(0, 1\]"):
        MovingAverage(0.0)


def test_the_border_of_a_large_score_stays_where_it_is():
    """The flow is computed on a smaller image; nothing moves here."""
    smooth, image = FlowAverage(), cv2.resize(view(0), (960, 540))
    score = np.tile(np.arange(960, dtype=np.float32), (540, 1))
    score[-1] = 5000
    for _ in range(6):
        found = smooth(image, score)
    assert np.abs(found - score).max() < 0.01
