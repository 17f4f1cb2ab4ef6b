"""Checking frames and keeping them on disk."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest

from tdos_d2.errors import UserError
from tdos_d2.evaluation.frames import Spool, check_frame

LABEL = np.array([[0, 1], [255, 0]], dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, bool])
def test_real_numbers_are_taken_as_float32(dtype):
    score = np.array([[0, 1], [1, 0]]).astype(dtype)
    frame = check_frame(score, LABEL.astype(np.int64), "a")
    assert frame.score.dtype == np.float32 and frame.label.dtype == np.uint8
    assert (frame.score == score).all() and (frame.label == LABEL).all()


@pytest.mark.parametrize(
    "score, label, says",
    [
        (np.zeros((2, 3)), LABEL, "(2, 3)"),
        (np.zeros(4), LABEL.ravel(), "(4,)"),
        (np.array([[0, np.nan], [0, 0]]), LABEL, "1 of 4 scores"),
        (np.array([[np.inf, -np.inf], [0, 0]]), LABEL, "2 of 4 scores"),
        (np.array([[1e39, 0], [0, 0]]), LABEL, "1 of 4 scores"),  # too large for float32
        (np.zeros((2, 2), complex), LABEL, "complex128"),
        (np.zeros((2, 2)), LABEL * 2, "got 2, 254"),
        (np.zeros((2, 2)), LABEL.astype(int) - 1, "got -1, 254"),
    ],
)
def test_errors_name_the_frame(score, label, says):
    with pytest.raises(UserError) as error:
        check_frame(score, label, "street_07")
    assert "street_07" in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value)


def test_spool_gives_frames_back_again_and_again(tmp_path):
    rng = np.random.default_rng(0)
    frames = [
        check_frame(rng.normal(size=shape), rng.integers(0, 2, shape), "a")
        for shape in [(3, 5), (0, 4), (7, 2)]
    ]
    frames.append(check_frame(np.asfortranarray(rng.normal(size=(2, 2))), LABEL.T, "transposed"))
    spool = Spool(tmp_path)
    for n, frame in enumerate(frames, start=1):
        spool.append(frame)
        next(iter(spool))  # reading in between does no harm
        assert len(spool) == n
    for _ in range(2):
        for given, kept in zip(frames, spool, strict=True):
            assert np.array_equal(given.score, kept.score)
            assert np.array_equal(given.label, kept.label)
            assert kept.score.dtype == np.float32 and kept.label.dtype == np.uint8
    spool.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a temporary file has a name")
def test_spool_leaves_no_file_even_if_the_process_is_killed(tmp_path):
    spool = Spool(tmp_path)
    spool.append(check_frame(np.zeros((2, 2)), LABEL, "a"))
    assert os.listdir(tmp_path) == []
    spool.close()


def test_spool_names_the_folder_that_is_missing_or_full(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Spool(tmp_path / "nowhere")
    spool = Spool(tmp_path)
    frame = check_frame(np.zeros((100, 100)), np.zeros((100, 100)), "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, hard))  # as a full disk: inside the label
    try:
        with pytest.raises(UserError, match=tmp_path.name):
            spool.append(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.close()
