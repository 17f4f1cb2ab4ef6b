"""CLIP's ResNet against open_clip's public functions: sizes, weight files, frozen statistics."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clip_models import SMALL_RESNET, images, random_clip, write
from detectron2.modeling import build_backbone
from torch import nn
from torch.func import functional_call

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import ResNetTower, TextTower, build_clip

STAGES = SMALL_RESNET["vision_cfg"]["layers"]
BLOCKS = [(stage, block) for stage, depth in enumerate(STAGES, 1) for block in range(depth)]


@pytest.fixture(scope="module", autouse=True)
def small_architecture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "test-small-rn.json").write_text(json.dumps(SMALL_RESNET))
    open_clip.add_model_config(folder)


def skip_block(visual: nn.Module, stage: int, block: int) -> None:
    """Leave out the residual branch; a shortcut that changes the shape has to stay."""
    blocks = getattr(visual, f"layer{stage}")
    blocks[block] = blocks[block].downsample or nn.Identity()


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_embedding_and_taps_are_open_clips():
    clip = random_clip("test-small-rn")
    x = images(64, 64)
    public = clip.visual.forward_intermediates(x, intermediates_only=True)["image_intermediates"]
    ours = ResNetTower(clip.visual)(x)
    close(ours.embedding, clip.encode_image(x))
    for tap, expected in zip(ours.taps, public[1:], strict=True):
        close(tap, expected)


@torch.no_grad()
@pytest.mark.parametrize(("stage", "block"), BLOCKS)
def test_parity_notices_a_skipped_block(stage, block):
    clip = random_clip("test-small-rn")
    x = images(64, 64)
    tower = ResNetTower(clip.visual)
    expected = clip.encode_image(x)
    close(tower(x).embedding, expected)
    skip_block(clip.visual, stage, block)
    assert (tower(x).embedding - expected).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("layer", ["bn1", "conv2", "act3", "attnpool.q_proj", "attnpool.k_proj"])
def test_parity_notices_a_skipped_layer(layer):
    clip = random_clip("test-small-rn")
    x = images(64, 64)
    expected = clip.encode_image(x)
    parent, _, name = layer.rpartition(".")
    setattr(clip.visual.get_submodule(parent), name, nn.Identity())
    assert (ResNetTower(clip.visual)(x).embedding - expected).abs().max() > 1e-3


@torch.no_grad()
def test_rn50_at_224():
    clip = random_clip("RN50")
    x = images(224, 224)[:1]
    expected = clip.encode_image(x)
    tower = ResNetTower(clip.visual)
    tokens = tower(x)
    close(tokens.embedding, expected)
    assert [tap.shape[1] for tap in tokens.taps] == [256, 512, 1024, 2048]
    assert tokens.dense.shape == (1, 1024, 7, 7)
    text = open_clip.tokenize(["a road", "lost cargo on the road"])
    close(TextTower(clip)(clip.token_embedding(text), text.argmax(-1)), clip.encode_text(text))
    skip_block(clip.visual, 3, 4)
    assert (tower(x).embedding - expected).abs().max() > 1e-2


@torch.no_grad()
def test_dense_embeddings_are_attention_among_values():
    clip = random_clip("test-small-rn")
    pool, ours = clip.visual.attnpool, ResNetTower(clip.visual)(images(64, 64))
    x = ours.taps[-1][0].flatten(1).T
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding
    values = pool.v_proj(x)
    heads = []
    for value in values.chunk(pool.num_heads, dim=1):
        weights = (value @ value.T / value.shape[1] ** 0.5).softmax(dim=1)
        heads.append(weights @ value)
    expected = pool.c_proj(torch.cat(heads, dim=1))
    close(ours.dense[0].flatten(1).T, expected[1:])


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 128), (96, 32), (192, 160)])
def test_embedding_of_any_size_is_open_clips_with_a_resized_table(size):
    """open_clip's pool takes any grid whose table has as many rows."""
    clip = random_clip("test-small-rn")
    grid = (size[0] // 32, size[1] // 32)
    table = clip.visual.attnpool.positional_embedding
    square = table[1:].unflatten(0, (2, 2)).movedim(-1, 0)[None]
    resized = F.interpolate(square, grid, mode="bicubic", align_corners=False)
    resized = torch.cat([table[:1], resized[0].movedim(0, -1).flatten(0, 1)])
    x = images(*size)
    expected = functional_call(clip.visual, {"attnpool.positional_embedding": resized}, x)
    ours = ResNetTower(clip.visual)(x)
    close(ours.embedding, expected)
    assert ours.dense.shape == (2, 64, *grid)


def test_other_sizes_leave_no_trace_and_pass_gradients():
    """Defect 11: the released pool overwrites its table whenever the size changes."""
    clip = random_clip("test-small-rn")
    tower = ResNetTower(clip.visual)
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    with torch.no_grad():
        first = tower(images(64, 64)).dense
        for size in ((128, 32), (32, 96)):
            tower(images(*size))
        assert torch.equal(tower(images(64, 64)).dense, first)
    assert all(torch.equal(before[key], value) for key, value in clip.state_dict().items())
    tower(images(96, 128)).dense.sum().backward()
    assert clip.visual.attnpool.positional_embedding.grad[1:].abs().min() > 0


@torch.no_grad()
def test_the_global_token_has_queries_of_its_own():
    """Defect 10: in the released pool queries and keys are copies of the values."""
    clip = random_clip("test-small-rn")
    x, tower = images(64, 64), ResNetTower(clip.visual)
    before = tower(x)
    for projection in (clip.visual.attnpool.q_proj, clip.visual.attnpool.k_proj):
        projection.load_state_dict(clip.visual.attnpool.v_proj.state_dict())
    after = tower(x)
    assert (before.embedding - after.embedding).abs().max() > 1e-3
    assert torch.equal(before.dense, after.dense)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["archive", "openai_state", "openai_mixed", "state", "safetensors"]
)
def test_every_kind_of_weight_file(kind, tmp_path):
    quick = kind in ("archive", "openai_state")
    name = "test-small-rn-quickgelu" if quick else "test-small-rn"
    clip = random_clip(name)
    loaded, architecture = build_clip("test-small-rn", write(clip, kind, tmp_path))
    assert architecture == name
    x, text = images(64, 64), open_clip.tokenize(["sofa"])
    loaded.eval()
    ours = ResNetTower(loaded.visual)(x)
    close(ours.embedding, clip.encode_image(x))
    close(ours.dense, ResNetTower(clip.visual)(x).dense)
    close(loaded.encode_text(text), clip.encode_text(text))


