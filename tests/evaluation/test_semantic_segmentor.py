"""The evaluator on a model that knows nothing of OOD scores: Detectron2's SemanticSegmentor."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from tdos_d2.data import build_test_loader, get_dicts, read_label
from tdos_d2.evaluation import OODEvaluator, evaluate_scores

NAME = "demo_ood_hard"


@pytest.fixture
def segmentor_cfg(tiny_cfg):
    cfg = tiny_cfg
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 10
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def test_plain_segmentor_is_scored_by_max_logit(segmentor_cfg):
    torch.manual_seed(0)
    model = build_model(segmentor_cfg).eval()
    loader = build_test_loader(segmentor_cfg, NAME)
    metadata = MetadataCatalog.get(NAME)
    labels = {d["file_name"]: d["sem_seg_file_name"] for d in get_dicts(NAME)}
    with torch.no_grad():
        scores = {x["file_name"]: -model([x])[0]["sem_seg"].amax(0).numpy() for (x,) in loader}
    pairs = [(score, read_label(labels[name], metadata)) for name, score in scores.items()]
    expected = evaluate_scores(pairs, min_pred=metadata.min_pred, min_gt=metadata.min_gt)
    results = inference_on_dataset(model, loader, OODEvaluator(NAME))
    assert results["ood"] == pytest.approx(expected, nan_ok=True)
