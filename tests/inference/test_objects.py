"""Objects in a score map, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tdos_d2.inference.objects import default_min_area, find_objects, region_means


@pytest.mark.parametrize("min_area", [1, 6])
def test_objects_are_scipys_components(min_area):
    rng = np.random.default_rng(0)
    score = ndimage.gaussian_filter(rng.standard_normal((40, 70)), 1.5).astype(np.float32)
    valid = np.ones(score.shape, bool)
    valid[:, 60:] = False
    found, regions = find_objects(score, 0.1, min_area=min_area, valid=valid)
    labelled, count = ndimage.label((score >= np.float32(0.1)) & valid, np.ones((3, 3)))
    expected = []
    for i, (rows, columns) in enumerate(ndimage.find_objects(labelled), start=1):
        inside = labelled == i
        if inside.sum() >= min_area:
            box = (columns.start, rows.start, columns.stop, rows.stop)
            expected.append((inside.sum(), box, score[inside].mean(), score[inside].max(), inside))
    assert 3 < len(expected) <= count and (min_area == 1) == (len(expected) == count)
    assert len(found) == len(expected)
    assert [item.area for item in found] == sorted((e[0] for e in expected), reverse=True)
    by_box = {box: rest for _, box, *rest in expected}
    for i, item in enumerate(found, start=1):
        mean, highest, inside = by_box[item.box]
        assert item.mean_score == pytest.approx(mean, abs=1e-5)
        assert item.max_score == pytest.approx(highest)
        assert np.array_equal(regions == i, inside)


def test_the_threshold_itself_is_ood():
    found, regions = find_objects(np.array([[0.1, 0.0, 0.2]], np.float32), 0.1)
    assert [item.box for item in found] == [(0, 0, 1, 1), (2, 0, 3, 1)]
    assert regions.tolist() == [[1, 0, 2]]


def test_no_objects():
    found, regions = find_objects(np.zeros((3, 4), np.float32), 1.0)
    assert found == [] and not regions.any() and regions.shape == (3, 4)


def test_region_means():
    regions = np.array([[1, 1, 0], [2, 0, 0]])
    values = np.array([[1.0, 2.0, 100.0], [7.0, 100.0, 100.0]])
    assert region_means(regions, values, 2).tolist() == [1.5, 7.0]


@pytest.mark.parametrize(
    ("shape", "expected"), [((720, 1280), 100), ((360, 480), 19), ((1024, 2048), 228), ((8, 8), 1)]
)
def test_smallest_object(shape, expected):
    assert default_min_area(shape) == expected
