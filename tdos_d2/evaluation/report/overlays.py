"""Writes a picture of every frame as a model sees it, as a Detectron2 evaluator."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ...data import get_dicts
from ..frames import check_finite
from ..ood_evaluator import main_score
from .sections import draw_classes, draw_without_label, frame_id, write_picture


class OverlayWriter(DatasetEvaluator):
    """Writes ``folder/<dataset>/<frame>.jpg`` at once. It has no metrics.

    For sets that need no threshold: of a segmentation set the image under the predicted classes; of
    an OOD set without labels image and score. ``OODEvaluator`` writes those of OOD sets with labels
    when it knows their threshold.

    Args:
        dataset_name: a registered dataset, with or without labels.
        folder: where to write.
        score: what the score is called.
    """

    def __init__(
        self, dataset_name: str, folder: str | os.PathLike, score: str = "ood_score"
    ) -> None:
        self._name = dataset_name
        self._folder = folder
        self._score = score
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = {record["file_name"]: record for record in get_dicts(dataset_name)}

    def reset(self) -> None:
        """Nothing to forget: files are written at once."""

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the files of some frames.

        Args:
            inputs: dicts with the ``file_name`` of the dataset.
            outputs: as in ``OODEvaluator.process`` or ``SemSegEvaluator.process``.

        Raises:
            UserError: an image cannot be read, or is not of the size of the score; a score is
                not finite; nothing can be written.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            record = self._records[input_["file_name"]]
            if self._metadata.get("evaluator_type") == "ood":
                score = main_score(output).detach().float().cpu().numpy()
                check_finite(score, record["file_name"])
                pictures = draw_without_label(record, score, self._score)
            else:
                classes = output["sem_seg"].argmax(dim=0).cpu().numpy()
                pictures = draw_classes(record, classes, len(output["sem_seg"]), self._metadata)
            write_picture(self._folder, self._name, frame_id(record), pictures)

    def evaluate(self) -> dict[str, Any]:
        """Returns {}."""
        return {}
