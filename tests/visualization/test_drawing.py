"""Pictures of labels and scores."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tdos_d2.visualization.drawing import (
    OOD_COLOUR,
    VOID_COLOUR,
    Panel,
    colourise,
    contact_sheet,
    frame_pictures,
    heat_map,
    palette,
)


class Metadata(SimpleNamespace):
    """Stands in for Detectron2's, which also has ``get``."""

    def get(self, name, default):
        return getattr(self, name, default)


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
    metadata = Metadata(stuff_colors=[(1, 2, 3), (4, 5, 6)])
    assert palette(metadata, 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    made = palette(metadata, 5)
    assert made.shape == (5, 3) and len(np.unique(made, axis=0)) == 5


@pytest.mark.parametrize("kind", ["ood", "sem_seg"])
def test_pictures_of_a_frame(kind):
    metadata = Metadata(evaluator_type=kind, stuff_colors=[(10, 0, 0), (0, 20, 0)])
    image = np.zeros((2, 2, 3), np.uint8)
    label = np.array([[0, 1], [255, 1]], np.uint8)
    sem_seg = np.zeros((2, 2, 2), np.float32)
    sem_seg[1, 0] = 1  # class 1 in the upper row
    pictures = frame_pictures(image, label, {"sem_seg": sem_seg}, metadata)
    assert [p.shape for p in pictures] == [(2, 2, 3)] * 4
    truth, prediction = pictures[1], pictures[2]
    assert truth[0, 1].tolist() == (list(OOD_COLOUR) if kind == "ood" else [0, 20, 0])
    assert truth[1, 0].tolist() == list(VOID_COLOUR)
    assert prediction[:, 0].tolist() == [[0, 20, 0], [10, 0, 0]]
    # without an OOD score the picture shows max-logit: known pixels are dark
    assert brightness(pictures[3])[0, 0] < brightness(pictures[3])[1, 0]


def test_contact_sheet_shows_every_panel(tmp_path):
    size = (24, 48)
    panel = Panel(
        "sofa",
        np.full((*size, 3), 200, np.uint8),
        np.zeros(size, np.uint8),
        np.zeros(size, np.uint8),
        np.zeros(size, np.float32),
    )
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        contact_sheet(
            [panel] * count,
            path,
            class_names=["road", "car"],
            colours=np.array([[128, 64, 128], [0, 0, 142]]),
            score_label="score",
            score_range=(0.0, 1.0),
        )
        picture = cv2.imread(str(path))
        heights.append(picture.shape[0])
        assert (picture == (128, 64, 128)).all(-1).any(), "truth in the colour of class 0 (BGR)"
    assert heights[1] > 2 * heights[0] - 120
