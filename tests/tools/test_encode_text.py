"""tools/encode_text.py: its file against open_clip's encode_text, and as MODEL.TEXT.EMBEDDINGS."""

from __future__ import annotations

import sys

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from script_loading import load_script

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import build_clip
from tdos_d2.ood_words import load_groups
from tdos_d2.ood_words.prototypes import embed_words


@pytest.fixture
def clip(tmp_path):
    """A CLIP with random weights, in a file."""
    clip, _ = build_clip("tiny", "")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    return clip.eval()


@pytest.fixture
def run(tmp_path, clip):
    tool = load_script("tools/encode_text.py")
    given = ["--clip-name", "tiny", "--clip-weights", str(tmp_path / "clip.pt")]
    given += ["--output", str(tmp_path / "text.npz")]
    return lambda *args: tool.main(tool._parser().parse_args([*given, *map(str, args)]))


def test_file_has_what_open_clip_gives(run, clip, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("lost cargo\n\n car \nroad\n")
    run("--names", "road", "Traffic Sign", "--words-file", words, "--template", "the nice {}.")
    with np.load(tmp_path / "text.npz", allow_pickle=False) as data:
        names, embeddings = list(data["names"]), data["embeddings"]
    assert names == ["road", "Traffic Sign", "lost cargo", "car"]
    tokens = open_clip.SimpleTokenizer()([f"the nice {name}." for name in names])
    with torch.no_grad():
        expected = F.normalize(clip.encode_text(tokens), dim=-1).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_a_model_takes_the_file(run, tiny_cfg, tmp_path):
    run("--names", *tiny_cfg.MODEL.TDOS.CLASS_NAMES)
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = str(tmp_path / "text.npz")
    model = build_model(tiny_cfg)
    unit = np.load(tmp_path / "text.npz")["embeddings"]
    np.testing.assert_allclose(model.text.vectors.numpy(), 10 * unit, rtol=1e-5, equal_nan=False)


def test_a_list_that_ships(run, tmp_path, monkeypatch):
    words = load_groups("cityscapes").words
    # thousands of words take their time
    module = sys.modules[embed_words.__module__]
    monkeypatch.setattr(module, "embed_words", lambda names, *_: np.ones((1, 64)))
    run("--names", "road", "--words-file", "cityscapes")
    with np.load(tmp_path / "text.npz", allow_pickle=False) as data:
        assert list(data["names"]) == ["road", *words]


@pytest.mark.parametrize(
    "args, message",
    [
        ((), "nothing to encode"),
        (("--names", "a", "--template", "photo"), "the prompt template 'photo' has no {}"),
        (("--words-file", "/nowhere/words.txt"), "no file '/nowhere/words.txt'"),
        (("--names", "a", "--clip-weights", ""), "random weights give no text embeddings"),
        (("--names", "a", "--output", "a.txt"), "must end in .npz"),
    ],
)
def test_mistakes(run, args, message):
    with pytest.raises(UserError, match=message):
        run(*args)
