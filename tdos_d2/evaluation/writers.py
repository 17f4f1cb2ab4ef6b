"""Detectron2 evaluators without metrics: they write or draw a model's output for each frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..data import read_image
from ..errors import UserError
from ..labels import VOID
from ..visualization.drawing import OOD_COLOUR, colourise, heat_map, overlay, palette, shrink
from .frames import check_finite, frame_id
from .ood_evaluator import FrameEvaluator, score_of
from .report.sections import draw_without_label, write_picture
from .submission import Submission

logger = logging.getLogger(__name__)

_PANEL_WIDTH = 480


class SubmissionWriter(FrameEvaluator):
    """Writes ``ood_score``, and for Fishyscapes the classes predicted by ``sem_seg``.

    Arguments and errors are those of ``FrameEvaluator`` and ``Submission``.
    """

    def __init__(
        self, dataset_name: str, folder: str | os.PathLike, form: str, method: str = "tdos_d2"
    ) -> None:
        super().__init__(dataset_name)
        self._form = form
        frames = [frame_id(record) for record in self._records.values()]
        self._submission = Submission(folder, form, dataset_name, frames, method)

    def process_frame(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Write one frame.

        Raises:
            UserError: the scores have another size than the image; see ``Submission.write``.
        """
        score = score_of(output)
        size = (record.get("height", score.shape[0]), record.get("width", score.shape[1]))
        if score.shape != size:
            raise UserError(f"{record['file_name']}: scores {score.shape}, image {size}")
        classes, known = None, output.get("sem_seg", ())
        if self._form == "fishyscapes" and len(known):
            classes = known.argmax(dim=0).cpu().numpy()
        self._submission.write(frame_id(record), score, classes)

    def evaluate(self) -> None:
        """Raise UserError if a frame has no file."""
        comm.synchronize()
        if comm.is_main_process():
            self._submission.check()
            logger.info(
                f"{self._name}: score maps of {len(self._records)} frames in "
                f"{self._submission.folder}, float32, read back and compared"
            )


class OverlayWriter(FrameEvaluator):
    """Writes a picture of every frame to ``folder/<dataset>/<frame>.jpg``.

    For a segmentation dataset it shows the image tinted with the predicted classes, for an OOD
    dataset without labels the image and the score. Pictures of OOD datasets with labels need the
    threshold of the whole dataset: ``OODEvaluator`` writes them.

    Args:
        dataset_name: a registered dataset.
        folder: folder to write to.
        score: name of the score in pictures.
    """

    def __init__(
        self, dataset_name: str, folder: str | os.PathLike, score: str = "ood_score"
    ) -> None:
        super().__init__(dataset_name)
        self._folder = folder
        self._score = score

    def process_frame(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Write one frame.

        Raises:
            UserError: the image cannot be read, or is not of the size of the score; a score is not
                finite; the folder cannot be written to.
        """
        if self._metadata.get("evaluator_type") == "ood":
            score = score_of(output)
            check_finite(score, record["file_name"])
            pictures = draw_without_label(record, score, self._score)
        else:
            classes = output["sem_seg"].argmax(dim=0).cpu().numpy()
            colours = palette(len(output["sem_seg"]), self._metadata.get("stuff_colors"))
            pictures = [overlay(read_image(record["file_name"]), classes, colours)]
        write_picture(self._folder, self._name, frame_id(record), pictures)


class PictureEvaluator(FrameEvaluator):
    """Draws the first frames into Detectron2's event storage: image, label, prediction and score.

    Only the main process draws, from its own share of the frames.

    Args:
        dataset_name: a registered dataset.
        num_pictures: number of frames to draw.
    """

    def __init__(self, dataset_name: str, num_pictures: int) -> None:
        super().__init__(dataset_name)
        self._num = num_pictures if comm.is_main_process() else 0
        self._pictures: list[np.ndarray] = []

    def reset(self) -> None:
        """Discard the frames of the last evaluation."""
        self._pictures = []

    def process_frame(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Draw one frame, until there are ``num_pictures``.

        Raises:
            UserError: image or label cannot be read.
        """
        if len(self._pictures) >= self._num:
            return
        image = read_image(record["file_name"])
        label = np.full(image.shape[:2], VOID, np.uint8)
        if "sem_seg_file_name" in record:  # not in a hidden test split
            label = self.read_label(record)
        classes = output["sem_seg"].argmax(dim=0).cpu().numpy()
        colours = palette(len(output["sem_seg"]), self._metadata.get("stuff_colors"))
        is_ood = self._metadata.evaluator_type == "ood"
        panels = [
            image,
            colourise(label, np.array([(0, 0, 0), OOD_COLOUR]) if is_ood else colours),
            colourise(classes, colours),
            heat_map(score_of(output)),
        ]
        panels = [shrink(panel, _PANEL_WIDTH) for panel in panels]
        self._pictures.append(np.concatenate(panels, axis=1))

    def evaluate(self) -> None:
        """Put the pictures into the event storage as ``<dataset>/<number>``."""
        for i, picture in enumerate(self._pictures):
            get_event_storage().put_image(f"{self._name}/{i}", picture.transpose(2, 0, 1))
