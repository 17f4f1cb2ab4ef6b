"""Writes the score maps of a model for submission, as a Detectron2 evaluator."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data import get_dicts
from ..errors import UserError
from .ood_evaluator import main_score
from .submission import Submission

logger = logging.getLogger(__name__)


class SubmissionWriter(DatasetEvaluator):
    """Writes ``ood_score`` of every frame, see ``submission``. It has no metrics.

    Args:
        dataset_name: a registered dataset, with or without labels.
        folder: where to write.
        form: "smiyc" or "fishyscapes".
        method: name of the method in SMIYC's layout.

    Raises:
        UserError: unknown or missing dataset, unknown format; h5py is needed and not there.
    """

    def __init__(
        self, dataset_name: str, folder: str | os.PathLike, form: str, method: str = "tdos_d2"
    ) -> None:
        self._name = dataset_name
        self._form = form
        records = get_dicts(dataset_name)
        self._ids = {r["file_name"]: str(r.get("image_id", r["file_name"])) for r in records}
        self._submission = Submission(folder, form, dataset_name, [*self._ids.values()], method)

    def reset(self) -> None:
        """Nothing to forget: files are written at once."""

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the files of some frames.

        Args:
            inputs: dicts with ``file_name``, ``height`` and ``width`` of the dataset.
            outputs: as in ``OODEvaluator.process``; with ``sem_seg`` for Fishyscapes.

        Raises:
            UserError: scores of another size than the image; see ``Submission.write``.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            score = main_score(output).detach().float().cpu().numpy()
            size = (input_.get("height", score.shape[0]), input_.get("width", score.shape[1]))
            if score.shape != size:
                raise UserError(f"{input_['file_name']}: scores {score.shape}, image {size}")
            classes = None
            if self._form == "fishyscapes" and "sem_seg" in output:
                classes = output["sem_seg"].argmax(dim=0).cpu().numpy()
            self._submission.write(self._ids[input_["file_name"]], score, classes)

    def evaluate(self) -> dict[str, Any]:
        """Check that every frame has its file. Returns {}.

        Raises:
            UserError: a frame has none.
        """
        comm.synchronize()
        if comm.is_main_process():
            self._submission.check()
            logger.info(
                f"{self._name}: score maps of {len(self._ids)} frames in "
                f"{self._submission.folder}, float32, read back and compared"
            )
        return {}
