"""True instances from the instance masks of a dataset, in OODEvaluator."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets_on_disk import OOD_METADATA
from PIL import Image

from tdos_d2.errors import UserError
from tdos_d2.evaluation import OODEvaluator


@pytest.fixture
def touching(make_dataset, tmp_path):
    """Dataset dicts and outputs: in each frame two objects touch and one prediction covers both."""
    label, ids = np.zeros((10, 20), np.uint8), np.zeros((10, 20), np.uint16)
    label[2:8, 2:12] = 1
    ids[2:8, 2:5], ids[2:8, 5:12] = 300, 7
    dicts = make_dataset("touching", [label, label], **OOD_METADATA)
    for record in dicts:
        record["instance_file_name"] = str(tmp_path / f"ids_{record['image_id']}.png")
        Image.fromarray(ids).save(record["instance_file_name"])
    return dicts, [{"ood_score": torch.from_numpy(label.astype(np.float32))}] * 2


def run(dicts, outputs):
    evaluator = OODEvaluator("touching", breakdown=True)
    evaluator.reset()
    evaluator.process(dicts, outputs)
    return evaluator.evaluate()


def test_touching_objects_by_hand(touching, caplog):
    dicts, outputs = touching
    with caplog.at_level(logging.INFO):
        masks = run(dicts, outputs)
        for record in dicts:
            del record["instance_file_name"]
        components = run(dicts, outputs)
    # The prediction is a component exactly.
    assert components["ood_instances"] == {"AP": 100, "AP50": 100, "instances": 2, "predicted": 2}
    # IoU 0.7 with the larger of two objects: recall 1/2 at precision 1 below that overlap.
    expected = {"AP": 50 * 4 / 10, "AP50": 50, "instances": 4, "predicted": 2}
    assert masks.pop("ood_instances") == pytest.approx(expected)
    del components["ood_instances"]
    assert masks == components, "all else is of components"
    lines = [line for line in caplog.messages if "true instances" in line]
    assert lines == [
        "touching/ood: true instances are the instance masks of the dataset",
        "touching/ood: true instances are the connected components of the labels",
    ]


def test_pixels_without_a_number_are_counted(touching, caplog):
    dicts, outputs = touching
    ids = np.zeros((10, 20), np.uint8)
    ids[2:8, 5:12] = 1
    Image.fromarray(ids).save(dicts[0]["instance_file_name"])
    with caplog.at_level(logging.INFO):
        assert run(dicts, outputs)["ood_instances"]["instances"] == 3
    assert "dataset; 18 OOD pixels have no number there, and are of no instance" in caplog.text


def test_masks_that_do_not_fit_are_errors(touching):
    dicts, outputs = touching
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(dicts[1]["instance_file_name"])
    evaluator = OODEvaluator("touching", breakdown=True)
    evaluator.reset()
    evaluator.process(dicts[:1], outputs[:1])
    with pytest.raises(UserError, match=r"instance mask .*ids_1\.png is 10x20, but label .* 20x10"):
        evaluator.process(dicts[1:], outputs[1:])
    del dicts[1]["instance_file_name"]
    with pytest.raises(UserError, match="'touching': only some of its frames have instance masks"):
        OODEvaluator("touching", breakdown=True)
    OODEvaluator("touching")
