"""mIoU of the known classes: Detectron2's metrics with ``tdos_d2.data.read_label``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2 import evaluation
from detectron2.data import MetadataCatalog

from ..data import read_label
from ..errors import UserError
from .frames import check_finite


class SemSegEvaluator(evaluation.SemSegEvaluator):
    """Detectron2's semantic segmentation metrics, in percent, over a whole dataset.

    mIoU is the mean over the classes that occur in the labels. Unlike the base class it works with
    NumPy 2, checks sizes and number of classes, and computes neither boundary IoU nor the COCO file
    of all predictions, which are slow and not shown.

    Args:
        dataset_name: a registered dataset with ``stuff_classes`` and label files.
        distributed: gather the frames of all processes; else each evaluates its own.
    """

    def __init__(self, dataset_name: str, distributed: bool = True) -> None:
        try:
            super().__init__(dataset_name, distributed)
        except KeyError as error:
            if error.args != ("sem_seg_file_name",):
                raise
            raise UserError(f"dataset '{dataset_name}': a frame has no label") from error
        self._compute_boundary_iou = False
        self._metadata = MetadataCatalog.get(dataset_name)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the pixels of some frames, void and OOD pixels left out.

        Args:
            inputs: dicts with the ``file_name`` of the dataset.
            outputs: dicts with ``sem_seg`` (K, H, W), one channel per class of the dataset, of the
                size of the label.

        Raises:
            UserError: the number of channels or the size is wrong, a score is not finite, or a
                label cannot be read.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            path = self.input_file_to_gt_file[input_["file_name"]]
            label = read_label(path, self._metadata)
            shape = (self._num_classes, *label.shape)
            if tuple(output["sem_seg"].shape) != shape:
                raise UserError(
                    f"dataset '{self._dataset_name}', label {path}: the model's sem_seg is "
                    f"{tuple(output['sem_seg'].shape)}, expected {shape} (classes, height, width)"
                )
            known = label < self._num_classes
            best = output["sem_seg"].max(dim=0)  # the maximum propagates NaN
            check_finite(best.values.float().cpu().numpy(), input_["file_name"])
            predicted = best.indices.cpu().numpy()[known]
            # Rows are predictions, columns labels; the last ones are void.
            size = self._num_classes + 1
            cells = predicted * size + label[known]
            self._conf_matrix += np.bincount(cells, minlength=size**2).reshape(size, size)
