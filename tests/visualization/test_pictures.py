"""Pictures of predictions: score over the image, segmentation, scale and legend."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tdos_d2.inference.objects import find_objects
from tdos_d2.visualization.captions import font_size, legend_strip, scale_strip, write_texts
from tdos_d2.visualization.drawing import OOD_COLOUR, palette, score_picture, segmentation_picture

SIZES = [(360, 480), (1024, 2048), (40, 60)]
COLOURS = np.array([(200, 0, 50), (0, 90, 200)], np.uint8)
# Machado, Oliveira, Fernandes 2009: what deuteranopes and protanopes see, of linear RGB.
DEFICIENCIES = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
}  # fmt: skip


def lab(colours: np.ndarray) -> np.ndarray:
    """(n, 3) RGB in 0..255 -> CIELAB."""
    rgb = np.asarray(colours, np.float32)[None] / 255
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0].astype(float)


def seen_by(colours: np.ndarray, deficiency: str) -> np.ndarray:
    linear = (np.asarray(colours) / 255.0) ** 2.2 @ np.array(DEFICIENCIES[deficiency]).T
    return 255 * np.clip(linear, 0, 1) ** (1 / 2.2)


def frame(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A grey image and a score with one square object."""
    score = np.full(shape, -7.0, np.float32)
    h, w = shape
    score[h // 4 : h // 2, w // 4 : w // 2] = -0.1
    return np.full((h, w, 3), 120, np.uint8), score


@pytest.mark.parametrize("shape", SIZES)
def test_score_picture(shape):
    image, score = frame(shape)
    h, w = shape
    objects, regions = find_objects(score, -1.0)
    valid = np.ones(shape, bool)
    valid[-h // 10 :] = False
    picture = score_picture(
        image, score, (-8.0, 0.0), "log_s_ood",
        threshold=-1.0, regions=regions, tags=[(objects[0].box, "1 deer")], valid=valid,
    )  # fmt: skip
    assert picture.dtype == np.uint8 and picture.shape[1:] == (w, 3) and picture.shape[0] > h
    light = cv2.cvtColor(picture[:h], cv2.COLOR_RGB2LAB)[..., 0].astype(int)
    assert light[3 * h // 8, 3 * w // 8] > light[3 * h // 4, 3 * w // 4] + 60
    outline = (picture[:h] == OOD_COLOUR).all(-1)
    assert outline[h // 2 - 1, w // 4 + 2 : w // 2 - 2].all()  # the tag is at the top
    rows, columns = np.nonzero(outline)
    assert h // 4 - 6 <= rows.min() and rows.max() <= h // 2 + 6
    assert w // 4 - 6 <= columns.min() and columns.max() <= w // 2 + 6
    hatched = picture[h - h // 20, :]
    assert (hatched == hatched[:, :1]).all() and len(np.unique(hatched)) == 2  # greys, striped


@pytest.mark.parametrize("shape", SIZES)
def test_segmentation_picture(shape):
    h, w = shape
    label = np.zeros(shape, np.uint8)
    label[:, w // 2 :] = 1
    label[: h // 3, : w // 3] = 2  # OOD
    image = np.full((h, w, 3), 100, np.uint8)
    picture = segmentation_picture(image, label, ["road", "car"], COLOURS)
    assert picture.shape[1:] == (w, 3) and picture.shape[0] > h
    assert picture[h - 2, 5].tolist() == [150, 50, 75]  # half image, half colour
    assert picture[2, w - 3].tolist() == [50, 95, 150]
    assert picture[h // 6, w // 6].tolist() == [100, 100, 100]  # an OOD object is as it is
    assert (picture[:h] == OOD_COLOUR).all(-1).sum() > h // 3
    assert (picture[h - 2, w // 2] < [50, 95, 150]).all()  # a seam between classes
    for colour in (*COLOURS, OOD_COLOUR):
        assert (picture[h:] == colour).all(-1).any(), "in the legend"
    if h > 100:
        white = (picture[:h] == 255).all(-1)
        assert white[:, : w // 2].any() and white[:, w // 2 :].any()  # names in both regions
        assert not white[: h // 3, : w // 3].any()


def test_letters_grow_with_the_picture():
    assert font_size(480) == 11 and font_size(2048) == 27
    heights = [legend_strip(w, ["road"], COLOURS[:1]).shape[0] for w in (480, 2048)]
    assert heights[1] > 2 * heights[0]


def test_legend_has_as_many_rows_as_it_takes():
    names = [f"class number {i}" for i in range(19)]
    colours = palette(19)
    strip = legend_strip(480, names, colours)
    assert strip.shape[0] > 4 * legend_strip(480, names[:1], colours[:1]).shape[0]
    assert all((strip == colour).all(-1).any() for colour in colours)
    assert (strip[:, -1] == 255).all()  # nothing is cut off


def test_scale_marks_the_threshold():
    ramp = np.linspace((0, 0, 90), (255, 255, 90), 256).astype(np.uint8)
    plain = scale_strip(400, ramp, (0.0, 1.0), "score")
    marked = scale_strip(400, ramp, (0.0, 1.0), "score", (0.75, "OOD"))
    bar = (plain[..., 2] == 90).sum(1).argmax()  # a row of the ramp
    inside = np.flatnonzero(plain[bar, :, 2] == 90)
    assert (np.diff(plain[bar, inside, 0].astype(int)) >= 0).all()
    changed = np.flatnonzero((plain[bar] != marked[bar]).any(-1))
    assert abs(changed.mean() - (inside[0] + 0.75 * (inside[-1] - inside[0]))) < 3


def test_texts_stay_inside():
    blank = np.full((40, 200, 3), 90, np.uint8)
    inside = (write_texts(blank, [("12 deer", 100, 30)], "md") == 255).all(-1).sum()
    for place in ((0, 0), (199, 0), (0, 39), (199, 39)):
        written = (write_texts(blank, [("12 deer", *place)], "md") == 255).all(-1).sum()
        assert written == pytest.approx(inside, rel=0.2)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_that_the_colour_blind_can_tell_apart(deficiency):
    colours = lab(seen_by(palette(8), deficiency))
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert gaps[~np.eye(8, dtype=bool)].min() > 10
    # The outline, on its dark rim, from every colour of the score's map.
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0]
    ramp = lab(seen_by(ramp[:, ::-1], deficiency))
    assert (np.diff(ramp[:, 0]) > -0.2).all() and ramp[-1, 0] - ramp[0, 0] > 90
    outline = lab(seen_by(np.array([OOD_COLOUR]), deficiency))
    assert np.linalg.norm(ramp - outline, axis=1).min() > 20
