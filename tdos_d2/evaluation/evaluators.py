"""Construction of a dataset's evaluator by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..errors import UserError
from ..loading.config_files import local_weights
from ..value_checks import get_key
from .calibration import load_calibration
from .comparison import FOLDER
from .ood_evaluator import OODEvaluator
from .operating_point import OperatingPoint
from .report.sections import Section
from .sem_seg_evaluator import SemSegEvaluator
from .submission import FORMATS
from .threshold_files import changed_settings, check_threshold_of, with_changes
from .threshold_rules import BEST_RULE, CALIBRATED, FIXED, ThresholdRule, parse_rule
from .writers import OverlayWriter, SubmissionWriter

# Config keys that change the scores of a checkpoint.
_SCORE_SETTINGS = (
    "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.FORMAT", "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD", "TEST.WINDOW.SIZE", "TEST.WINDOW.STRIDE", "TEST.WINDOW.DECODE",
    "MODEL.TDOS.MERGE", "MODEL.TDOS.CLASS_MERGE", "MODEL.TDOS.SCORE_MAP_TEMPERATURE",
    "MODEL.MEMORY.NEIGHBOURS", "MODEL.MEMORY.LEVELS",
)  # fmt: skip

# Cityscapes' own evaluator needs cityscapesScripts, which do not run on NumPy 2.
_KINDS = ("ood", "sem_seg", "cityscapes_sem_seg")


class OODEvaluators(DatasetEvaluators):
    """Evaluators of an OOD dataset: one per score, the main one first, and writers."""

    @property
    def _scores(self) -> list[OODEvaluator]:
        return [e for e in self._evaluators if isinstance(e, OODEvaluator)]

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The main score's, on the main process after ``evaluate``; None without labels."""
        return self._scores[0].operating_point if self._scores else None

    @property
    def section(self) -> Section | None:
        """The section of the main score, with the curves of all scores."""
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
        cfg: config; reads ``MODEL.META_ARCHITECTURE``, ``MODEL.TDOS.{SCORE, EXTRA_SCORES}``,
            ``OUTPUT_DIR``, ``TEST.{EXPORT, SHOW_DIR, REPORT, THRESHOLD, BREAKDOWN, FRAME_COUNTS}``,
            and ``MODEL.WEIGHTS`` for a calibrated threshold.
        dataset_name: a registered dataset.
        output_dir: folder for score maps and temporary files; ``OUTPUT_DIR/inference`` by default.

    Raises:
        UserError: no evaluator for the dataset's ``evaluator_type``; see ``check_export`` and
            ``threshold_rule``.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _KINDS:
        raise UserError(
            f"dataset '{dataset_name}': no evaluator for evaluator_type {kind!r}, there are "
            + ", ".join(_KINDS)
        )
    if kind == "ood":
        folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
        return _build_ood(cfg, dataset_name, folder)
    evaluator = SemSegEvaluator(dataset_name)
    if not cfg.TEST.SHOW_DIR:
        return evaluator
    return DatasetEvaluators([evaluator, OverlayWriter(dataset_name, cfg.TEST.SHOW_DIR)])


def score_label(cfg: CfgNode) -> str:
    """Name of the score in the model's ``ood_score``; "ood_score" for other architectures."""
    names = {"TDOS": cfg.MODEL.TDOS.SCORE, "NormalityMemory": "memory"}
    return names.get(cfg.MODEL.META_ARCHITECTURE, "ood_score")


def score_settings(cfg: CfgNode) -> dict[str, Any]:
    """By config key, what the scores of a checkpoint depend on beside it."""
    return {key: get_key(cfg, key) for key in _SCORE_SETTINGS}


def check_export(cfg: CfgNode, dataset_name: str) -> None:
    """Check the requested outputs for an OOD dataset.

    Raises:
        UserError: unknown ``TEST.EXPORT.FORMAT``; the dataset has no labels, and neither score maps
            nor pictures are requested.
    """
    form = cfg.TEST.EXPORT.FORMAT
    if form not in (*FORMATS, "none"):
        raise UserError(f"TEST.EXPORT.FORMAT: '{form}' is none of {', '.join(FORMATS)}, none")
    if form == "none" and not cfg.TEST.SHOW_DIR and not _has_labels(dataset_name):
        raise UserError(
            f"dataset '{dataset_name}' has no public labels: TEST.EXPORT.FORMAT "
            f"({' or '.join(FORMATS)}) writes its score maps for submission, TEST.SHOW_DIR pictures"
        )


def threshold_rule(cfg: CfgNode) -> ThresholdRule:
    """The rule in ``TEST.THRESHOLD``.

    Raises:
        UserError: the value is not a rule, or its calibration is missing or belongs to another
            checkpoint or score.
    """
    text, weights, settings = cfg.TEST.THRESHOLD, local_weights(cfg), score_settings(cfg)
    if text != CALIBRATED:
        try:
            rule = parse_rule(text)
            if text.endswith(".json"):
                checkpoint = weights if weights is not None and weights.is_file() else None
                path = Path(text).expanduser()
                changed = check_threshold_of(path, checkpoint, score_label(cfg), settings)
                rule = dataclasses.replace(rule, source=with_changes(rule.source, changed))
        except UserError as error:
            raise UserError(f"TEST.THRESHOLD: {error}") from error
        return rule
    found = None if weights is None else load_calibration(weights)
    if found is None:
        place = "MODEL.WEIGHTS, which is no file" if weights is None else weights
        raise UserError(
            f"TEST.THRESHOLD: no calibrated threshold beside {place}: tools/calibrate.py makes it"
        )
    if found.score != score_label(cfg):
        raise UserError(
            f"TEST.THRESHOLD: the calibrated threshold is for {found.score}, the score is "
            f"{score_label(cfg)}"
        )
    source = f"calibrated on {found.frames} normal frames"
    changed = changed_settings(found.settings, settings)
    return ThresholdRule(FIXED, found.threshold, with_changes(source, changed))


def _has_labels(dataset_name: str) -> bool:
    return MetadataCatalog.get(dataset_name).get("has_labels", True)


def _build_ood(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    check_export(cfg, dataset_name)
    show_dir, export = cfg.TEST.SHOW_DIR or None, cfg.TEST.EXPORT
    label, evaluators = score_label(cfg), []
    if _has_labels(dataset_name):
        rule = threshold_rule(cfg)
        frame_counts = Path(cfg.OUTPUT_DIR, FOLDER) if cfg.TEST.FRAME_COUNTS else None
        build = partial(
            OODEvaluator, dataset_name, output_dir=output_dir, breakdown=cfg.TEST.BREAKDOWN,
            frame_counts=frame_counts,
        )  # fmt: skip
        evaluators.append(build(report=cfg.TEST.REPORT, show_dir=show_dir, label=label, rule=rule))
        # A fixed threshold is in the units of the main score.
        rule = BEST_RULE if rule.kind == FIXED else rule
        evaluators += [build(score=name, rule=rule) for name in cfg.MODEL.TDOS.EXTRA_SCORES]
    elif show_dir:
        evaluators.append(OverlayWriter(dataset_name, show_dir, label))
    if export.FORMAT != "none":
        writer = SubmissionWriter(dataset_name, output_dir, export.FORMAT, export.METHOD)
        evaluators.append(writer)
    return OODEvaluators(evaluators)
