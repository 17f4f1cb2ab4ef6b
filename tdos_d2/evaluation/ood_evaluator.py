"""OOD metrics of a segmentation model as a Detectron2 evaluator."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data import get_dicts, read_label
from ..data.reading import num_known_classes, read_classes, read_instances
from ..errors import UserError
from .bootstrap import FrameTable, component_table, count_frames, quantile_bins
from .breakdown import Group, breakdown_rows, count_group, frame_parts, true_instances
from .comparison import save_frame_table
from .component_metrics import ComponentScores, component_sizes, concatenate, score_components
from .curve_points import CurvePoints, central_range, curve_points
from .dataset_metrics import KeptCounts, all_metrics
from .frames import Frame, Spool, check_frame, check_instance_files, check_space, frame_id
from .open_iou import RULE, FrameClasses, check_classes, confusion_matrices, open_iou
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
from .threshold_rules import BEST_RULE, ThresholdRule, threshold_by

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def score_of(output: Mapping[str, Any], name: str = "ood_score") -> np.ndarray:
    """(H, W) float32 score in a model's output.

    If a model has no ``ood_score``, it is the negative maximum of ``sem_seg``.

    Raises:
        UserError: ``name`` is another score, which ``ood_scores`` lacks.
    """
    scores = output.get("ood_scores", {})
    if name == "ood_score":
        score = output["ood_score"] if "ood_score" in output else -output["sem_seg"].amax(dim=0)
    elif name in scores:
        score = scores[name]
    else:
        there = ", ".join(scores) or "none"
        raise UserError(f"the model gives no score '{name}' (ood_scores: {there})")
    return score.detach().to("cpu", torch.float32).numpy()


class FrameEvaluator(DatasetEvaluator):
    """Base class of evaluators that process one frame at a time.

    Raises:
        UserError: the dataset is unknown or missing.
    """

    def __init__(self, dataset_name: str) -> None:
        self._name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = {record["file_name"]: record for record in get_dicts(dataset_name)}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Call ``process_frame`` for each of ``inputs``, which have a ``file_name``.

        Raises:
            UserError: a frame is not in the dataset; see ``process_frame``.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            record = self._records.get(input_["file_name"])
            if record is None:
                raise UserError(f"{input_['file_name']} is not a frame of dataset '{self._name}'")
            self.process_frame({**record, **input_}, output)

    def process_frame(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Process a frame: its dataset dict with the model's input, and the model's output."""
        raise NotImplementedError

    def read_label(self, record: Mapping[str, Any]) -> np.ndarray:
        """(H, W) uint8 label of a frame, see ``tdos_d2.data.read_label``."""
        mask = record.get("region_mask_file_name")
        return read_label(record["sem_seg_file_name"], self._metadata, mask)


class _CountOrder(NamedTuple):
    """A request of the main process to the others: counts in bins, of a group or of all pixels."""

    bins: KeyBins
    group: Group | None

    def count(self, frames: Spool) -> np.ndarray:
        if self.group is None:
            return count_pixels(frames, self.bins)
        return count_group(frames, self.group, self.bins)


