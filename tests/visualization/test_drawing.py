"""Pictures of labels and scores."""

from __future__ import annotations

import cv2
import numpy as np

from tdos_d2.visualization.drawing import (
    OOD_COLOUR,
    VOID_COLOUR,
    colourise,
    contact_sheet,
    heat_map,
    palette,
)


def brightness(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 0].astype(int)


def test_heat_map_is_brighter_where_the_score_is_larger():
    score = np.linspace(-20, 0, 64, dtype=np.float32).reshape(1, 64)
    light = brightness(heat_map(score, -20.0, 0.0))[0]
    assert (np.diff(light) >= 0).all()
    assert light[0] < 20 and light[-1] > 200
    outside = brightness(heat_map(np.array([[-99.0, 99.0]], np.float32), -20.0, 0.0))[0]
    assert outside.tolist() == [light[0], light[-1]]


def test_heat_map_of_a_constant_score_is_no_error():
    assert heat_map(np.zeros((4, 4), np.float32)).shape == (4, 4, 3)


def test_colourise():
    picture = colourise(np.array([[0, 1, 255]], np.uint8), np.array([[1, 2, 3], [4, 5, 6]]))
    assert picture.tolist() == [[[1, 2, 3], [4, 5, 6], list(VOID_COLOUR)]]


def test_palette_takes_the_colours_of_the_dataset_only_if_they_are_enough():
    colours = [(1, 2, 3), (4, 5, 6)]
    assert palette(2, colours).tolist() == [[1, 2, 3], [4, 5, 6]]
    made = palette(5, colours)
    assert made.shape == (5, 3) and len(np.unique(made, axis=0)) == 5


def test_contact_sheet_shows_every_picture(tmp_path):
    colours = np.array([[128, 64, 128], [0, 0, 142]])
    row = [("sofa", np.full((24, 48, 3), colours[0], np.uint8)), ("", np.zeros((24, 48, 3), int))]
    heights = []
    for rows in ([row], [row, row, row[:1]]):
        path = tmp_path / f"{len(rows)}.png"
        contact_sheet(
            rows, path, class_names=["road", "car"], colours=colours, scale=("score", 0.0, 1.0)
        )
        picture = cv2.imread(str(path))
        heights.append(picture.shape[0])
        shown = (picture == (128, 64, 128)).all(-1).sum()  # BGR
        assert shown > 100_000 * len(rows)
        assert (picture == OOD_COLOUR[::-1]).all(-1).any(), "in the legend"
    assert heights[1] > 2 * heights[0] - 120
