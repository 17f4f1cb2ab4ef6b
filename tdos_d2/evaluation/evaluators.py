"""The evaluator of a dataset, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..errors import UserError
from .ood_evaluator import OODEvaluator
from .operating_point import OperatingPoint
from .report.overlays import OverlayWriter
from .report.sections import Section
from .sem_seg_evaluator import SemSegEvaluator
from .submission import FORMATS
from .submission_writer import SubmissionWriter


class OODEvaluators(DatasetEvaluators):
    """Evaluators of all scores of one OOD set, and the writer of its submission.

    Args:
        scores: that of the main score first; none for a set without labels.
        writers: evaluators without metrics.
    """

    def __init__(
        self, scores: Sequence[OODEvaluator], writers: Sequence[DatasetEvaluator] = ()
    ) -> None:
        super().__init__([*scores, *writers])
        self._scores = scores

    @property
    def operating_point(self) -> OperatingPoint | None:
        """Of the main score, on the main process after ``evaluate``."""
        return self._scores[0].operating_point if self._scores else None

    @property
    def section(self) -> Section | None:
        """That of the main score, with the curves of all of them."""
        section = self._scores[0].section if self._scores else None
        if section is None:
            return None
        curves = {score.label: score.curve for score in self._scores if score.curve}
        return dataclasses.replace(section, curves=curves)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """The evaluator of a dataset.

    Args:
        cfg: config; ``MODEL.TDOS.EXTRA_SCORES`` are evaluated beside the main OOD score, and
            ``TEST.EXPORT`` asks for score maps, ``TEST.SHOW_DIR`` for pictures of all frames, and
            ``TEST.REPORT`` for what a report says of OOD sets.
        dataset_name: a registered dataset.
        output_dir: folder for score maps and temporary files; ``OUTPUT_DIR/inference`` by default.

    Raises:
        UserError: no evaluator for the set's ``evaluator_type``; a set without labels, of which
            neither score maps nor pictures are asked for.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _BUILDERS:
        raise UserError(
            f"dataset '{dataset_name}': no evaluator for evaluator_type {kind!r}, there are "
            + ", ".join(_BUILDERS)
        )
    folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    return _BUILDERS[kind](cfg, dataset_name, folder)


def score_label(cfg: CfgNode) -> str:
    """What ``ood_score`` of the model is called: "ood_score" where nothing is known of it."""
    names = {"TDOS": cfg.MODEL.TDOS.SCORE, "NormalityMemory": "memory"}
    return names.get(cfg.MODEL.META_ARCHITECTURE, "ood_score")


def check_export(cfg: CfgNode, dataset_name: str) -> None:
    """Raise UserError if there is nothing to do for an OOD set: no labels, nothing to write.

    So it is for a format that is not known.
    """
    form = cfg.TEST.EXPORT.FORMAT
    if form not in (*FORMATS, "none"):
        raise UserError(f"TEST.EXPORT.FORMAT: '{form}' is none of {', '.join(FORMATS)}, none")
    if _has_labels(dataset_name) or cfg.TEST.SHOW_DIR:
        return
    if form == "none":
        raise UserError(
            f"dataset '{dataset_name}' has no public labels: TEST.EXPORT.FORMAT "
            f"({' or '.join(FORMATS)}) writes its score maps for submission, TEST.SHOW_DIR pictures"
        )


def _has_labels(dataset_name: str) -> bool:
    return MetadataCatalog.get(dataset_name).get("has_labels", True)


def _build_ood(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    check_export(cfg, dataset_name)
    show_dir, export = cfg.TEST.SHOW_DIR or None, cfg.TEST.EXPORT
    label = score_label(cfg)
    scores: list[OODEvaluator] = []
    writers: list[DatasetEvaluator] = []
    if _has_labels(dataset_name):
        build = partial(OODEvaluator, dataset_name, output_dir=output_dir)
        scores.append(build(report=cfg.TEST.REPORT, show_dir=show_dir, label=label))
        scores += [build(score=name) for name in cfg.MODEL.TDOS.EXTRA_SCORES]
    elif show_dir:
        writers.append(OverlayWriter(dataset_name, show_dir, label))
    if export.FORMAT != "none":
        writers.append(SubmissionWriter(dataset_name, output_dir, export.FORMAT, export.METHOD))
    return OODEvaluators(scores, writers)


def _build_sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    evaluator = SemSegEvaluator(dataset_name)
    if not cfg.TEST.SHOW_DIR:
        return evaluator
    return DatasetEvaluators([evaluator, OverlayWriter(dataset_name, cfg.TEST.SHOW_DIR)])


_BUILDERS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "ood": _build_ood,
    "sem_seg": _build_sem_seg,
    # Cityscapes' own evaluator needs cityscapesScripts, which do not run on NumPy 2.
    "cityscapes_sem_seg": _build_sem_seg,
}
