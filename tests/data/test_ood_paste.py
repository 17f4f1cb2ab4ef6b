"""Pasted training outliers: what is labelled is what is pasted."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from tdos_d2.data.ood_paste import OODPaste
from tdos_d2.data.shapes import TEXTURES, ShapeSource, random_texture

OOD = 10


class SquareSource:
    """A white square as large as asked for; remembers the sizes."""

    def __init__(self):
        self.sides = []

    def sample(self, rng, max_side):
        self.sides.append(max_side)
        return np.full((max_side, max_side, 3), 255, np.uint8), np.ones((max_side, max_side))


def frame(height=96, width=192):
    rng = np.random.default_rng(0)
    image = rng.integers(40, 60, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, 3, (height, width), dtype=np.uint8)


def test_label_and_image_change_in_the_same_places():
    image, label = frame()
    paste = OODPaste(ShapeSource(), 1.0, ood_label=OOD)
    for seed in range(20):
        pasted, pasted_label = paste(image, label, np.random.default_rng(seed))
        inside = pasted_label == OOD
        assert inside.any()
        np.testing.assert_array_equal(pasted_label[~inside], label[~inside])
        seam = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        np.testing.assert_array_equal(pasted[~seam], image[~seam])
        # A shape may share a colour with what it covers, but not in most of its pixels.
        assert (pasted != image).any(-1)[inside].mean() > 0.8


@pytest.mark.parametrize("size", [(3, 90), (4, 90), (7, 7), (90, 1), (90, 2), (8, 8)])
def test_images_of_a_few_pixels(size):
    paste = OODPaste(ShapeSource(), 1.0, ood_label=OOD)
    pasted = [paste(*frame(*size), np.random.default_rng(seed))[1] for seed in range(20)]
    assert any((label == OOD).any() for label in pasted) == (min(size) >= 8)


def test_seam_is_soft_and_inside_is_not():
    image = np.zeros((64, 64, 3), np.uint8)
    paste = OODPaste(SquareSource(), 1.0, (1, 1), (0.25, 0.25), ood_label=1)
    pasted, label = paste(image, np.zeros((64, 64), np.uint8), np.random.default_rng(3))
    inner = cv2.erode(label, np.ones((3, 3), np.uint8)) > 0
    outer = cv2.dilate(label, np.ones((3, 3), np.uint8)) > label
    assert len(np.unique(pasted[inner])) == 1
    assert pasted[outer].max() < pasted[inner].max()
    assert pasted[outer].min() > 0


def test_objects_stand_on_the_classes_chosen():
    image, _ = frame()
    label = np.ones((96, 192), np.uint8)
    label[48:, 60:140] = 2  # a road in the middle of the lower half
    paste = OODPaste(SquareSource(), 1.0, (1, 1), (0.1, 0.3), ood_label=OOD, stand_on=[2])
    for seed in range(30):
        _, pasted = paste(image, label, np.random.default_rng(seed))
        rows, columns = np.nonzero(pasted == OOD)
        if len(rows):  # ten tries may all miss
            assert rows.max() >= 48
            assert 58 <= (columns.min() + columns.max()) / 2 <= 141
    everywhere = OODPaste(SquareSource(), 1.0, (1, 1), (0.1, 0.3), ood_label=OOD)
    feet = [
        np.nonzero(everywhere(image, label, np.random.default_rng(seed))[1] == OOD)
        for seed in range(30)
    ]
    assert any(columns.mean() < 50 for _, columns in feet)


def test_shadows_darken_the_ground_at_the_foot_and_nothing_else():
    image = np.full((96, 192, 3), 200, np.uint8)
    label = np.ones((96, 192), np.uint8)
    label[48:] = 2
    paste = OODPaste(
        SquareSource(), 1.0, (1, 1), (0.2, 0.3), ood_label=OOD, stand_on=[2], shadow=1.0
    )
    cast = 0
    for seed in range(30):
        pasted, pasted_label = paste(image, label, np.random.default_rng(seed))
        inside = pasted_label == OOD
        np.testing.assert_array_equal(pasted_label[~inside], label[~inside])
        seam = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        change = pasted.astype(int)[..., 0] - 200
        change[seam] = 0
        assert change.max() <= 0 and change.min() > -150  # never black
        shaded = change < 0
        assert not shaded[:48].any()  # what is no ground stays as it is
        if shaded.any():
            cast += 1
            foot, side = np.nonzero(inside)[0].max(), np.sqrt(inside.sum())
            assert np.abs(np.nonzero(shaded)[0] - foot).max() < side / 2
    assert cast > 20  # the others stand at the lower edge


def test_inputs_stay_as_they_are():
    image, label = frame()
    image.flags.writeable = label.flags.writeable = False
    paste = OODPaste(ShapeSource(), 1.0, ood_label=OOD)
    pasted, pasted_label = paste(image, label, np.random.default_rng(1))
    assert pasted.dtype == pasted_label.dtype == np.uint8
    untouched = OODPaste(ShapeSource(), 0.0, ood_label=OOD)(image, label, np.random.default_rng(1))
    assert not np.shares_memory(untouched[0], image)
    np.testing.assert_array_equal(untouched[1], label)


def test_the_generator_decides_everything():
    image, label = frame()
    paste = OODPaste(ShapeSource(), 0.7, ood_label=OOD)
    first = [paste(image, label, np.random.default_rng(seed)) for seed in range(5)]
    again = [paste(image, label, np.random.default_rng(seed)) for seed in range(5)]
    for (a, la), (b, lb) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)
    assert any((a[0] != b[0]).any() for a, b in pairwise(first))


def test_prob_num_and_size():
    image, label = frame(100, 150)
    source = SquareSource()
    paste = OODPaste(source, 0.3, (2, 4), (0.1, 0.4), ood_label=OOD)
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(400):
        before = len(source.sides)
        paste(image, label, rng)
        counts.append(len(source.sides) - before)
    assert set(counts) == {0, 2, 3, 4}
    # 400 draws at 0.3: standard deviation 0.023
    assert np.mean(np.array(counts) > 0) == pytest.approx(0.3, abs=0.09)
    assert 10 <= min(source.sides) < 13
    assert 37 < max(source.sides) <= 40


def test_objects_go_anywhere_but_the_top():
    image, label = frame()
    paste = OODPaste(ShapeSource(), 1.0, ood_label=OOD)
    rng = np.random.default_rng(0)
    hits = sum((paste(image, label, rng)[1] == OOD).astype(int) for _ in range(150))
    cells = hits[32:].reshape(4, 16, 12, 16).sum((1, 3))
    assert (cells > 0).all()
    assert hits[:10].mean() < 0.3 * hits[40:].mean()


@pytest.mark.parametrize(
    "arguments",
    [{"prob": 1.5}, {"num": (0, 2)}, {"num": (3, 2)}, {"size": (0.5, 0.1)}, {"shadow": -0.1}],
)
def test_wrong_ranges(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        OODPaste(ShapeSource(), **{"prob": 0.5, **arguments}, ood_label=OOD)


@pytest.mark.parametrize("side", [3, 4, 17, 90])
def test_shapes_have_the_size_asked_for(side):
    rng = np.random.default_rng(side)
    for _ in range(30):
        patch, mask = ShapeSource().sample(rng, side)
        assert patch.dtype == np.uint8 and patch.shape == (*mask.shape, 3)
        assert max(mask.shape) == side
        assert mask.min() >= 0 and mask.max() <= 1
        assert (mask > 0.5).any()


def test_shapes_vary_in_hue_and_brightness():
    rng = np.random.default_rng(0)
    colours = []
    for _ in range(300):
        patch, mask = ShapeSource().sample(rng, 24)
        colours.append(patch[mask > 0.5].mean(0))
    hsv = cv2.cvtColor(np.array(colours, np.uint8)[None], cv2.COLOR_RGB2HSV)[0]
    hues = np.histogram(hsv[hsv[:, 1] > 40, 0], bins=6, range=(0, 180))[0]
    assert (hues > 5).all()
    assert (hsv[:, 1] < 40).sum() > 30  # greys
    assert (hsv[:, 2] < 50).sum() > 20  # dark
    assert (hsv[:, 2] > 180).sum() > 20  # bright


def test_textures_differ_in_contrast():
    rng = np.random.default_rng(0)
    contrast = {
        style: np.mean([random_texture(rng, (32, 32), style).std((0, 1)).max() for _ in range(60)])
        for style in TEXTURES
    }
    assert contrast["plain"] < 0.01
    assert 1 < contrast["muted"] < 0.5 * contrast["vivid"]
