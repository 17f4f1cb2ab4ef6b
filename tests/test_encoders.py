"""The whole model on other image encoders: CLIP's ResNet, patches of 14 pixels, shipped configs."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from detectron2.modeling import build_model

from tdos_d2 import get_config_file
from tdos_d2.engine import load_config
from tdos_d2.engine.optimizer import build_optimizer
from tdos_d2.modeling.backbone import FPNNeck, check_encoder

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
PATCH_14 = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "layers": 4, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def sample(height: int, width: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        "sem_seg": torch.randint(0, 4, (height, width), generator=generator),
    }


@pytest.fixture
def resnet_cfg(tiny_cfg):
    tiny_cfg.MODEL.CLIP.NAME = "tiny-rn"
    tiny_cfg.MODEL.BACKBONE.NAME = "CLIPModifiedResNet"
    return tiny_cfg


def test_two_iterations_change_every_part_of_a_resnet(resnet_cfg):
    torch.manual_seed(0)
    model = build_model(resnet_cfg).train()
    optimizer = build_optimizer(resnet_cfg, model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for seed in range(2):
        losses = model([sample(64, 96, seed), sample(40, 70, seed)])  # two sizes, not multiples
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("backbone") for name in trained)
    assert not [name for name in trained if torch.equal(before[name], model.get_parameter(name))]


@pytest.mark.parametrize("size", [(64, 96), (70, 50), (24, 200), (8, 8)])
def test_evaluation_of_a_resnet_at_any_size(resnet_cfg, size):
    model = build_model(resnet_cfg).eval()
    with torch.no_grad():
        output = model([sample(*size)])[0]
    assert output["sem_seg"].shape == (3, *size) and output["ood_score"].shape == size
    assert output["ood_score"].isfinite().all()


@pytest.mark.parametrize("num_negative", [0, 4, 7])
def test_widths_follow_the_number_of_queries(resnet_cfg, num_negative, monkeypatch):
    """Defect 23: the neck's last input is the last stage and one raw cosine per query."""
    resnet_cfg.MODEL.TDOS.NUM_NEGATIVE = num_negative
    model = build_model(resnet_cfg).eval()
    assert isinstance(model.neck, FPNNeck)
    seen = []
    forward = model.neck.forward
    monkeypatch.setattr(
        model.neck, "forward", lambda taps, scores: seen.append(scores) or forward(taps, scores)
    )
    with torch.no_grad():
        model([sample(64, 96)])
    (scores,) = seen
    assert scores.shape == (1, 3 + 1 + num_negative, 2, 3)
    assert scores.abs().max() <= 1 + 1e-5
    last = model.neck.pyramid.get_parameter("fpn_lateral5.weight")
    assert last.shape[1] == model.backbone.output_shape()["tap4"].channels + 3 + 1 + num_negative


def test_score_map_reaches_the_prediction_through_the_neck(resnet_cfg):
    torch.manual_seed(0)
    model = build_model(resnet_cfg).eval()
    inputs = [sample(64, 96)]
    with torch.no_grad():
        before = model(inputs)[0]["ood_score"]
        forward = model.neck.forward
        model.neck.forward = lambda taps, scores: forward(taps, torch.zeros_like(scores))
        after = model(inputs)[0]["ood_score"]
    assert (before - after).abs().max() > 1e-6


def test_patches_of_14_pixels(tiny_cfg, tmp_path):
    """What ViT-L/14 needs: strides 3.5 to 28, and padding to multiples of 28."""
    (tmp_path / "test-patch-14.json").write_text(json.dumps(PATCH_14))
    open_clip.add_model_config(tmp_path)
    tiny_cfg.MODEL.CLIP.NAME = "test-patch-14"
    model = build_model(tiny_cfg)
    assert model.neck.strides == [3.5, 7, 14, 28] and model.size_divisibility == 28
    sum(model([sample(64, 96), sample(56, 84)]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        output = model.eval()([sample(50, 101)])[0]
    assert output["sem_seg"].shape == (3, 50, 101) and output["ood_score"].shape == (50, 101)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_encoder_of_every_config_fits_its_backbone(path):
    check_encoder(load_config(str(path)))


def test_recipe_of_rn50():
    model = load_config(get_config_file("tdos_rn50.yaml")).MODEL
    assert model.BACKBONE.NAME == "CLIPModifiedResNet" and model.CLIP.NAME == "RN50"
    assert model.CLIP.WEIGHTS == "pretrained/RN50.pt" and model.CLIP.FREEZE_IMAGE
    assert model.TDOS.OOD_WEIGHT == 1.0
