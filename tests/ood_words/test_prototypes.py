"""Group prototypes, what is kept on disk, and CLIP's text encoder for plain prompts."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import TextTower, build_clip
from tdos_d2.modeling.text import TextEncoder
from tdos_d2.ood_words import prototypes

VECTORS = {
    "a dog here": [3.0, 0.0],
    "a photo booth here": [0.0, 0.5],
    "a photographic plate here": [-1.0, 0.0],
}
TEMPLATE = "a {} here"


def groups(*bounds: tuple[int, int]) -> list[list[str]]:
    words = ["dog", "photo booth", "photographic plate"]
    return [words[start:stop] for start, stop in bounds]


class Encoder:
    """Looks vectors up and counts the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return [VECTORS[text] for text in texts]


def test_prototypes_by_hand():
    found = prototypes(groups((0, 2), (2, 3)), Encoder(), TEMPLATE)
    # (1, 0) and (0, 1) have the mean (0.5, 0.5), of unit length (0.707, 0.707)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [-1.0, 0.0]], rtol=1e-6)


def test_whole_words_are_encoded_once_and_in_batches():
    encode = Encoder()
    prototypes(groups((0, 3)), encode, TEMPLATE, batch_size=2)
    # not cut at "photo", nor left out
    assert encode.texts == ["a dog here", "a photo booth here", "a photographic plate here"]


def test_a_template_without_a_place_for_the_word_is_an_error():
    with pytest.raises(UserError, match="'an origami' has no {}"):
        prototypes(groups((0, 3)), Encoder(), "an origami")


def test_what_is_kept_needs_no_encoding(cache):
    first = prototypes(groups((0, 2), (2, 3)), Encoder(), TEMPLATE, weights="w")
    again = Encoder()
    found = prototypes(groups((0, 2), (2, 3)), again, TEMPLATE, weights="w")
    assert np.array_equal(found, first) and again.texts == []
    # the words are kept, not the groups
    cut = prototypes(groups((0, 1), (1, 2), (2, 3)), again, TEMPLATE, weights="w")
    assert again.texts == []
    np.testing.assert_allclose(cut, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert [p.suffix for p in cache.rglob("*") if p.is_file()] == [".npz"]


@pytest.mark.parametrize("other", ["weights", "template", "words"])
def test_what_differs_is_encoded(cache, other, monkeypatch):
    prototypes(groups((0, 3)), Encoder(), TEMPLATE, weights="w")
    encode, template, weights, these = Encoder(), TEMPLATE, "w", groups((0, 3))
    if other == "weights":
        weights = "v"
    elif other == "template":
        template = "the {} here"
        monkeypatch.setitem(VECTORS, "the dog here", [1.0, 0.0])
        monkeypatch.setitem(VECTORS, "the photo booth here", [1.0, 0.0])
        monkeypatch.setitem(VECTORS, "the photographic plate here", [1.0, 0.0])
    else:
        these = [["dog"]]
    prototypes(these, encode, template, weights=weights)
    assert len(encode.texts) == len(these[0])


def test_a_broken_file_is_encoded_again(cache, caplog):
    first = prototypes(groups((0, 3)), Encoder(), TEMPLATE, weights="w")
    kept = next(p for p in cache.rglob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:100])
    encode = Encoder()
    assert np.array_equal(prototypes(groups((0, 3)), encode, TEMPLATE, weights="w"), first)
    assert len(encode.texts) == 3 and "made again" in caplog.text
    encode.texts.clear()
    prototypes(groups((0, 3)), encode, TEMPLATE, weights="w")
    assert encode.texts == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "file"))
    prototypes(groups((0, 3)), Encoder(), TEMPLATE, weights="w")
    assert "not kept" in caplog.text


def test_words_without_a_vector_do_not_count():
    known = {"dog": [3.0, 4.0], "photo booth": [0.0, 0.0], "photographic plate": [0.0, 0.0]}
    found = prototypes(groups((0, 2), (2, 3)), lambda texts: [known[t] for t in texts], "{}")
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def tiny_clip(seed: int = 0) -> nn.Module:
    clip, _ = build_clip("tiny", "")
    generator = torch.Generator().manual_seed(seed)
    for key, value in clip.state_dict().items():
        scale = 0.02 if "token_embedding" in key else 0.2
        value.copy_(scale * torch.randn(value.shape, generator=generator))
    return clip.eval()


@torch.no_grad()
def test_text_encoder_is_open_clips():
    clip = tiny_clip()
    texts = ["a clean origami of a dog", "frisbee", "a photo of a photographic plate"]
    theirs = clip.encode_text(open_clip.get_tokenizer("ViT-B-16")(texts), normalize=True)
    ours = TextEncoder(TextTower(clip).eval())(texts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (theirs[0] - theirs[1]).norm() > 0.1  # else any text would do


def test_a_text_beyond_the_positional_table_is_an_error():
    encode = TextEncoder(TextTower(tiny_clip()).eval())
    with pytest.raises(UserError, match="longer than 77 CLIP tokens"):
        encode(["dog", "dog " * 76])


def test_identity_is_that_of_the_weights():
    first, same, other = (TextEncoder(TextTower(tiny_clip(s))) for s in (0, 0, 1))
    assert first.weights_identity() == same.weights_identity() != other.weights_identity()
    with torch.no_grad():
        same.tower.ln_final.bias[0] += 1e-3
    assert first.weights_identity() != same.weights_identity()
