"""CLIP towers against open_clip's public encode_image and encode_text, and weight files."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import TextTower, ViTTower, build_clip, tokenize

# Widths are multiples of 64 because OpenAI's files do not name the number of heads.
SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def small_architecture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "test-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)


def random_clip(name: str = "tiny", seed: int = 0) -> nn.Module:
    """A CLIP in which no layer is at a start value (zero or one) that would hide an omission."""
    clip, _ = build_clip(name, "")
    generator = torch.Generator().manual_seed(seed)
    for key, value in clip.state_dict().items():
        scale = 0.02 if "token_embedding" in key else 0.2
        # representable in half precision, which OpenAI's files are rounded to
        value.copy_((scale * torch.randn(value.shape, generator=generator)).half().float())
    return clip.eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


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


@torch.no_grad()
def test_vit_b16_at_224():
    clip = random_clip("ViT-B-16")
    x = images(224, 224)[:1]
    tower = ViTTower(clip.visual, [4, 6, 8, 12])
    torch.testing.assert_close(tower(x).embedding, clip.encode_image(x), atol=1e-5, rtol=1e-5)
    text = open_clip.tokenize(["a road", "lost cargo on the road"])
    embedded = clip.token_embedding(text)
    ours = TextTower(clip)(embedded, text.argmax(-1))
    torch.testing.assert_close(ours, clip.encode_text(text), atol=1e-5, rtol=1e-5)


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
    positions = ViTTower(clip.visual, [1])._positions((6, 24))[1:, 0].view(6, 24)
    assert torch.allclose(positions, positions[:, :1].expand(-1, 24), atol=1e-4)
    assert (positions[1:, 0] > positions[:-1, 0]).all()


def openai_archive(clip: nn.Module, path) -> None:
    """Write ``clip`` as OpenAI does: a TorchScript archive, three numbers beside the weights."""

    class Archive(nn.Module):
        def __init__(self):
            super().__init__()
            for key, value in {
                "input_resolution": 32, "context_length": 77, "vocab_size": 49408
            }.items():
                self.register_buffer(key, torch.tensor(value))
            self.visual, self.transformer = clip.visual, clip.transformer
            self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
            self.positional_embedding = clip.positional_embedding
            self.text_projection, self.logit_scale = clip.text_projection, clip.logit_scale

        def forward(self, x):
            return self.visual(x)

    torch.jit.trace(Archive().eval(), images(32, 32), check_trace=False).save(str(path))


def write(clip: nn.Module, kind: str, folder) -> str:
    state = clip.state_dict()
    path = folder / f"{kind}.pt"
    if kind == "archive":
        openai_archive(clip, path)
    elif kind == "openai_state":
        numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
        torch.save({**state, **{k: torch.tensor(v) for k, v in numbers.items()}}, path)
    elif kind == "openai_mixed":  # what OpenAI's own loader gives on a GPU: matrices in half
        torch.save({k: v.half() if v.ndim > 1 else v for k, v in state.items()}, path)
    elif kind == "state":
        torch.save(state, path)
    elif kind == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        from safetensors.torch import save_file

        path = folder / "weights.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, str(path))
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "quick"),
    [
        ("archive", True),
        ("openai_state", True),
        ("openai_mixed", True),
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


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("tiny", "nowhere/clip.pt", "nowhere/clip.pt"),
        ("no-such-model", "", "no-such-model"),
        ("ViT-B-16", "no_such_tag", "no_such_tag"),
    ],
)
def test_what_cannot_be_built_is_named(name, weights, named):
    with pytest.raises(UserError, match=named) as error:
        build_clip(name, weights)
    assert "\n" not in str(error.value)


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
