"""Temporal smoothing of a video's scores: each is averaged with those of previous frames."""

from __future__ import annotations

import cv2
import numpy as np

METHODS = ("off", "ema", "flow")
# Weight of the current frame. The variance of noise that is independent between frames is reduced
# to WEIGHT / (2 - WEIGHT) = 1/4; the average is 1.5 frames old.
WEIGHT = 0.4
_HEIGHT = 360  # of the images that the flow is computed on
_LEAST = 12  # pixels of a side of these images: the flow of smaller ones is an error in OpenCV
_RESIDUAL = 20.0  # grey levels of 255; the flow is rejected where the difference is larger


class MovingAverage:
    """Exponential moving average of the score, pixel by pixel. Keeps one score map.

    Args:
        weight: weight of the current frame, in (0, 1]; the average so far has the rest.
    """

    def __init__(self, weight: float = WEIGHT) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"weight is in (0, 1], not {weight}")
        self.weight = weight
        self._average: np.ndarray | None = None

    def __call__(self, image: np.ndarray, score: np.ndarray) -> np.ndarray:
        """The average including this frame. The first frame, or one of a new size, restarts it.

        Args:
            image: (H, W, 3) uint8 BGR.
            score: (H, W).

        Returns:
            (H, W) float32.
        """
        score = score.astype(np.float32)
        if self._average is None or self._average.shape != score.shape:
            self._restart(image)
            self._average = score
        else:
            self._average = self._mix(image, score, self._average)
        return self._average.copy()

    def _restart(self, image: np.ndarray) -> None:
        """Start a new average with this frame."""

    def _mix(self, image: np.ndarray, score: np.ndarray, average: np.ndarray) -> np.ndarray:
        return average + self.weight * (score - average)


class FlowAverage(MovingAverage):
    """As :class:`MovingAverage`, but the average follows the motion in the image.

    OpenCV's dense optical flow (Kroeger et al., "Fast Optical Flow using Dense Inverse Search",
    2016) tells where each pixel was in the previous frame. Where that is outside the frame or looks
    different (occluded before, or a wrong flow), only the score of the current frame is used.
    Keeps one score map and one small grey image. Of frames that are too small or too narrow for the
    flow, the average is that of :class:`MovingAverage`.
    """

    def __init__(self, weight: float = WEIGHT) -> None:
        super().__init__(weight)
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._before = np.empty((0, 0), np.uint8)

    def _restart(self, image: np.ndarray) -> None:
        self._before = _small_grey(image)

    def _mix(self, image: np.ndarray, score: np.ndarray, average: np.ndarray) -> np.ndarray:
        now = _small_grey(image)
        if min(now.shape) < _LEAST:
            return super()._mix(image, score, average)
        flow = self._flow.calc(now, self._before, None)  # from each pixel to where it was
        height, width = now.shape
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        x = columns.astype(np.float32) + flow[..., 0]
        y = rows.astype(np.float32) + flow[..., 1]
        was = cv2.remap(self._before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        residual = cv2.blur(np.abs(now.astype(np.float32) - was), (5, 5))
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        share = np.where(inside & (residual <= _RESIDUAL), 1 - self.weight, 0).astype(np.float32)
        self._before = now
        # The flow, not the places, is resized: at the border, resizing repeats the last value.
        size = score.shape[1], score.shape[0]
        by = np.float32(size[0] / width), np.float32(size[1] / height)
        flow = cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR)
        x = np.arange(size[0], dtype=np.float32) + flow[..., 0] * by[0]
        y = np.arange(size[1], dtype=np.float32)[:, None] + flow[..., 1] * by[1]
        share = cv2.resize(share, size, interpolation=cv2.INTER_NEAREST)
        moved = cv2.remap(average, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return score + share * (moved - score)


def score_filter(method: str) -> MovingAverage | None:
    """The filter that ``--temporal`` names, "ema" or "flow"; None for "off"."""
    made = {"off": lambda: None, "ema": MovingAverage, "flow": FlowAverage}
    return made[method]()


def _small_grey(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if (height := grey.shape[0]) <= _HEIGHT:
        return grey
    width = max(1, round(grey.shape[1] * _HEIGHT / height))
    return cv2.resize(grey, (width, _HEIGHT), interpolation=cv2.INTER_AREA)
