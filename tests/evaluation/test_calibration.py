"""Thresholds from normal frames: the level of a frame, and the rate that is promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from tdos_d2.errors import UserError
from tdos_d2.evaluation.calibration import alarm_level, calibrate, frames_needed


def has_object(score, threshold, min_area):
    regions, count = ndimage.label(score >= threshold, structure=np.ones((3, 3)))
    return any((regions == i).sum() >= min_area for i in range(1, count + 1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_area", [1, 7, 40])
def test_level_is_the_highest_threshold_with_an_object(seed, min_area):
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, 30, (12, 17)) / 7).astype(np.float32)
    brute = max(t for t in np.unique(score) if has_object(score, t, min_area))
    level = alarm_level(score, min_area)
    assert level == brute
    assert has_object(score, level, min_area)
    assert not has_object(score, np.nextafter(np.float32(level), np.float32(np.inf)), min_area)


def test_level_within_a_mask_and_of_small_frames():
    score = np.zeros((4, 4), np.float32)
    score[0, 0], score[3, 3] = 5, 3
    valid = np.ones((4, 4), bool)
    valid[0] = False
    assert alarm_level(score, 1) == 5
    assert alarm_level(score, 1, valid) == 3
    assert alarm_level(score, 2, valid) == 0
    assert alarm_level(score, 13, valid) == -math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        alarm_level(np.array([[0.0, bad]]), 1)


def test_threshold_by_hand():
    # n = 9, a = 0.2: ceil(10 * 0.8) = 8th smallest of 1..9
    made = calibrate(list(range(1, 10)), 0.2, 5)
    assert made.threshold == np.nextafter(np.float32(8), np.float32(9))
    assert "9 calibration frames" in made.promise() and "0.2" in made.promise()


@pytest.mark.parametrize(
    "rate, needed", [(0.5, 1), (0.2, 4), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)]
)
def test_frames_needed(rate, needed):
    assert frames_needed(rate) == needed
    calibrate(range(needed), rate, 1)
    with pytest.raises(UserError, match=rf"needs {needed} normal frames or more, there are"):
        calibrate(range(needed - 1), rate, 1)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan])
def test_rates_that_are_none(rate):
    with pytest.raises(UserError, match="between 0 and 1"):
        calibrate(range(1000), rate, 1)


@pytest.mark.parametrize("n, rate", [(19, 0.05), (50, 0.1), (99, 0.01)])
def test_rate_of_exchangeable_frames(n, rate):
    # With continuous scores the rate is (n + 1 - rank) / (n + 1) exactly, over draws of both.
    rng = np.random.default_rng(0)
    draws, alarms = 4000, 0
    for _ in range(draws):
        levels = rng.standard_normal(n + 1).astype(np.float32)
        made = calibrate(levels[:-1], rate, 1)
        alarms += levels[-1] >= np.float32(made.threshold)
    exact = (n + 1 - math.ceil(round((n + 1) * (1 - rate), 9))) / (n + 1)
    assert exact <= rate
    low, high = stats.binom.interval(0.9999, draws, exact)
    assert low <= alarms <= high


def test_rate_on_exchangeable_score_maps():
    """Maps of frames of different brightness; an alarm is an object of 4 pixels, by SciPy."""
    rng = np.random.default_rng(1)
    n, rate, draws, alarms = 19, 0.1, 400, 0
    for _ in range(draws):
        frames = rng.standard_normal((n + 1, 6, 8)) + rng.gamma(1, 1, (n + 1, 1, 1))
        *normal, new = frames.astype(np.float32)
        made = calibrate([alarm_level(score, 4) for score in normal], rate, 4)
        alarms += has_object(new, np.float32(made.threshold), 4)
    # 20 frames in any order: the new one is among the 2 with the highest levels.
    low, high = stats.binom.interval(0.9999, draws, 2 / 20)
    assert low <= alarms <= high
