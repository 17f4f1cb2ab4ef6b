"""The evaluator of a data set, by the ``evaluator_type`` in its metadata."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from ..errors import UserError
from .ood_evaluator import OODEvaluator
from .sem_seg_evaluator import SemSegEvaluator


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """The evaluator of a data set.

    Args:
        cfg: config; ``MODEL.TDOS.EXTRA_SCORES`` are evaluated beside the main OOD score.
        dataset_name: a registered data set.
        output_dir: folder for temporary files.

    Raises:
        UserError: no evaluator for the set's ``evaluator_type``.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _BUILDERS:
        raise UserError(
            f"dataset '{dataset_name}': no evaluator for evaluator_type {kind!r}, there are "
            + ", ".join(_BUILDERS)
        )
    return _BUILDERS[kind](cfg, dataset_name, output_dir)


def _build_ood(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> DatasetEvaluator:
    scores = ("ood_score", *cfg.MODEL.TDOS.EXTRA_SCORES)
    return DatasetEvaluators(
        [OODEvaluator(dataset_name, score=score, output_dir=output_dir) for score in scores]
    )


def _build_sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> DatasetEvaluator:
    return SemSegEvaluator(dataset_name)


_BUILDERS: dict[str, Callable[[CfgNode, str, str | None], DatasetEvaluator]] = {
    "ood": _build_ood,
    "sem_seg": _build_sem_seg,
    # Cityscapes' own evaluator needs cityscapesScripts, which do not run on NumPy 2.
    "cityscapes_sem_seg": _build_sem_seg,
}
