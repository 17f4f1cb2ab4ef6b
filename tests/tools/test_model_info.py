"""tools/model_info.py: counts against ones made by hand, and where weights are from."""

from __future__ import annotations

import sys

import pytest
import torch
from detectron2.modeling import build_model
from script_loading import load_script

from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.engine.model_info import count_multiply_adds, flops, load_model
from tdos_d2.errors import UserError
from tdos_d2.modeling.transformer_layers import Attention


@pytest.fixture
def run(monkeypatch, capsys):
    tool = load_script("tools/model_info.py")

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["model_info.py", *map(str, words)])
        tool.run()
        return capsys.readouterr().out

    return run


def parts_of(cfg, **options) -> dict:
    return {part.name: part for part in load_model(cfg, **options)[1]}


def test_attention_is_counted():
    query, key = torch.zeros(2, 5, 12), torch.zeros(2, 7, 12)
    counted = flops(Attention(12, 3), query, key, key).total()
    projections = 2 * (5 + 7 + 7 + 5) * 12 * 12
    assert counted == projections + 2 * 2 * 5 * 7 * 12  # q k^T and the weighted sum of values


def test_multiply_adds_of_an_image_encoder(frozen_cfg):
    """The tiny ViT by hand: 4 blocks of 96 channels on 8 x 12 patches of 8 x 8 pixels."""
    model, parts, _ = load_model(frozen_cfg)
    total = count_multiply_adds(model, parts, (64, 96))
    patches, width = 8 * 12, 96
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    products = patches * width * 3 * 64 + 4 * block + tokens * width * 64
    counted = {part.name: part.multiply_adds for part in parts}
    # On top of the products: 5 operations per value in each of 10 normalisations, and the resize
    # of the positional table from 12 x 12.
    assert products < counted["backbone"] < products + 10 * 5 * tokens * width + 20 * tokens * width
    assert counted["text"] is None and total >= sum(n for n in counted.values() if n)


def test_parameters_of_each_part(frozen_cfg):
    parts = parts_of(frozen_cfg)
    model = build_model(frozen_cfg)
    for name, part in parts.items():
        given = [(p.requires_grad, p.numel()) for p in getattr(model, name).parameters()]
        assert part.trainable == sum(n for trained, n in given if trained), name
        assert part.frozen == sum(n for trained, n in given if not trained), name
    assert parts["backbone"].trainable == 0 < parts["backbone"].frozen
    assert parts["text"].trainable == 3 * 64 + 4 * 2 * 64  # context and negatives


def test_where_weights_are_from(frozen_cfg, tmp_path):
    clip = f"CLIP {tmp_path / 'clip.pt'}"
    parts = parts_of(frozen_cfg)
    assert set(parts["backbone"].sources) == {clip} and set(parts["neck"].sources) == {"random"}
    assert parts["text"].sources["random"] == 2  # context and negatives
    model = build_model(frozen_cfg)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("pixel_decoder")}
    torch.save({"model": state}, tmp_path / "model.pth")
    frozen_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    parts = parts_of(frozen_cfg)
    checkpoint = f"checkpoint {tmp_path / 'model.pth'}"
    assert set(parts["backbone"].sources) == set(parts["neck"].sources) == {checkpoint}
    assert set(parts["pixel_decoder"].sources) == {"random"}


def test_random_weights_stand_in(frozen_cfg, tmp_path):
    there = parts_of(frozen_cfg)
    (tmp_path / "clip.pt").unlink()
    frozen_cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: .*gone.pth does not exist"):
        load_model(frozen_cfg)
    _, parts, notes = load_model(frozen_cfg, random=True)
    assert {note.partition(" ")[0] for note in notes} >= {"MODEL.CLIP.WEIGHTS", "MODEL.WEIGHTS"}
    for part in parts:
        assert set(part.sources) == {"random"}
        same = there[part.name]
        assert (part.trainable, part.frozen) == (same.trainable, same.frozen)


def test_a_crop_relative_to_the_image_has_no_size(run, tiny_cfg, tmp_path):
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.INPUT.CROP.SIZE = 0, (0.5, 0.5)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    with pytest.raises(UserError, match="--window: needed, as INPUT.CROP.SIZE is relative"):
        run("--config-file", tmp_path / "config.yaml")


def test_words_in_force(run, tiny_cfg, tmp_path):
    tiny_cfg.MODEL.PROMPTS.GROUPS, tiny_cfg.MODEL.PROMPTS.INIT = "cityscapes", "group"
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    config = tmp_path / "config.yaml"
    for words in ((), ("MODEL.WEIGHTS", tmp_path / "model.pth")):
        text = run("--config-file", config, "--window", 64, 96, *words)
        assert "window 64x96" in text
        assert "3 known classes: road, traffic sign, car" in text
        assert "negatives: 4 of 2 learnable tokens" in text
        assert "in 4 groups of 'cityscapes'; in training negatives start at them" in text
        assert f"\n  {4:3d}: " in text and f"\n  {5:3d}: " not in text
    assert "checkpoint" in text
