"""Pictures for TensorBoard: image, truth, prediction and score heat map of a few test frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..data import read_image, read_label
from ..data.reading import IGNORE
from ..visualization.drawing import frame_pictures, shrink

_PANEL_WIDTH = 480
_DRAWN = ("sem_seg", "ood_score")


class PictureEvaluator(DatasetEvaluator):
    """Keeps the first frames of a test set and puts them into Detectron2's event storage.

    It has no metrics. Only the main process draws, from its own share of the frames.

    Args:
        dataset_name: a registered dataset.
        num_pictures: frames to draw.
    """

    def __init__(self, dataset_name: str, num_pictures: int) -> None:
        self._name = dataset_name
        self._num = num_pictures if comm.is_main_process() else 0
        self._records: dict[str, Mapping] = {}
        self._pictures: list[np.ndarray] = []

    def reset(self) -> None:
        """Forget the frames of the last evaluation."""
        self._pictures = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Draw these frames if there is room."""
        for frame, output in zip(inputs, outputs, strict=True):
            if len(self._pictures) < self._num:
                self._pictures.append(self._draw(frame["file_name"], output))

    def evaluate(self) -> None:
        """Hand the pictures to the event storage, named ``<dataset>/<number>``."""
        for i, picture in enumerate(self._pictures):
            get_event_storage().put_image(f"{self._name}/{i}", picture.transpose(2, 0, 1))

    def _draw(self, file_name: str, output: Mapping[str, torch.Tensor]) -> np.ndarray:
        if not self._records:
            self._records = {f["file_name"]: f for f in DatasetCatalog.get(self._name)}
        metadata = MetadataCatalog.get(self._name)
        record, image = self._records[file_name], read_image(file_name, "RGB")
        label = np.full(image.shape[:2], IGNORE, np.uint8)
        if "sem_seg_file_name" in record:  # not in a hidden test split
            mask = record.get("region_mask_file_name")
            label = read_label(record["sem_seg_file_name"], metadata, mask)
        arrays = {key: output[key].cpu().numpy() for key in _DRAWN if key in output}
        panels = frame_pictures(image, label, arrays, metadata)
        return np.concatenate([shrink(panel, _PANEL_WIDTH) for panel in panels], axis=1)
