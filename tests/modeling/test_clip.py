"""CLIP towers against open_clip's public encode_image and encode_text, and weight files."""

from __future__ import annotations

import json
import logging
import re

import open_clip
import pytest
import torch
from clip_models import SMALL_VIT, images, random_clip, write
from torch import nn

import tdos_d2.modeling.clip.loading as build_module
from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import TextTower, ViTTower, build_clip, tokenize
from tdos_d2.modeling.clip.towers import _fused_attention, _resize_positions


@pytest.fixture(scope="module", autouse=True)
def small_architecture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "test-small.json").write_text(json.dumps(SMALL_VIT))
    open_clip.add_model_config(folder)


@torch.no_grad()
def test_image_embedding_is_open_clips():
    clip = random_clip()
    x = images(96, 96)
    ours = ViTTower(clip.visual, [1, 2, 3, 4])(x).embedding
    torch.testing.assert_close(ours, clip.encode_image(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", range(4))
def test_image_parity_notices_a_skipped_block(block):
    clip = random_clip()
    x = images(96, 96)
    expected = clip.encode_image(x)
    clip.visual.transformer.resblocks[block] = nn.Identity()
    ours = ViTTower(clip.visual, [1, 2, 3, 4])(x).embedding
    assert (ours - expected).abs().max() > 1e-2


@torch.no_grad()
def test_taps_and_dense_tokens_are_open_clips():
    clip = random_clip()
    x = images(96, 96)
    public = clip.visual.forward_intermediates(x, indices=[0, 2, 3])["image_intermediates"]
    ours = ViTTower(clip.visual, [1, 3, 4])(x)
    for tap, expected in zip(ours.taps, public, strict=True):
        torch.testing.assert_close(tap, expected, atol=1e-5, rtol=1e-5)
    dense = clip.visual.ln_post(public[-1].permute(0, 2, 3, 1)) @ clip.visual.proj
    torch.testing.assert_close(ours.dense, dense.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def encode_text(clip: nn.Module, text: torch.Tensor) -> torch.Tensor:
    return TextTower(clip)(clip.token_embedding(text), text.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("block", range(2))
def test_text_parity_notices_a_skipped_block(block):
    clip = random_clip()
    text = open_clip.tokenize(["a road", "lost cargo on the road"])
    expected = clip.encode_text(text)
    torch.testing.assert_close(encode_text(clip, text), expected, atol=1e-5, rtol=1e-5)
    clip.transformer.resblocks[block] = _SkippedTextBlock()
    assert (encode_text(clip, text) - expected).abs().max() > 1e-2


class _SkippedTextBlock(nn.Identity):
    def forward(self, x, attn_mask=None):
        return x


@torch.no_grad()
def test_vit_b16_at_224():
    clip = random_clip("ViT-B-16")
    x = images(224, 224)[:1]
    tower = ViTTower(clip.visual, [4, 6, 8, 12])
    expected = clip.encode_image(x)
    torch.testing.assert_close(tower(x).embedding, expected, atol=1e-5, rtol=1e-5)
    text = open_clip.tokenize(["a road", "lost cargo on the road"])
    torch.testing.assert_close(
        encode_text(clip, text), clip.encode_text(text), atol=1e-5, rtol=1e-5
    )
    clip.visual.transformer.resblocks[7] = nn.Identity()
    assert (tower(x).embedding - expected).abs().max() > 1e-2


def test_other_sizes_keep_the_stored_positions_and_pass_gradients():
    clip = random_clip()
    before = clip.visual.positional_embedding.detach().clone()
    tower = ViTTower(clip.visual, [1, 2, 3, 4])
    for height, width in ((64, 128), (128, 64), (96, 96)):
        tokens = tower(images(height, width))
        assert tokens.dense.shape == (2, 64, height // 8, width // 8)
    assert torch.equal(clip.visual.positional_embedding, before)
    tower(images(64, 128)).dense.sum().backward()
    assert clip.visual.positional_embedding.grad.abs().min() > 0


@torch.no_grad()
def test_rows_and_columns_are_not_swapped():
    """Positions of a non-square grid vary along the axis that the stored table varies along."""
    clip = random_clip()
    table = clip.visual.positional_embedding
    rows = torch.arange(12.0).repeat_interleave(12)
    table[1:] = rows[:, None]
    positions = _resize_positions(table, (12, 12), (6, 24))[1:, 0].view(6, 24)
    assert torch.allclose(positions, positions[:, :1].expand(-1, 24), atol=1e-4)
    assert (positions[1:, 0] > positions[:-1, 0]).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "quick"),
    [
        ("archive", True),
        ("openai_state", True),
        ("openai_mixed", False),  # as of any model in fp16
        ("state", False),
        ("training", False),
        ("safetensors", False),
    ],
)
def test_every_kind_of_weight_file(kind, quick, tmp_path):
    name = "test-small-quickgelu" if quick else "test-small"
    clip = random_clip(name)
    loaded, architecture = build_clip("test-small", write(clip, kind, tmp_path))
    assert architecture == name
    x, text = images(32, 32), open_clip.tokenize(["sofa"])
    loaded.eval()
    torch.testing.assert_close(loaded.encode_image(x), clip.encode_image(x))
    torch.testing.assert_close(loaded.encode_text(text), clip.encode_text(text))


@torch.no_grad()
def test_openai_weights_get_quick_gelu_as_open_clip_decides(tmp_path):
    """open_clip's own loader of OpenAI files is the reference; plain GELU gives other numbers."""
    clip = random_clip("test-small-quickgelu")
    path = write(clip, "archive", tmp_path)
    reference = open_clip.load_openai_model(path, precision="fp32", device="cpu").eval()
    ours, _ = build_clip("test-small", path)
    x = images(32, 32)
    torch.testing.assert_close(ours.eval().encode_image(x), reference.encode_image(x))
    plain, _ = build_clip("test-small", write(clip, "state", tmp_path))
    assert (plain.eval().encode_image(x) - reference.encode_image(x)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "activation", "quick", "level", "why"),
    [
        ("archive", "test-small", "auto", True, "INFO", "archive.pt asks for it"),
        ("archive", "test-small", "gelu", False, "INFO", "MODEL.CLIP.ACTIVATION says so"),
        ("state", "test-small", "auto", False, "INFO", "nothing in .*state.pt asks"),
        ("state", "test-small", "quick_gelu", True, "INFO", "MODEL.CLIP.ACTIVATION says so"),
        ("openai_mixed", "test-small", "auto", False, "WARNING", "mixed precision: set MODEL.CLIP"),
        ("openai_mixed", "test-small", "quick_gelu", True, "INFO", "ACTIVATION says so"),
        ("openai_mixed", "test-small-quickgelu", "auto", True, "INFO", "test-small-quickgelu asks"),
        ("state", "test-small-quickgelu", "gelu", False, "INFO", "ACTIVATION says so"),
    ],
)
def test_activation(kind, name, activation, quick, level, why, tmp_path, monkeypatch):
    """What the file really says, what the user says, and a line in the log about it."""
    lines = []
    monkeypatch.setattr(build_module.logger, "log", lambda *line: lines.append(line))
    path = write(random_clip("test-small"), kind, tmp_path)
    clip, architecture = build_clip(name, path, activation)
    assert architecture == ("test-small-quickgelu" if quick else "test-small")
    reference = random_clip(architecture).encode_image(images(32, 32))
    torch.testing.assert_close(clip.eval().encode_image(images(32, 32)), reference)
    ((logged, text, *values),) = lines
    assert logging.getLevelName(logged) == level and re.search(why, text % tuple(values))


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("tiny", "nowhere/clip.pt", "nowhere/clip.pt"),
        ("tiny", "https://nowhere.invalid/clip.pt", "clip.pt is an address: download it"),
        ("tiny", "hf-hub:nobody/clip", "hf-hub:nobody/clip is an address"),
        ("no-such-model", "", "no-such-model"),
        ("ViT-B-16", "no_such_tag", "no_such_tag"),
        ("ViT-L-14-worldwide", "", "another text encoder"),  # mT5's tokenizer
        ("ViT-L-14-CLIPA", "", "another text encoder"),  # BERT's, the embedding at the last token
        ("ViT-B-16-SigLIP", "", "another text encoder"),
    ],
)
def test_what_cannot_be_built_is_named(name, weights, named):
    with pytest.raises(UserError, match=named) as error:
        build_clip(name, weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["pool_type", "final_ln_after_pool", "attentional_pool"])
