"""Pictures for TensorBoard, by an evaluator without metrics."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from tdos_d2.evaluation.writers import PictureEvaluator
from tdos_d2.visualization.drawing import OOD_COLOUR, VOID_COLOUR


@pytest.mark.parametrize("kind", ["ood", "sem_seg"])
def test_panels_of_the_first_frames(make_dataset, kind):
    label = np.array([[0, 1], [255, 1]], np.uint8)
    colours = [(10, 0, 0), (0, 20, 0)]
    dicts = make_dataset(
        f"drawn_{kind}", [label] * 3, evaluator_type=kind, ignore_label=255,
        stuff_classes=["road", "car"], stuff_colors=colours,
    )  # fmt: skip
    for record in dicts:
        cv2.imwrite(record["file_name"], np.full((2, 2, 3), 90, np.uint8))
    del dicts[1]["sem_seg_file_name"]  # a frame without label
    sem_seg = torch.zeros(2, 2, 2)
    sem_seg[1, 0] = 1  # class 1 in the upper row
    evaluator = PictureEvaluator(f"drawn_{kind}", 2)
    evaluator.reset()
    for record in dicts:
        evaluator.process([record], [{"sem_seg": sem_seg}])
    with EventStorage(0) as storage:
        assert evaluator.evaluate() is None
    drawn = {name: picture.transpose(1, 2, 0) for name, picture, _ in storage._vis_data}
    assert list(drawn) == [f"drawn_{kind}/0", f"drawn_{kind}/1"]
    image, truth, prediction, score = np.split(drawn[f"drawn_{kind}/0"], 4, axis=1)
    assert np.abs(image.astype(int) - 90).max() < 3
    assert truth[0, 1].tolist() == (list(OOD_COLOUR) if kind == "ood" else [0, 20, 0])
    assert truth[1, 0].tolist() == list(VOID_COLOUR)
    assert prediction[:, 0].tolist() == [[0, 20, 0], [10, 0, 0]]
    # Without an OOD score the picture shows max-logit: known pixels are dark.
    assert score[0, 0].astype(int).sum() < score[1, 0].astype(int).sum()
    assert (np.split(drawn[f"drawn_{kind}/1"], 4, axis=1)[1] == VOID_COLOUR).all()
