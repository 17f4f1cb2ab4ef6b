"""Properties that hold whatever the numbers are, on examples that hypothesis chooses."""

from __future__ import annotations

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tdos_d2.data import TDOSDatasetMapper
from tdos_d2.data.ood_paste import OODPaste
from tdos_d2.data.shapes import ShapeSource
from tdos_d2.evaluation import evaluate_scores
from tdos_d2.evaluation.calibration import alarm_level, calibrate
from tdos_d2.evaluation.component_metrics import component_metrics, concatenate, score_components
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.pixel_metrics import KeyBins, count_pixels
from tdos_d2.modeling.scores import resize
from tdos_d2.modeling.sliding_window import slide, window_starts

settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, max_examples=25,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("same")

SHAPE = (5, 6)
LEVELS = 9
FRAMES = st.lists(
    st.tuples(
        arrays(np.int64, SHAPE, elements=st.integers(0, LEVELS - 1)),
        arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 0, 1, 255])),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
VALUES = st.lists(
    st.floats(-1e6, 1e6, width=32), min_size=LEVELS, max_size=LEVELS, unique=True
).map(sorted)
SEEDS = st.integers(0, 2**32 - 1)


def metrics(frames):
    labels = np.stack([label for _, label in frames])
    assume((labels == 0).any() and (labels == 1).any())
    return evaluate_scores(frames, min_pred=1, min_gt=1)


def same(first, second):
    assert first == pytest.approx(second, abs=0.01, nan_ok=True)  # in percent


@settings(max_examples=8)
@given(FRAMES, st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_of_frames(frames, random):
    other = random.sample(frames, len(frames))
    same(metrics(frames), metrics(other))


@settings(max_examples=8)
@given(FRAMES, VALUES)
def test_metrics_do_not_depend_on_the_scale_of_scores(frames, values):
    """Any strictly increasing function: level i becomes the i-th value."""
    table = np.array(values, np.float32)
    same(metrics(frames), metrics([(table[score], label) for score, label in frames]))


@given(FRAMES, st.data())
def test_counts_of_parts_are_those_of_the_whole(frames, data):
    """As processes count, each its own frames."""
    checked = [check_frame(score, label, "x") for score, label in frames]
    owner = data.draw(st.lists(st.integers(0, 2), min_size=len(frames), max_size=len(frames)))
    parts = [[f for f, who in zip(checked, owner, strict=True) if who == i] for i in range(3)]
    bins = KeyBins.coarse()
    whole = count_pixels(checked, bins)
    assert (sum(count_pixels(part, bins) for part in parts) == whole).all()
    threshold = data.draw(st.integers(0, LEVELS)) - 0.5
    joined = concatenate([score_components(part, threshold, (1, 1)) for part in parts])
    alone = component_metrics(score_components(checked, threshold, (1, 1)))
    same(component_metrics(joined), alone)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_windows_cover_every_pixel(length, size, data):
    stride = data.draw(st.integers(1, size))
    starts = window_starts(length, size, stride)
    covered = [i for start in starts for i in range(start, start + min(size, length))]
    assert set(covered) == set(range(length))
    assert starts == sorted(starts) and max(np.diff(starts), default=0) <= stride


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 16), st.integers(1, 5), st.data())
def test_windows_of_what_looks_at_single_pixels_change_nothing(height, width, size, batch, data):
    """So does a constant image: its score is constant, at the edges too."""
    stride = data.draw(st.integers(1, size))
    generator = torch.Generator().manual_seed(data.draw(SEEDS))
    image = torch.rand((3, height, width), generator=generator)

    def score(windows):
        return windows.sum(1, keepdim=True).tanh()

    found = slide(image, score, size=size, stride=stride, batch=batch)
    torch.testing.assert_close(found, score(image[None])[0])
    grey = slide(torch.full_like(image, 0.3), score, size=size, stride=stride, batch=batch)
    assert (grey == grey[0, 0, 0]).all() or grey.std() < 1e-6