def test_image_encoders_with_another_embedding_are_named(key, monkeypatch):
    config = build_module._model_config("tiny")
    config["vision_cfg"][key] = "avg" if key == "pool_type" else True
    monkeypatch.setattr(build_module, "_model_config", lambda _: config)
    with pytest.raises(UserError, match="MODEL.CLIP.NAME: 'tiny' has another image encoder"):
        build_clip("tiny", "")


def test_the_switch_of_attention_is_restored_when_the_last_thread_leaves():
    enabled = torch.backends.mha.get_fastpath_enabled
    assert enabled()
    for _ in range(2):
        _fused_attention.__enter__()
    _fused_attention.__exit__()
    assert not enabled()
    _fused_attention.__exit__()
    assert enabled()


def test_a_tag_that_cannot_be_fetched(monkeypatch, caplog):
    def fail(_):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s")
        raise FileNotFoundError

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(UserError, match="MODEL.CLIP.WEIGHTS: cannot download 'openai' for RN50"):
        build_clip("RN50", "openai")
    assert not caplog.records
    logging.getLogger("huggingface_hub").warning("heard")
    assert "heard" in caplog.text


def test_unreadable_and_unfitting_files_are_named(tmp_path):
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"garbage\.pt") as error:
        build_clip("tiny", str(garbage))
    assert "\n" not in str(error.value)
    other = write(random_clip("test-small"), "state", tmp_path)
    with pytest.raises(UserError, match="does not fit MODEL.CLIP.NAME 'tiny'"):
        build_clip("tiny", other)


def test_tokens_are_clips():
    text = "a photo of a traffic sign"
    reference = open_clip.tokenize([text])[0]
    assert tokenize(text) == reference[1 : reference.argmax()].tolist()
