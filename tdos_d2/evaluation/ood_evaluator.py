"""OOD metrics of a segmentation model as a Detectron2 evaluator."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data import get_dicts, read_label
from ..errors import UserError
from .component_metrics import (
    ComponentScores,
    component_sizes,
    concatenate,
    score_components,
)
from .curve_points import CurvePoints, central_range, curve_points
from .dataset_metrics import all_metrics
from .frames import Spool, check_frame
from .operating_point import OperatingPoint
from .pixel_metrics import KeyBins, PixelMetrics, count_pixels, pixel_metrics
from .report.sections import (
    Communicator,
    EvaluatedFrames,
    ScoreDisplay,
    Section,
    make_section,
    write_overlays,
)

logger = logging.getLogger(__name__)


def main_score(output: Mapping[str, Any]) -> torch.Tensor:
    """(H, W) score in a model's output: ``ood_score``, else the negative maximum of ``sem_seg``."""
    return output["ood_score"] if "ood_score" in output else -output["sem_seg"].amax(dim=0)


class OODEvaluator(DatasetEvaluator):
    """Evaluates per-pixel OOD scores over a dataset of ``evaluator_type`` "ood".

    Works with every Detectron2 semantic segmentation model. Metrics are those of
    ``evaluate_scores``; any number of processes gives the same, bit for bit. Scores wait in a
    temporary file, 5 bytes per pixel, and are evaluated at the end.

    Args:
        dataset_name: a registered set; every frame has a ``sem_seg_file_name``, unless the
            metadata say ``has_labels=False`` (a hidden test split): then the result is empty and
            the log says so. The metadata give the label values (``tdos_d2.data.read_label``),
            ``protocol``, ``min_pred``, ``min_gt``; a frame's ``region_mask_file_name`` is void.
        score: "ood_score", or the name of another score in the model's ``ood_scores``.
        output_dir: where the temporary file lies (default: ``TMPDIR``).
        distributed: gather the frames of all processes; else each evaluates its own.
        report: gather a section for a report.
        show_dir: folder for pictures of all frames, see ``inference.sections``; None for none.
        label: what the score is called in both; ``score`` by default.

    Attributes, on the main process after ``evaluate``:
        operating_point: threshold and value of the best pixel F1.
        curve: points of the curve, and its metrics; None without OOD or without known pixels.
        section: what a report says of the dataset; None if none was asked for.

    Raises:
        UserError: unknown or missing dataset, a frame without label file, unknown protocol.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        score: str = "ood_score",
        output_dir: str | os.PathLike | None = None,
        distributed: bool = True,
        report: bool = False,
        show_dir: str | os.PathLike | None = None,
        label: str = "",
    ) -> None:
        self._name = dataset_name
        self._score = score
        self._folder = output_dir
        self._distributed = distributed
        self._report = report
        self._show_dir = show_dir
        self.label = label or score
        self._metadata = MetadataCatalog.get(dataset_name)
        self._sizes = component_sizes(
            self._metadata.get("protocol", "anomaly"),
            self._metadata.get("min_pred"),
            self._metadata.get("min_gt"),
        )
        self._records = {record["file_name"]: record for record in get_dicts(dataset_name)}
        self._has_labels = self._metadata.get("has_labels", True)
        for file_name, record in self._records.items():
            if self._has_labels and "sem_seg_file_name" not in record:
                raise UserError(f"dataset '{dataset_name}': {file_name} has no label to evaluate")
        self.operating_point: OperatingPoint | None = None
        self.curve: tuple[CurvePoints, PixelMetrics] | None = None
        self.section: Section | None = None
        self._bins, self._counts = KeyBins.coarse(), np.zeros((2, 0))
        self._seen: list[Any] = []
        self._spool: Spool | None = None

    def reset(self) -> None:
        """Forget all frames."""
        self._close()
        if self._folder is not None:
            os.makedirs(self._folder, exist_ok=True)
        self._spool = Spool(self._folder)
        self._seen = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take the scores of some frames.

        Args:
            inputs: dicts with the ``file_name`` of the dataset.
            outputs: dicts with ``ood_score`` (H, W), larger = more anomalous, or, without it, with
                ``sem_seg`` (K, H, W), whose negative maximum over K is the score. For another
                ``score``: dicts with ``ood_scores``. All of the size of the label.

        Raises:
            UserError: no such score; a score of another size than the label, or not finite; a label
                that cannot be read; a frame that is not in the dataset.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            file_name = input_["file_name"]
            if file_name not in self._records:
                raise UserError(f"{file_name} is not a frame of dataset '{self._name}'")
            if not self._has_labels:
                continue
            record = self._records[file_name]
            mask = record.get("region_mask_file_name")
            label = read_label(record["sem_seg_file_name"], self._metadata, mask)
            score = self._score_of(output).detach().to("cpu", torch.float32).numpy()
            self._spool.append(check_frame(score, label, file_name))
            self._seen.append(record.get("image_id", file_name))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics of all frames.

        Returns:
            ``{"ood": metrics}``, or ``{"ood_<name>": metrics}`` for another score, see
            ``evaluate_scores``; {} on all processes but the main one, and for a set without labels.

        Raises:
            UserError: a frame was processed twice, in whichever process.
        """
        if not self._has_labels:
            self._close()
            if self._is_main():
                logger.info(f"{self._name}: no labels, so no metrics")
            return {}
        try:
            self._check_frames()
            pixels = self._pixel_metrics()
            own = [score_components([f], pixels.threshold, self._sizes) for f in self._spool]
            components = self._gather(concatenate(own))
            self._draw(pixels, own)
        finally:
            self._close()
        if not self._is_main():
            return {}
        self.operating_point = OperatingPoint(self._score, pixels.threshold, self._name, pixels.f1)
        task = "ood" if self._score == "ood_score" else f"ood_{self._score}"
        logger.info(
            f"{self._name}/{task}: operating threshold (best pixel F1) {pixels.threshold:.6g}, "
            f"components of at least {self._sizes[0]} predicted and {self._sizes[1]} true pixels, "
            f"pixel metrics exact to {pixels.bound:.4f} points"
        )
        return {task: all_metrics(pixels, concatenate(components))}

    def _score_of(self, output: Mapping[str, Any]) -> torch.Tensor:
        if self._score == "ood_score":
            return main_score(output)
        scores = output.get("ood_scores", {})
        if self._score not in scores:
            there = ", ".join(scores) or "none"
            raise UserError(f"the model gives no score '{self._score}' (ood_scores: {there})")
        return scores[self._score]

    def _check_frames(self) -> None:
        """Each frame of the dataset should be there once."""
        times = Counter(frame for seen in self._share(self._seen) for frame in seen)
        for frame, number in times.items():
            if number > 1:
                raise UserError(
                    f"dataset '{self._name}': frame {frame} was evaluated {number} times"
                )
        if self._is_main() and len(times) < len(self._records):
            logger.warning(
                f"{self._name}: only {len(times)} of {len(self._records)} frames were evaluated"
            )

    def _pixel_metrics(self) -> PixelMetrics:
        """The main process asks all of them to count their frames in ever finer bins."""
        if self._is_main():
            return self._share(pixel_metrics(self._count, self._name))[0]
        while isinstance(order := self._share(None)[0], KeyBins):
            self._gather(count_pixels(self._spool, order))
        return order

    def _count(self, bins: KeyBins) -> np.ndarray:
        self._share(bins)
        self._bins, self._counts = bins, sum(self._gather(count_pixels(self._spool, bins)))
        return self._counts

    def _draw(self, pixels: PixelMetrics, components: Sequence[ComponentScores]) -> None:
        """Curve, section and pictures, as asked for."""
        curve = curve_points(self._bins, self._counts) if self._is_main() else None
        self.curve = curve and (curve, pixels)
        if not self._report and self._show_dir is None:
            return
        ends = central_range(self._bins, self._counts) if self._is_main() else None
        display = ScoreDisplay(self.label, pixels.threshold, *self._share(ends)[0])
        records = {r.get("image_id", r["file_name"]): r for r in self._records.values()}
        own = [records[frame] for frame in self._seen]
        evaluated = EvaluatedFrames(self._name, self._spool, own, components)
        if self._show_dir is not None:
            write_overlays(evaluated, display, self._show_dir)
        if self._report:
            processes = Communicator(self._is_main(), self._share, self._gather)
            self.section = make_section(evaluated, display, self._sizes, pixels, curve, processes)

    def _is_main(self) -> bool:
        return not self._distributed or comm.is_main_process()

    def _share(self, data: Any) -> list[Any]:
        """What each process gave, on every process."""
        return comm.all_gather(data) if self._distributed else [data]

    def _gather(self, data: Any) -> list[Any]:
        """What each process gave, on the main process."""
        return comm.gather(data) if self._distributed else [data]

    def _close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None