@torch.no_grad()
def test_archives_are_read_as_open_clip_reads_them(tmp_path):
    path = write(random_clip("test-small-rn-quickgelu"), "archive", tmp_path)
    reference = open_clip.load_openai_model(path, precision="fp32", device="cpu").eval()
    ours, _ = build_clip("test-small-rn", path)
    x, text = images(64, 64), open_clip.tokenize(["a sofa on the road"])
    close(ResNetTower(ours.eval().visual)(x).embedding, reference.encode_image(x))
    close(ours.encode_text(text), reference.encode_text(text))


@pytest.fixture
def resnet_cfg(tiny_cfg, tmp_path):
    """Config of a ResNet backbone with weights from a file."""
    tiny_cfg.MODEL.BACKBONE.NAME = "CLIPModifiedResNet"
    tiny_cfg.MODEL.CLIP.NAME = "test-small-rn"
    tiny_cfg.MODEL.CLIP.WEIGHTS = write(random_clip("test-small-rn"), "state", tmp_path)
    return tiny_cfg


def test_frozen_backbone_keeps_its_statistics_in_training(resnet_cfg):
    """Defect 14."""
    backbone = build_backbone(resnet_cfg).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(images(64, 96))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert not any(value.requires_grad for value in features.values())
    visual = random_clip("test-small-rn").visual
    with torch.no_grad():
        close(features["tap1"], visual.layer1(visual.stem(images(64, 96))))


@pytest.mark.parametrize(
    ("freeze_norm", "loaded", "frozen"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_norms_of_a_trained_backbone(resnet_cfg, freeze_norm, loaded, frozen):
    """They are kept where weights are loaded, unless asked, and trained where they are random."""
    resnet_cfg.MODEL.CLIP.FREEZE_IMAGE = False
    resnet_cfg.MODEL.BACKBONE.FREEZE_NORM = freeze_norm
    if not loaded:
        resnet_cfg.MODEL.CLIP.WEIGHTS = ""
    backbone = build_backbone(resnet_cfg).train()
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    features = backbone(images(64, 96))
    assert all(torch.equal(before[k], v) == frozen for k, v in backbone.named_buffers())
    sum(value.sum() for value in features.values()).backward()
    norms = {
        id(p) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    assert norms
    for parameter in backbone.parameters():
        assert (parameter.grad is None) == (frozen and id(parameter) in norms)


def test_maps_have_the_strides_and_channels_promised(resnet_cfg):
    backbone = build_backbone(resnet_cfg)
    shapes = backbone.output_shape()
    assert [shapes[f"tap{i}"].stride for i in (1, 2, 3, 4)] == [4, 8, 16, 32]
    features = backbone(images(64, 96))
    for name, shape in shapes.items():
        height, width = 64 // shape.stride, 96 // shape.stride
        assert features[name].shape == (2, shape.channels, height, width)
    assert features["embedding"].shape == (2, 64)


class _Brighter(nn.Module):
    def forward(self, features, region):
        return features + F.max_pool2d(region[:, None], 4)


def test_augmentation_changes_the_map_of_the_first_stage(resnet_cfg):
    backbone = build_backbone(resnet_cfg)
    backbone.tower.mixing = _Brighter()
    x, region = images(64, 64), torch.zeros(2, 64, 64)
    region[1, :32] = 1
    clean, augmented = backbone(x), backbone(x, region)
    close(augmented["tap1"][1, :, :8], clean["tap1"][1, :, :8] + 1)
    assert torch.equal(augmented["tap1"][:, :, 8:], clean["tap1"][:, :, 8:])
    for name in ("tap2", "tap4", "embedding", "dense"):
        close(augmented[name][0], clean[name][0])
        assert (augmented[name][1] - clean[name][1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("backbone", "clip", "fitting"),
    [
        ("CLIPVisionTransformer", "tiny-rn", "is a ResNet: use CLIPModifiedResNet"),
        ("CLIPVisionTransformer", "RN50-quickgelu", "is a ResNet: use CLIPModifiedResNet"),
        ("CLIPModifiedResNet", "tiny", "is a ViT: use CLIPVisionTransformer"),
        ("CLIPModifiedResNet", "convnext_base", "neither CLIP's ViT nor its ResNet"),
    ],
)
def test_backbone_of_the_other_kind(tiny_cfg, backbone, clip, fitting):
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.CLIP.NAME = backbone, clip
    with pytest.raises(UserError, match=fitting) as error:
        build_backbone(tiny_cfg)
    assert "\n" not in str(error.value)


def test_weights_of_the_other_kind(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.CLIP.WEIGHTS = write(random_clip("test-small-rn"), "state", tmp_path)
    with pytest.raises(UserError, match="does not fit MODEL.CLIP.NAME 'tiny'"):
        build_backbone(tiny_cfg)
