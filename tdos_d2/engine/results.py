"""Output of evaluation results: files, comparison with expected values, operating threshold."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm

from ..config import WEIGHTS_DIR
from ..data.ood_paste import fallback_warning
from ..errors import UserError
from ..evaluation.dataset_metrics import check_defined
from ..evaluation.evaluators import score_label, score_settings
from ..evaluation.operating_point import save_operating_point
from ..evaluation.report.page import write_report
from ..evaluation.tables import format_rows, results_rows, to_json
from ..evaluation.threshold_rules import BEST_F1, FPR, TPR
from ..files import atomic_write, fingerprint
from ..loading.checkpoint import read_checkpoint_info

logger = logging.getLogger(__name__)

_BEST_F1 = "the threshold of the best pixel F1 on the same frames"


def by_dataset(cfg: CfgNode, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Results by dataset, also for a single dataset, where Detectron2 omits this level."""
    names = cfg.DATASETS.TEST
    return OrderedDict({names[0]: results}) if len(names) == 1 else results


def write_results(
    cfg: CfgNode, results: Mapping[str, Any], checkpoint: str | os.PathLike
) -> None:
    """Print the table and write ``OUTPUT_DIR/results.{json,md,tex}``.

    ``results.checkpoint.json`` has the name and SHA-256 of the evaluated checkpoint.

    Args:
        cfg: config.
        results: ``{dataset: {task: {metric: value}}}``.
        checkpoint: file of the evaluated model, or a description if there is none.
    """
    printed, markdown, latex = (
        "\n\n".join(format_rows(rows, form) for rows in results_rows(results))
        for form in ("table", "markdown", "latex")
    )
    logger.info(f"Results:\n{printed}")
    model, warning = _model(cfg, checkpoint), _warning(cfg, checkpoint)
    which = {"checkpoint": str(checkpoint), "sha256": fingerprint(checkpoint)}
    texts = {
        "results.json": to_json(results),
        "results.checkpoint.json": to_json(which),
        "results.md": f"# Results\n\n{model}\n\n{warning}{markdown}\n\n{_note(cfg)}",
        "results.tex": f"% {model}\n% needs \\usepackage{{booktabs}}\n{latex}",
    }
    for name, text in texts.items():
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, name)) as file:
            file.write(f"{text}\n".encode())


def report_results(
    cfg: CfgNode,
    results: Mapping[str, Any],
    evaluators: Sequence[DatasetEvaluator],
    checkpoint: str | os.PathLike,
) -> None:
    """Write ``OUTPUT_DIR/report/index.html`` if ``TEST.REPORT`` is set, on the main process.

    Arguments as in :func:`write_results`; the evaluators are those of ``DATASETS.TEST``, after
    ``evaluate``.
    """
    if not cfg.TEST.REPORT or not comm.is_main_process():
        return
    sections = filter(None, (getattr(evaluator, "section", None) for evaluator in evaluators))
    unlabelled = {
        name: len(DatasetCatalog.get(name))
        for name in cfg.DATASETS.TEST
        if not MetadataCatalog.get(name).get("has_labels", True)
    }
    folder, model = os.path.join(cfg.OUTPUT_DIR, "report"), _model(cfg, checkpoint)
    path = write_report(folder, model, results_rows(results), list(sections), unlabelled)
    logger.info(f"Report: {path}")


def _note(cfg: CfgNode) -> str:
    """What the numbers of ``results.md`` are, in a paragraph."""
    rule, threshold = cfg.TEST.THRESHOLD, _BEST_F1
    if rule != BEST_F1:
        threshold = f"the threshold of TEST.THRESHOLD {rule}"
        if cfg.MODEL.TDOS.EXTRA_SCORES and not rule.startswith((f"{FPR}:", f"{TPR}:")):
            threshold += f", and those of extra scores at {_BEST_F1}"
    return (
        "Percent. Metrics of OOD sets are over all pixels of the set; sIoU, PPV and mF1 are at "
        f"{threshold}."
    )


def _warning(cfg: CfgNode, checkpoint: str | os.PathLike) -> str:
    """Warnings about the training of ``checkpoint``, or the current one; a paragraph or ""."""
    if os.path.isfile(checkpoint):
        warning = read_checkpoint_info(checkpoint).get("outlier_warning", "")
    else:  # the current training, or weights without information about theirs
        known = str(checkpoint) not in ("(none)", cfg.MODEL.WEIGHTS)
        warning = fallback_warning(cfg) if known else ""
    return f"**Warning: {warning}.**\n\n" if warning else ""


def _model(cfg: CfgNode, checkpoint: str | os.PathLike) -> str:
    sha256 = fingerprint(checkpoint)
    which = f"{checkpoint} (SHA-256 {sha256[:16]})" if sha256 else f"{checkpoint}"
    return f"{cfg.MODEL.META_ARCHITECTURE}, weights {which}"


def check_expected_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare results with ``TEST.EXPECTED_RESULTS``; exit with status 1 if they differ.

    A dataset whose metrics are undefined is an error; its results have been written before.

    Rows are Detectron2's ``[task, metric, value, tolerance]``; with several test datasets the task
    is written ``<dataset>/<task>``.

    Raises:
        UserError: a row names a task that was not evaluated, or a set has no metrics.
    """
    named = by_dataset(cfg, results)
    check_defined(named)
    if not cfg.TEST.EXPECTED_RESULTS:
        return
    tasks = {f"{name}/{task}": found for name in named for task, found in named[name].items()}
    if len(cfg.DATASETS.TEST) == 1:
        tasks.update(results)
    for task, *_ in cfg.TEST.EXPECTED_RESULTS:
        if task not in tasks:
            there = ", ".join(tasks) or "none"
            raise UserError(f"TEST.EXPECTED_RESULTS: no task '{task}' in the results ({there})")
    verify_results(cfg, tasks)


def keep_operating_point(
    cfg: CfgNode, evaluators: Sequence[DatasetEvaluator], checkpoint: str | os.PathLike
) -> None:
    """Save the threshold for the dataset ``TEST.THRESHOLD_DATASET`` beside ``checkpoint``.

    If the key is empty, it is that of the first evaluated OOD dataset. If the folder cannot be
    written to, this is only a warning, as the results have been written. Beside weights that ship
    with the project nothing is written.
    """
    if Path(checkpoint).resolve().is_relative_to(WEIGHTS_DIR.resolve()):
        logger.info(f"No operating threshold saved beside {checkpoint}, a file of the project")
        return
    points = (getattr(evaluator, "operating_point", None) for evaluator in evaluators)
    wanted = cfg.TEST.THRESHOLD_DATASET
    point = next((point for point in points if point and wanted in ("", point.dataset)), None)
    if point is None or math.isnan(point.threshold):
        logger.info("No operating threshold saved: it needs an OOD set with OOD and known pixels")
        return
    point = dataclasses.replace(point, score=score_label(cfg), settings=score_settings(cfg))
    try:
        path = save_operating_point(Path(checkpoint), point)
    except OSError as error:
        logger.warning(f"Operating threshold {point.threshold!r} not saved: {error}")
        return
    logger.info(
        f"Operating threshold of {point.score}: {point.threshold:.6g}, the best pixel F1 "
        f"({point.f1:.2f}) on {point.dataset}, saved in {path}"
    )