class OODEvaluator(FrameEvaluator):
    """Evaluates per-pixel OOD scores over a dataset of ``evaluator_type`` "ood".

    Works with every Detectron2 semantic segmentation model. Metrics are those of
    ``evaluate_scores``, and do not depend on the number of processes. Scores are kept in a
    temporary file, 5 bytes per pixel, and evaluated at the end.

    Args:
        dataset_name: a registered dataset. Every frame has a ``sem_seg_file_name``, unless the
            metadata have ``has_labels=False`` (a hidden test split): then the result is empty, with
            a line in the log. The metadata have the label values (``tdos_d2.data.read_label``),
            ``protocol``, ``min_pred``, ``min_gt``; a frame's ``region_mask_file_name`` is void, its
            ``instance_file_name`` gives the true instances of the breakdown.
        score: "ood_score", or the name of another score in the model's ``ood_scores``.
        output_dir: folder of the temporary file (default: ``TMPDIR``).
        distributed: gather the frames of all processes; else each evaluates its own.
        report: create a section for a report.
        show_dir: folder for pictures of all frames, see ``report.sections``; None: no pictures.
        label: name of the score in report and pictures; ``score`` by default.
        rule: chooses the threshold of components, report and pictures.
        breakdown: also measure instances, images, groups of anomalies by size and distance, and
            open-IoU if the metadata have ``class_values``, as separate tasks.
        frame_counts: folder for the counts of each frame, which ``comparison`` uses to compare
            runs; None: they are not written.

    Attributes, on the main process after ``evaluate``:
        operating_point: threshold and value of the best pixel F1.
        curve: points of the curve, and its metrics; None without OOD or without known pixels.
        section: the dataset's section of a report; None unless ``report``.

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
        rule: ThresholdRule = BEST_RULE,
        breakdown: bool = False,
        frame_counts: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(dataset_name)
        self._score = score
        self._folder = output_dir
        self._report = report
        self._show_dir = show_dir
        self.label = label or score
        self._rule, self._breakdown = rule, breakdown
        self._frame_counts = frame_counts
        self._num_known = num_known_classes(self._metadata) if breakdown else 0
        self._masks = breakdown and check_instance_files(self._records.values(), dataset_name)
        self._task = "ood" if score == "ood_score" else f"ood_{score}"
        processes = (comm.is_main_process(), comm.all_gather, comm.gather) if distributed else ()
        self._comm = Communicator(*processes)
        sizes = (self._metadata.get(key) for key in ("min_pred", "min_gt"))
        self._sizes = component_sizes(self._metadata.get("protocol", "anomaly"), *sizes)
        self._has_labels = self._metadata.get("has_labels", True)
        for file_name, record in self._records.items():
            if self._has_labels and "sem_seg_file_name" not in record:
                raise UserError(f"dataset '{dataset_name}': {file_name} has no label to evaluate")
        self.operating_point: OperatingPoint | None = None
        self.curve: tuple[CurvePoints, PixelMetrics] | None = None
        self.section: Section | None = None
        self._bins, self._counts = KeyBins.coarse(), np.zeros((2, 0))
        self._seen: list[Mapping[str, Any]] = []  # records in the order of the frames
        self._spool: Spool[Frame] | None = None
        self._classes: Spool[FrameClasses] | None = None  # of the same frames

    def reset(self) -> None:
        """Discard all frames."""
        self._close()
        if self._folder is not None:
            os.makedirs(self._folder, exist_ok=True)
            if self._has_labels and self._comm.is_main:
                per_pixel = 7 if self._num_known else 5  # score and label, two classes
                check_space(self._folder, self._records.values(), per_pixel)
        self._spool = Spool(self._folder)
        if self._num_known:
            self._classes = Spool(self._folder, FrameClasses, (np.uint8, np.uint8))
        self._seen = []

    def process_frame(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep the score of a frame.

        Args:
            record: its dataset dict.
            output: has ``ood_score`` (H, W), larger = more anomalous, or ``sem_seg`` (K, H, W); for
                another score ``ood_scores``. All have the size of the label.

        Raises:
            UserError: the score is missing, not finite, or of another size than the label; the
                label cannot be read.
        """
        if self._has_labels:
            score, label = score_of(output, self._score), self.read_label(record)
            self._spool.append(check_frame(score, label, record["file_name"]))
            self._keep_classes(record, output)
            self._instances(record, label)  # an error now, not after all frames
            self._seen.append(self._records[record["file_name"]])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics of all frames.

        Returns:
            ``{"ood": metrics}``, or ``{"ood_<name>": metrics}`` for another score, see
            ``evaluate_scores``; with a breakdown also ``ood_instances`` and so on, see
            ``breakdown.breakdown_rows``; {} on all processes but the main one, and without labels.

        Raises:
            UserError: a frame was processed twice, by one process or by two.
        """
        if not self._has_labels:
            self._close()
            if self._comm.is_main:
                logger.info(f"{self._name}: no labels, so no metrics")
            return {}
        try:
            self._check_frames()
            pixels, threshold = self._on_main(self._measure)
            own = [score_components([f], threshold, self._sizes) for f in self._spool]
            components = self._comm.gather(concatenate(own))
            self._draw(pixels, threshold, own)
            if self._frame_counts is not None and not math.isnan(pixels.threshold):
                self._keep_counts(own)
            rows = self._break_down(threshold, own) if self._breakdown else {}
            if self._num_known and not math.isnan(pixels.threshold):
                rows |= self._open_iou(pixels)
        finally:
            self._close()
        if not self._comm.is_main:
            return {}
        self.operating_point = OperatingPoint(self._score, pixels.threshold, self._name, pixels.f1)
        task = self._task
        logger.info(
            f"{self._name}/{task}: operating threshold (best pixel F1) {pixels.threshold:.6g}, "
            f"components of at least {self._sizes[0]} predicted and {self._sizes[1]} true pixels, "
            f"pixel metrics exact to {pixels.bound:.4f} points"
        )
        if self._rule.kind != BEST_RULE.kind:
            logger.info(f"{self._name}/{task}: components at {threshold:.6g} ({self._rule})")
        results = {task: all_metrics(pixels, concatenate(components))}
        return results | {f"{task}_{name}": row for name, row in rows.items()}

    def _check_frames(self) -> None:
        """Raise UserError for a frame that was evaluated twice; log a warning if some were not."""
        seen = self._comm.share([frame_id(record) for record in self._seen])
        times = Counter(itertools.chain.from_iterable(seen))
        for frame, number in times.items():
            if number > 1:
                raise UserError(
                    f"dataset '{self._name}': frame {frame} was evaluated {number} times"
                )
        if self._comm.is_main and len(times) < len(self._records):
            logger.warning(
                f"{self._name}: only {len(times)} of {len(self._records)} frames were evaluated"
            )

    def _on_main(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on the main process; the others count their frames at its request."""
        if self._comm.is_main:
            return self._comm.share(work())[0]
        while isinstance(order := self._comm.share(None)[0], _CountOrder):
            self._comm.gather(order.count(self._spool))
        return order

    def _count(self, bins: KeyBins, group: Group | None = None) -> np.ndarray:
        order = _CountOrder(bins, group)
        self._comm.share(order)
        return sum(self._comm.gather(order.count(self._spool)))

    def _measure(self) -> tuple[PixelMetrics, float]:
        """Pixel metrics and the threshold, from counts in successively finer bins."""
        count = KeptCounts(self._count)
        pixels = pixel_metrics(count, self._name)
        self._bins, self._counts = count.bins, count.counts
        return pixels, threshold_by(
            self._rule, pixels.threshold, self._count, count.bins, count.counts
        )

    def _keep_classes(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        if self._classes is None:
            return
        sem_seg = output.get("sem_seg", ())
        if len(sem_seg) != self._num_known:
            logger.warning(
                f"{self._name}: no open-IoU, the model has {len(sem_seg)} known classes and the "
                f"labels {self._num_known}"
            )
            self._classes.close()
            self._classes = None
            return
        mask = record.get("region_mask_file_name")
        true = read_classes(record["sem_seg_file_name"], self._metadata, mask)
        sem_seg = sem_seg.detach().to("cpu", torch.float32).numpy()
        self._classes.append(check_classes(true, sem_seg, record["file_name"]))

    def _open_iou(self, pixels: PixelMetrics) -> dict[str, dict[str, float]]:
        if not all(self._comm.share(self._classes is not None)):
            return {}
        threshold = self._on_main(
            lambda: threshold_by(RULE, pixels.threshold, self._count, self._bins, self._counts)
        )
        frames = zip(self._spool, self._classes, strict=True)
        matrices = self._comm.gather(confusion_matrices(frames, threshold, self._num_known))
        return {"open": open_iou(sum(matrices))} if self._comm.is_main else {}

    def _instances(self, record: Mapping[str, Any], label: np.ndarray) -> np.ndarray | None:
        if not self._masks:
            return None
        return read_instances(record["instance_file_name"], record["sem_seg_file_name"], label)

    def _break_down(
        self, threshold: float, components: Sequence[ComponentScores]
    ) -> dict[str, dict[str, float]]:
        if math.isnan(threshold):
            return {}
        own = [
            frame_parts(f, of_frame, threshold, self._sizes, instances=self._instances(r, f.label))
            for f, of_frame, r in zip(self._spool, components, self._seen, strict=True)
        ]
        parts = list(itertools.chain.from_iterable(self._comm.gather(own)))
        if self._comm.is_main:
            logger.info(f"{self._name}/{self._task}: {true_instances(parts, self._masks)}")
        return self._on_main(
            lambda: breakdown_rows(parts, lambda g, bins: self._count(bins, g), self._name)
        )

    def _keep_counts(self, components: Sequence[ComponentScores]) -> None:
        """Write the counts of all frames."""
        bins = None
        if self._comm.is_main:
            bins = self._bins, *quantile_bins(self._counts, self._bins.single)
        bins, starts, hidden = self._comm.share(bins)[0]
        names = [frame_id(record) for record in self._seen]
        own = names, count_frames(self._spool, bins, starts), component_table(components)
        parts = self._comm.gather(own)
        if self._comm.is_main:
            names, *arrays = zip(*parts, strict=True)
            counts, rows = map(np.concatenate, arrays)
            names = list(itertools.chain.from_iterable(names))
            path = Path(self._frame_counts) / f"{self._name}.{self._task}.npz"
            save_frame_table(path, FrameTable(names, counts, hidden[::-1], rows))

    def _draw(
        self, pixels: PixelMetrics, threshold: float, components: Sequence[ComponentScores]
    ) -> None:
        """Create the requested outputs: curve, section and pictures."""
        if self._comm.is_main:
            curve = curve_points(self._bins, self._counts)
            self.curve = curve and (curve, pixels)
        if not self._report and self._show_dir is None:
            return
        ends = central_range(self._bins, self._counts) if self._comm.is_main else None
        ends = self._comm.share(ends)[0]
        display = ScoreDisplay(self.label, threshold, *ends, rule=str(self._rule))
        evaluated = EvaluatedFrames(self._name, self._spool, self._seen, components)
        if self._show_dir is not None:
            write_overlays(evaluated, display, self._show_dir)
        if self._report:
            self.section = make_section(evaluated, display, self._sizes, self.curve, self._comm)

    def _close(self) -> None:
        for spool in (self._spool, self._classes):
            if spool is not None:
                spool.close()
        self._spool = self._classes = None
