"""Writing of score maps in the formats of benchmarks; ``score_files`` reads both.

"smiyc": ``FOLDER/anomaly_p/<method>/<official name of the dataset>/<frame>.hdf5`` with the HDF5
dataset "value", as SegmentMeIfYouCan's tool reads it (FOLDER is its ``outputs``). It is float32
here. The official tool writes float16, which makes different scores equal and changes AP by up to
0.6 points for a saturated sigmoid.

"fishyscapes": ``FOLDER/fishyscapes/<dataset>/<image>_anomaly.npy`` (H, W) float32 and
``<image>_segmentation.npy`` (H, W) uint8 class numbers.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from ..files import atomic_write
from .frames import check_finite
from .score_files import KEY, find_score_files, import_h5py, read_score, short_names

FORMATS = ("smiyc", "fishyscapes")
# Folders of the official tool: one for all splits of a dataset.
_OFFICIAL_NAMES = {
    "smiyc_anomalytrack_val": "AnomalyTrack-all",
    "smiyc_anomalytrack_test": "AnomalyTrack-all",
    "smiyc_obstacletrack_val": "ObstacleTrack-all",
    "smiyc_obstacletrack_test": "ObstacleTrack-all",
    "laf_test": "LostAndFound-test",
    "laf_test_noknown": "LostAndFound-test",
}


class Submission:
    """The files of one dataset in one format.

    Args:
        folder: see the module.
        form: one of ``FORMATS``.
        dataset: name of the dataset.
        frames: ids of its frames.
        method: name of the method, for "smiyc".

    Raises:
        UserError: unknown format; "smiyc" without h5py.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        form: str,
        dataset: str,
        frames: Sequence[str],
        method: str = "tdos_d2",
    ) -> None:
        if form not in FORMATS:
            raise UserError(f"unknown submission format {form!r}: there are {', '.join(FORMATS)}")
        self._frames = list(frames)
        self._smiyc = form == "smiyc"
        self._names = short_names(self._frames) if self._smiyc else short_names(self._frames, "")
        self.folder = Path(folder, "fishyscapes", dataset)
        if self._smiyc:
            import_h5py()
            official = _OFFICIAL_NAMES.get(dataset, dataset)
            self.folder = Path(folder, "anomaly_p", method, official)

    def write(self, frame: str, score: np.ndarray, classes: np.ndarray | None = None) -> None:
        """Write the files of a frame, read them back and compare.

        Args:
            frame: its id.
            score: (H, W) real numbers, larger = more anomalous; written as float32.
            classes: (H, W) class numbers below 255, for "fishyscapes".

        Raises:
            UserError: scores are not finite or not (H, W), or classes are missing; a file cannot be
                written, or differs when it is read back.
        """
        score = np.asarray(score, np.float32)
        if score.ndim != 2:
            raise UserError(f"{frame}: scores of shape {score.shape} must be (H, W)")
        check_finite(score, frame)
        if self._smiyc:
            arrays = {".hdf5": score}
        elif classes is None or classes.shape != score.shape:
            raise UserError(
                f"{frame}: Fishyscapes' pair needs classes of shape {score.shape}, from a model "
                "with known classes"
            )
        else:
            arrays = {"_anomaly.npy": score, "_segmentation.npy": np.asarray(classes, np.uint8)}
        for ending, array in arrays.items():
            path = self.folder / (self._names[frame] + ending)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    (_write_hdf5 if self._smiyc else np.save)(file, array)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot write {path}: {reason}") from error
            there = read_score(path)
            if there.dtype != array.dtype or not np.array_equal(there, array):
                raise UserError(f"{path} does not hold what was written to it: is the disk full?")

    def check(self) -> None:
        """Raise UserError unless every frame has its file. The folder may hold other splits."""
        find_score_files(self.folder, self._frames, allow_extra=True)


def _write_hdf5(file: IO[bytes], array: np.ndarray) -> None:
    content = io.BytesIO()  # h5py also reads from the file that it writes
    with import_h5py().File(content, "w") as made:
        made.create_dataset(KEY, data=array, compression="gzip", compression_opts=4, shuffle=True)
    file.write(content.getbuffer())
