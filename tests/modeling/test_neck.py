"""The necks: levels, strides, what the score map does, and which neck fits which taps."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn

from tdos_d2 import add_tdos_config
from tdos_d2.errors import UserError
from tdos_d2.modeling.backbone import FPNNeck, ScaleNeck
from tdos_d2.modeling.registry import build_neck

RESNET = [ShapeSpec(channels=c, stride=s) for c, s in ((8, 4), (16, 8), (24, 16), (32, 32))]
VIT = [ShapeSpec(channels=12, stride=16)] * 4
NUM_QUERIES = 5


def taps(shapes: list[ShapeSpec], height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, s.channels, height // s.stride, width // s.stride, generator=generator)
        for s in shapes
    ]


def build(name: str, shapes: list[ShapeSpec], norm: str = "LN") -> nn.Module:
    cfg = get_cfg()
    add_tdos_config(cfg)
    cfg.MODEL.NECK.NAME, cfg.MODEL.NECK.CHANNELS, cfg.MODEL.NECK.NORM = name, 32, norm
    return build_neck(cfg, shapes, NUM_QUERIES)


@pytest.mark.parametrize(("shapes", "kind"), [(RESNET, FPNNeck), (VIT, ScaleNeck)])
def test_the_default_fits_the_taps(shapes, kind):
    neck = build("", shapes)
    assert isinstance(neck, kind)
    stride = shapes[-1].stride
    score_map = torch.randn(2, NUM_QUERIES, 64 // stride, 96 // stride)
    levels = neck(taps(shapes, 64, 96), score_map)
    expected = [
        (2, c, 64 // s, 96 // s) for c, s in zip(neck.channels, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(level.shape) for level in levels] == expected
    assert neck.size_divisibility == 32


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("FPNNeck", VIT, r"whose strides double.*\[16, 16, 16, 16\]"),
        ("ScaleNeck", RESNET, r"one stride.*\[4, 8, 16, 32\]"),
        ("Pyramid", VIT, "'Pyramid' is none of ScaleNeck, FPNNeck"),
    ],
)
def test_a_neck_that_does_not_fit(name, shapes, message):
    with pytest.raises(UserError, match=f"MODEL.NECK.NAME.*{message}"):
        build(name, shapes)


@pytest.mark.parametrize("norm", ["LN", "GN", "BN", "SyncBN", ""])
@pytest.mark.parametrize("shapes", [RESNET, VIT])
def test_norms(norm, shapes):
    wide = [ShapeSpec(channels=32, stride=s.stride) for s in shapes]
    neck = build("", wide, norm)
    names = {type(m).__name__ for m in neck.modules() if "Norm" in type(m).__name__}
    expected = {
        "LN": "LayerNorm",
        "GN": "GroupNorm",
        "BN": "BatchNorm2d",
        "SyncBN": "SyncBatchNorm",
    }
    assert names == ({expected[norm]} if norm else set())


def test_pyramid_is_sums_from_the_top():
    """Against the FPN paper's figure 3: lateral 1x1, plus twice nearest-upsampled, then 3x3."""
    neck = build("FPNNeck", RESNET, norm="")
    inputs, scores = taps(RESNET, 64, 32), torch.randn(2, NUM_QUERIES, 2, 1)
    levels = neck(inputs, scores)
    convs = dict(neck.pyramid.named_children())
    inner = None
    for number in (3, 2, 1, 0):
        tap = inputs[number] if number < 3 else torch.cat([inputs[3], scores], 1)
        lateral = convs[f"fpn_lateral{number + 2}"](tap)
        if inner is not None:
            lateral = lateral + inner.repeat_interleave(2, 2).repeat_interleave(2, 3)
        inner = lateral
        torch.testing.assert_close(levels[number], convs[f"fpn_output{number + 2}"](inner))


def test_every_level_sees_every_score_and_sends_gradients_back():
    neck = build("FPNNeck", RESNET)
    inputs = taps(RESNET, 64, 96)
    scores = torch.randn(2, NUM_QUERIES, 2, 3, requires_grad=True)
    for level in neck(inputs, scores):
        gradient = torch.autograd.grad(level.square().sum(), scores, retain_graph=True)[0]
        assert (gradient.abs().sum((0, 2, 3)) > 0).all()
