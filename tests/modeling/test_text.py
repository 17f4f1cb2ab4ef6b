"""Text queries: prompts through the encoder, fixed embeddings, context decoder."""

from __future__ import annotations

import copy

import numpy as np
import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from references import context_decoder, randomise

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import TextTower, build_clip, tokenize
from tdos_d2.modeling.registry import build_text
from tdos_d2.modeling.text import ContextDecoder, FixedText, PromptedText
from tdos_d2.modeling.text.word_embeddings import WordEmbeddings

NAMES = ["road", "car", "traffic sign", "ood"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    clip, _ = build_clip("tiny", "")
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide an omission
        for parameter in clip.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip.eval()


def prompted(clip, names=NAMES, **kwargs) -> PromptedText:
    torch.manual_seed(1)
    return PromptedText(TextTower(clip), names, **kwargs)


def open_clip_text(clip, texts) -> torch.Tensor:
    with torch.no_grad():
        return clip.encode_text(open_clip.tokenize(texts))


def set_tokens(parameter, clip, words: str) -> None:
    with torch.no_grad():
        parameter.copy_(clip.token_embedding(torch.tensor(tokenize(words))))


def test_names_without_context_are_open_clips_embeddings(clip):
    text = prompted(clip, context_length=0, num_negative=0)
    torch.testing.assert_close(text(), open_clip_text(clip, NAMES), atol=1e-5, rtol=1e-5)


def test_context_stands_before_the_name(clip):
    """Defects 1 and 4: pooled at the shifted end token, with positions on the context path."""
    text = prompted(clip, context_length=4, num_negative=0)
    set_tokens(text.context, clip, "a photo of a")
    expected = open_clip_text(clip, [f"a photo of a {name}" for name in NAMES])
    torch.testing.assert_close(text(), expected, atol=1e-5, rtol=1e-5)


def test_negatives_are_whole_prompts(clip):
    """Defect 3: start token, context, all tokens of the negative, and a real end token."""
    text = prompted(clip, context_length=4, num_negative=1, negative_length=2)
    set_tokens(text.context, clip, "a photo of a")
    set_tokens(text.negatives[0], clip, "lost cargo")
    expected = open_clip_text(clip, ["a photo of a lost cargo"])
    torch.testing.assert_close(text()[-1:], expected, atol=1e-5, rtol=1e-5)


def test_names_differ(clip):
    """Defects 1 and 2: names of equal token count had one embedding."""
    text = prompted(clip, context_length=20, num_negative=0)()
    names = [len(tokenize(name)) for name in NAMES]
    assert names[0] == names[1], "two names of one token, or the test shows nothing"
    distances = torch.pdist(text)
    assert distances.min() > 1e-3 * text.norm(dim=1).mean()


def test_every_learnable_token_gets_gradient(clip):
    text = prompted(clip, context_length=20, num_negative=3, negative_length=5)
    embeddings = text()
    embeddings[: len(NAMES)].square().sum().backward(retain_graph=True)
    assert (text.context.grad.abs().amax(-1) > 0).all()
    text.context.grad = None
    embeddings[len(NAMES) :].square().sum().backward()
    assert (text.negatives.grad.abs().amax(-1) > 0).all()
    assert (text.context.grad.abs().amax(-1) > 0).all(), "negatives train the shared context too"


def test_encoder_is_frozen_and_stays_in_eval_mode(clip):
    text = prompted(clip).train()
    assert not text.tower.training
    assert {n for n, p in text.named_parameters() if p.requires_grad} == {"context", "negatives"}


def rewrite(text: PromptedText) -> None:
    """New prompts as a fused optimizer writes them: the versions of the tensors stay."""
    for parameter in (text.context, text.negatives):
        parameter.data.mul_(2)


@torch.enable_grad()
def fused_step(text: PromptedText) -> None:
    optimizer = torch.optim.AdamW([text.context, text.negatives], lr=0.1, fused=True)
    text().sum().backward()
    optimizer.step()


def load(text: PromptedText) -> None:
    text.tower.load_state_dict({k: 2 * v for k, v in text.tower.state_dict().items()})


def load_all(text: PromptedText) -> None:
    text.load_state_dict({k: 2 * v for k, v in text.state_dict().items()})


def to_double(text: PromptedText) -> None:
    text.double()


def change_mode(text: PromptedText) -> None:
    """The encoder written in place, as by nobody but who trains it."""
    text.train()
    text.tower.ln_final.weight.data.mul_(2)
    text.eval()


@pytest.mark.parametrize("change", [rewrite, fused_step, load, load_all, to_double, change_mode])
def test_embeddings_are_kept_until_something_changes(clip, monkeypatch, change):
    text = copy.deepcopy(prompted(clip, num_negative=2, negative_length=2).eval())
    calls = []
    encode = PromptedText._encode
    monkeypatch.setattr(PromptedText, "_encode", lambda self: calls.append(1) or encode(self))
    with torch.no_grad():
        first = text()
        assert text() is first and len(calls) == 1
        change(text)
        calls.clear()
        second = text()
        assert text() is second and len(calls) == 1 and not torch.equal(first, second)
        assert torch.equal(second, encode(text))
    text()
    text()
    assert len(calls) == 3, "with gradients nothing is kept"


@pytest.mark.parametrize("first", [False, True])
def test_what_is_kept_does_not_know_autocast(clip, first):
    """A call under autocast and one without, in either order, give the same float32 vectors."""
    text = prompted(clip).eval()
    with torch.no_grad():
        outputs = []
        for enabled in (first, not first):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                outputs.append(text())
        assert outputs[1] is outputs[0] and outputs[0].dtype == torch.float32
        assert torch.equal(outputs[0], text._encode())


def test_prompts_that_are_too_long(clip):
    with pytest.raises(UserError, match="CONTEXT_LENGTH"):
        prompted(clip, context_length=75)
    assert prompted(clip, context_length=73, num_negative=0)().shape == (4, 64)  # 73 + 2 + 2 = 77


def test_fixed_embeddings(tiny_cfg, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    path = tmp_path / "text.npz"
    np.savez(path, names=np.array(["Car", "road", "tree"]), embeddings=vectors)
    tiny_cfg.MODEL.TEXT.EMBEDDINGS, tiny_cfg.MODEL.TDOS.NUM_NEGATIVE = str(path), 2
    text = FixedText(tiny_cfg, ["road", "car", "ood"])
    assert text().shape == (5, 8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(text()[:2].detach(), 10 * unit[[1, 0]], rtol=1e-5)
    np.testing.assert_allclose(text().detach().norm(dim=1), 10, rtol=1e-5)
    text().sum().backward()
    assert text.residual.grad.abs().sum() > 0 and text.negatives.grad.abs().sum() > 0
    with pytest.raises(UserError, match="lacks bus"):
        FixedText(tiny_cfg, ["road", "bus", "ood"])
    np.savez(path, names=np.array(["road"]), embeddings=np.array([[1.0, np.nan]]))
    with pytest.raises(UserError, match="text.npz.*NaN"):
        FixedText(tiny_cfg, ["road", "ood"])
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = "nowhere.npz"
    with pytest.raises(UserError, match="nowhere"):
        FixedText(tiny_cfg, ["road", "ood"])


def test_of_a_name_that_is_there_twice_the_first_counts(tiny_cfg, tmp_path):
    """For queries and for words: "road" must be the word that is nearest to the class road."""
    vectors = np.eye(4, 8, dtype=np.float32)
    path = tmp_path / "text.npz"
    np.savez(path, names=np.array(["road", "car", "Road", "car"]), embeddings=vectors)
    tiny_cfg.MODEL.TEXT.EMBEDDINGS, tiny_cfg.MODEL.TDOS.NUM_NEGATIVE = str(path), 0
    text = FixedText(tiny_cfg, ["road", "car", "ood"])
    words = WordEmbeddings(text, str(path))
    assert words.words == ["road", "car"]
    torch.testing.assert_close(10 * words(["Road", "car"]), text()[:2].detach())
    vectors[0] = 0
    np.savez(path, names=np.array(["road", "car"]), embeddings=vectors[:2])
    with pytest.raises(UserError, match="text.npz' has only zeros for road"):
        FixedText(tiny_cfg, ["road", "car", "ood"])


def test_text_and_its_file_fit_together(tiny_cfg):
    tiny_cfg.MODEL.TEXT.NAME = "FixedText"
    with pytest.raises(UserError, match="FixedText needs a file: MODEL.TEXT.EMBEDDINGS is empty"):
        build_text(tiny_cfg, ["road", "ood"])
    tiny_cfg.MODEL.TEXT.NAME, tiny_cfg.MODEL.TEXT.EMBEDDINGS = "PromptedText", "text.npz"
    with pytest.raises(UserError, match="MODEL.TEXT.EMBEDDINGS must be empty"):
        build_text(tiny_cfg, ["road", "ood"])


@pytest.mark.parametrize("length", [1.0, 10.0, 300.0])
def test_queries_of_fixed_embeddings_differ_at_the_start(tiny_cfg, tmp_path, length):
    """CLIP's names have cosines of about 0.75: the states of their queries must not be one.

    Vectors of length 1 gave states of cosine 0.99, and length must not matter at all.
    """
    rng = np.random.default_rng(0)
    vectors = np.sqrt(0.75) * rng.normal(size=512) + np.sqrt(0.25) * rng.normal(size=(3, 512))
    vectors *= length / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tiny_cfg.MODEL.TDOS.CLASS_NAMES
    np.savez(tmp_path / "text.npz", names=np.array(names), embeddings=vectors)
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = str(tmp_path / "text.npz")
    tiny_cfg.MODEL.PIXEL_DECODER.HIDDEN_DIM = 256
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    decoder = model.transformer_decoder
    states = decoder.norm(decoder.query_content(model.text()[:3]))
    cosines = torch.cosine_similarity(states[[0, 0, 1]], states[[1, 2, 2]])
    assert (cosines < 0.9).all() and (cosines > 0).all(), cosines


def test_context_decoder_starts_as_a_small_residual():
    """Defect 18: gamma really starts at its configured value."""
    torch.manual_seed(0)
    decoder = ContextDecoder(8, 8, hidden_dim=16, num_heads=2, gamma_init=1e-4).eval()
    text, visual = torch.randn(5, 8), torch.randn(2, 7, 8)
    out = decoder(text, visual)
    assert out.shape == (2, 5, 8)
    delta = (out - text).abs().max()
    assert 0 < delta < 1e-2
    with torch.no_grad():
        decoder.gamma.fill_(1)
    first, second = decoder(text, visual) - text
    assert (first - second).abs().max() > 1e-3, "what is added depends on the image"


def test_context_decoder_follows_the_paper():
    decoder = ContextDecoder(8, 12, hidden_dim=16, num_layers=2, num_heads=2).eval()
    randomise(decoder)
    text, visual = torch.randn(5, 8), torch.randn(2, 7, 12)
    expected = context_decoder(decoder, text, visual)
    torch.testing.assert_close(decoder(text, visual), expected, atol=1e-4, rtol=1e-4)
