"""Fused models give what they gave, with fewer layers."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from detectron2.modeling import build_model
from open_clip.transformer import QuickGELU
from torch import nn

from tdos_d2.modeling.backbone import TimmBackbone
from tdos_d2.modeling.fusion import fuse_for_prediction


def trained(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics and biases as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
                part.bias.normal_(generator=generator)
            elif isinstance(part, nn.ConvTranspose2d):
                part.bias.normal_(generator=generator)
    return model.eval()


def scores(model: nn.Module) -> torch.Tensor:
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        return model([{"image": image}])[0]["ood_score"]


def test_fused_models_take_no_weights(tiny_cfg):
    """Some of a model's own would fit, and give other scores."""
    model = build_model(tiny_cfg)
    state = model.state_dict()
    fused = fuse_for_prediction(model)
    with pytest.raises(RuntimeError, match="fused for prediction: it takes no weights"):
        copy.deepcopy(fused).load_state_dict(state)


def layers(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in model.modules())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_scores_stay(kind, tiny_cfg):
    cfg = tiny_cfg
    if kind == "resnet":
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.NAME = "CLIPModifiedResNet", "tiny-rn"
    cfg.MODEL.CLIP.ACTIVATION = "quick_gelu"
    cfg.TEST.WINDOW.SIZE = 0
    torch.manual_seed(0)
    model = trained(build_model(cfg))
    fused = fuse_for_prediction(copy.deepcopy(model).train())  # as --eval-only builds it
    torch.testing.assert_close(scores(fused), scores(model), atol=1e-4, rtol=1e-4)
    assert layers(fused.backbone, QuickGELU) == 0
    assert layers(fused.backbone, nn.SiLU) == layers(model.backbone, QuickGELU)
    if kind == "vit":
        assert layers(model.backbone, QuickGELU) > 1
        # Patches of 8 pixels: one level is enlarged, and its 1x1 convolution is gone.
        assert layers(fused.pixel_decoder, nn.Conv2d) == layers(model.pixel_decoder, nn.Conv2d) - 1
    else:
        assert layers(model.backbone, nn.BatchNorm2d) > 9
        assert layers(fused.backbone, nn.BatchNorm2d) == 0


class EncoderOnly(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = TimmBackbone(network=network)


class Doubled(nn.Module):
    """A convolution whose output goes into BatchNorm, and past it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = block.conv_stem, block.bn1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return self.bn(x) + x


@pytest.mark.parametrize("fits", [True, False])
def test_encoder_of_timm(fits):
    """Folded where nothing but BatchNorm takes a convolution's output, else left alone."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    if not fits:
        network.conv_stem, network.bn1 = Doubled(network), nn.Identity()
    model = trained(EncoderOnly(network))
    images = torch.randn(1, 3, 64, 96)
    expected = model.backbone(images)
    norms = layers(model, nn.BatchNorm2d)
    maps = fuse_for_prediction(model).backbone(images)
    assert norms > 40 and layers(model, nn.BatchNorm2d) == (0 if fits else norms)
    for name, value in expected.items():
        torch.testing.assert_close(maps[name], value, atol=1e-4, rtol=1e-3)
