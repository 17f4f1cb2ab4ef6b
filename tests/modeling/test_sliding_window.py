"""Sliding windows: coverage, averaging, sizes."""

from __future__ import annotations

import pytest
import torch

from tdos_d2.modeling.sliding_window import slide, window_starts


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (2048, 512, 341, [0, 341, 682, 1023, 1364, 1536]),
        (1024, 512, 341, [0, 341, 512]),
        (512, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (100, 512, 341, [0]),
        (853, 512, 341, [0, 341]),
    ],
)
def test_starts(length, size, stride, expected):
    assert window_starts(length, size, stride) == expected


@pytest.mark.parametrize("shape", [(7, 13), (13, 7), (3, 20), (8, 8), (2, 3)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_average_equals_brute_force(shape, batch):
    """Each window adds its own number, so that the average shows which windows covered a pixel."""
    height, width = shape
    image = torch.randn(3, height, width)
    seen = []

    def predict(windows):
        assert len(windows) <= batch
        outputs = []
        for window in windows:
            seen.append(window)
            outputs.append(torch.stack([window[0], torch.full(window.shape[1:], float(len(seen)))]))
        return torch.stack(outputs)

    size, stride = 5, 3
    result = slide(image, predict, size=size, stride=stride, batch=batch)
    assert result.shape == (2, height, width)
    torch.testing.assert_close(result[0], image[0])
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    number = 0
    h, w = min(size, height), min(size, width)
    for y in window_starts(height, h, stride):
        for x in window_starts(width, w, stride):
            number += 1
            total[y : y + h, x : x + w] += number
            count[y : y + h, x : x + w] += 1
    assert number == len(seen)
    torch.testing.assert_close(result[1], total / count)


def test_whole_image():
    image = torch.randn(3, 9, 31)
    result = slide(image, lambda x: x * 2, size=0, stride=3, batch=1)
    torch.testing.assert_close(result, image * 2)