@given(SEEDS, st.floats(0.05, 0.6), st.integers(1, 3), st.booleans())
def test_pasting_labels_only_what_it_changes(seed, size, num, void):
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (48, 64, 3), np.uint8)
    label = rng.integers(0, 3, (48, 64), np.uint8)
    if void:
        label[:, 20:40] = 255
    paste = OODPaste(ShapeSource(), 1.0, (1, num), (size, size), ood_label=7)
    before = image.copy(), label.copy()
    pasted, labelled = paste(image, label, rng)
    assert (image == before[0]).all() and (label == before[1]).all()  # the input is left alone
    new = labelled != label
    assert set(np.unique(labelled[new])) <= {7}
    changed = (pasted != image).any(axis=2)
    near = cv2.dilate(new.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert not changed[~near].any()
    # Of thousands of pixels some have the colour that was there.
    assert new.sum() == 0 or changed[new].mean() > 0.8


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """An image whose red channel says what its label is."""
    folder = tmp_path_factory.mktemp("frame")
    label = np.random.default_rng(0).integers(0, 4, (40, 56), np.uint8)
    image = np.repeat(label[..., None] * 60, 3, 2)
    cv2.imwrite(str(folder / "image.png"), image)
    cv2.imwrite(str(folder / "label.png"), label)
    return {"file_name": str(folder / "image.png"), "sem_seg_file_name": str(folder / "label.png")}


@given(st.integers(0, 10**6), st.integers(0, 100), st.booleans())
def test_the_mapper_moves_image_and_label_alike(frame, position, seed, paste):
    mapper = TDOSDatasetMapper(
        is_train=True,
        augmentations=[T.RandomCrop("absolute", (24, 32)), T.RandomFlip()],
        image_format="RGB",
        metadata={"x": Metadata(name="x", stuff_classes=["a", "b", "c", "d"], ignore_label=255)},
        ood_paste=OODPaste(ShapeSource(), 1.0, (1, 1), (0.3, 0.3), ood_label=4) if paste else None,
        pad_size=(30, 32),
        seed=seed,
    )
    found = mapper({**frame, "dataset_name": "x", "position": position})
    image, label = found["image"].numpy(), found["sem_seg"].numpy()
    assert image.shape[1:] == label.shape == (30, 32)
    assert (label == 255).sum() == 6 * 32  # the padding
    known = (label < 4).astype(np.uint8)
    inner = cv2.erode(known, np.ones((3, 3), np.uint8), borderValue=1) > 0  # a seam is soft
    assert (image[0][inner] == 60 * label[inner]).all()
    assert paste or inner.sum() == 24 * 32 or inner.sum() >= 22 * 30


@given(SEEDS, st.integers(2, 9), st.integers(2, 9), st.integers(1, 30), st.integers(1, 30))
def test_resizing_keeps_range_scale_and_sides(seed, h, w, height, width):
    maps = torch.rand((1, 2, h, w), generator=torch.Generator().manual_seed(seed))
    found = resize(maps, (height, width))
    assert maps.min() - 1e-6 <= found.min() and found.max() <= maps.max() + 1e-6
    torch.testing.assert_close(resize(3 * maps - 1, (height, width)), 3 * found - 1)
    torch.testing.assert_close(resize(maps.flip(3), (height, width)), found.flip(3))
    torch.testing.assert_close(resize(maps.mT, (width, height)), found.mT)


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(3, 9), st.integers(3, 9))
def test_a_slope_is_the_same_after_there_and_back(a, b, h, w):
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    slope = (a * y + b * x)[None, None]
    back = resize(resize(slope, (2 * h, 2 * w)), (h, w))
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(back[inner], slope[inner], atol=1e-4, rtol=1e-5)


@given(st.lists(st.floats(-100, 100, width=32), min_size=9, max_size=40), st.integers(10, 60),
       st.randoms(use_true_random=False))  # fmt: skip
def test_calibration_is_the_lowest_threshold_with_its_rate(levels, percent, random):
    rate = percent / 100
    found = calibrate(levels, rate, 1).threshold
    n, exact = len(levels), Fraction(percent, 100)
    allowed = n - math.ceil((n + 1) * (1 - exact))  # split-conformal, by the formula
    values = np.array(levels, np.float32)
    assert (values >= np.float32(found)).sum() <= allowed
    lower = np.nextafter(np.float32(found), np.float32(-np.inf))
    assert (values >= lower).sum() > allowed
    assert calibrate(random.sample(levels, n), rate, 1).threshold == found


def has_object(mask, least):
    """Brute force: flood fill over eight neighbours."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            front += around
        if len(region) >= least:
            return True
    return False


@given(arrays(np.float32, SHAPE, elements=st.integers(0, 9).map(float)), st.integers(1, 32))
def test_the_alarm_level_is_the_highest_with_an_object(score, least):
    levels = [level for level in np.unique(score) if has_object(score >= level, least)]
    assert alarm_level(score, least) == (max(levels) if levels else -math.inf)
