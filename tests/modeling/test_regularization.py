"""Regularizers, starts of negatives, frozen parts."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from tdos_d2.engine import build_optimizer
from tdos_d2.modeling.clip import TextTower, build_clip, tokenize
from tdos_d2.modeling.regularization import LanguageLoss, VisionLoss
from tdos_d2.modeling.text import FixedText, PromptedText
from tdos_d2.modeling.text.prompts import words_to_tokens
from tdos_d2.ood_words import WordGroups

WORDS = ["sofa", "kangaroo", "suitcase", "tent", "banana", "piano", "giraffe", "frisbee"]


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.json"
    parts = {"source": "test", "parameters": {}, "licence": "none", "known": ["road"]}
    bounds = [[2 * i, 2 * i + 2] for i in range(4)]
    distances = list(range(len(WORDS)))
    path.write_text(json.dumps(parts | {"words": WORDS, "distances": distances, "groups": bounds}))
    return str(path)


@pytest.fixture
def full_cfg(tiny_cfg, words_file, clip_file, monkeypatch, tmp_path):
    """Everything on: four groups for the four negatives, a trained encoder, all regions."""
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    cfg = tiny_cfg
    cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.CLIP.FREEZE_IMAGE = clip_file, False
    cfg.MODEL.PROMPTS.GROUPS, cfg.MODEL.PROMPTS.INIT = words_file, "group"
    cfg.MODEL.REG.LANGUAGE_WEIGHT = 1.0
    cfg.MODEL.SEM_AUG.ENABLED, cfg.MODEL.SEM_AUG.REGION = True, "both"
    cfg.MODEL.SEM_AUG.PROB = 1.0
    return cfg


def sample(height: int = 64, width: int = 96, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator),
        "sem_seg": torch.randint(0, 4, (height, width), generator=generator),
    }


def test_language_loss_by_hand():
    """Two references for queries 0 and 2 of three, cosines 0.6 / 0.8 and 0 / 1."""
    references = torch.eye(2), torch.tensor([0, 2])
    text = torch.tensor([[[3.0, 4.0], [5.0, 5.0], [0.0, 2.0]]])
    loss = LanguageLoss(lambda: references, weight=2.0, temperature=0.1)(text)
    first = math.log(1 + math.exp((0.8 - 0.6) / 0.1))
    second = math.log(1 + math.exp((0 - 1) / 0.1))
    assert loss.item() == pytest.approx(2.0 * (first + second) / 2, rel=1e-5)


def test_language_loss_is_in_full_precision_under_autocast():
    """In bfloat16 cosines have steps of 0.004, which the temperature makes 0.06."""
    generator = torch.Generator().manual_seed(0)
    references = F.normalize(torch.randn(4, 16, generator=generator), dim=1), torch.arange(4)
    text = torch.randn(2, 4, 16, generator=generator)
    expected = LanguageLoss(lambda: references)(text)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LanguageLoss(lambda: references)(text), expected)


def test_temperature_gives_the_term_a_range():
    """Defect 18: without it a perfect match among 70 references of cosine 0.5 costs 3.76."""
    gram = 0.5 * torch.eye(70) + 0.5
    vectors = torch.linalg.cholesky(gram)
    references = vectors, torch.arange(70)
    without = LanguageLoss(lambda: references, temperature=1.0)(vectors[None])
    assert without.item() == pytest.approx(3.76, abs=0.01)
    loss = LanguageLoss(lambda: references, temperature=0.07)(vectors[None])
    assert loss.item() == pytest.approx(math.log(1 + 69 * math.exp(-0.5 / 0.07)), rel=1e-3)


def test_references_are_open_clips_embeddings(full_cfg, clip_file):
    """Names, the OOD word, then per group the normalised mean of normalised embeddings."""
    model = build_model(full_cfg)
    model([sample()])
    clip, _ = build_clip("tiny", clip_file)

    def encode(words):
        texts = open_clip.tokenize([f"a clean origami of a {word}" for word in words])
        with torch.no_grad():
            return F.normalize(clip.encode_text(texts), dim=-1)

    groups = [F.normalize(encode(WORDS[i : i + 2]).mean(0), dim=0) for i in range(0, 8, 2)]
    expected = torch.cat([encode(["road", "traffic sign", "car", "ood"]), torch.stack(groups)])
    language = model.regularization.language
    torch.testing.assert_close(language.references, expected, atol=1e-5, rtol=1e-5)
    assert language.queries.tolist() == list(range(8))
    assert not [key for key in model.state_dict() if key.startswith("regularization")]

    state = model.state_dict()
    model.load_state_dict({**state, "text.tower.ln_final.bias": torch.randn(64)})
    with torch.no_grad():
        clip.ln_final.bias.copy_(model.text.tower.ln_final.bias)
    model([sample()])
    torch.testing.assert_close(language.references[:1], encode(["road"]), atol=1e-5, rtol=1e-5)


def test_without_groups_only_names_have_references(full_cfg):
    full_cfg.MODEL.PROMPTS.GROUPS, full_cfg.MODEL.PROMPTS.INIT = "", "random"
    model = build_model(full_cfg)
    model([sample()])
    assert model.regularization.language.queries.tolist() == [0, 1, 2, 3]


def test_evaluation_encodes_no_words(full_cfg, monkeypatch):
    """Defect 25: thousands of prompts were encoded in the constructor."""
    full_cfg.MODEL.PROMPTS.INIT = "random"
    monkeypatch.setattr("tdos_d2.modeling.text.prompts.load_groups", lambda *_: pytest.fail("read"))
    model = build_model(full_cfg).eval()
    with torch.no_grad():
        model([sample()])


def test_vision_loss_by_hand(full_cfg):
    backbone = build_model(full_cfg).backbone
    loss = VisionLoss(backbone, mse_weight=10.0, cosine_weight=2.0)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        g0 = backbone.eval()(images)["embedding"]
        g = g0 + torch.randn_like(g0)
    cosines = (g * g0).sum(1) / (g.norm(dim=1) * g0.norm(dim=1))
    expected = 10 * (g - g0).square().mean() + 2 * (1 - cosines).mean()
    torch.testing.assert_close(loss(images, None, g), expected)
    torch.testing.assert_close(loss(images, None, g0), torch.tensor(0.0), atol=1e-5, rtol=0)


def use_resnet(cfg, freeze_norm: bool) -> None:
    """A ResNet whose BatchNorm statistics are not those of any batch, from a file."""
    torch.manual_seed(0)
    clip, _ = build_clip("tiny-rn", "")
    for key, value in clip.state_dict().items():
        if "running_" in key:
            value.copy_(1 + torch.rand_like(value))
    path = f"{cfg.MODEL.CLIP.WEIGHTS}.rn"
    torch.save(clip.state_dict(), path)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.NAME = "CLIPModifiedResNet", "tiny-rn"
    cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_NORM = path, freeze_norm


@pytest.mark.parametrize("encoder", ["ViT", "frozen BatchNorm", "trained BatchNorm"])
def test_vision_reference_is_the_encoder_as_loaded_for_ever(full_cfg, encoder):
    """Defects 7 and 14: from 0 on the term has a gradient, its reference never changes nor trains.

    Both encoders see the same images, perturbed in the same regions: only weights tell them apart.
    """
    if encoder != "ViT":
        use_resnet(full_cfg, encoder == "frozen BatchNorm")
    full_cfg.SOLVER.BASE_LR = 0.01
    model = build_model(full_cfg).train()
    reference = model.regularization.vision.reference
    before = copy.deepcopy(reference.state_dict())
    trained_norms = encoder == "trained BatchNorm"
    assert any(module.training for module in reference.modules()) == trained_norms
    norms = {k: v.clone() for k, v in model.backbone.state_dict().items() if ".bn" in k}
    assert bool(norms) == (encoder != "ViT")
    optimizer = build_optimizer(full_cfg, model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in reference.parameters()}
    assert not [key for key in model.state_dict() if "hidden" in key or "reference" in key]
    for step in range(2):  # the first step has nothing to correct yet
        losses = model([sample(), sample(seed=1)])
        assert (losses["loss_vision"] > 1e-4) == (step == 1)
        optimizer.zero_grad()
        losses["loss_vision"].backward(retain_graph=True)
        gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
        moved = any(gradient.any() for gradient in gradients)
        sum(losses.values()).backward()
        optimizer.step()
    assert moved
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], norms[key]) != trained_norms for key in norms)
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())
    assert model.double() and next(reference.parameters()).dtype == torch.float64
    assert copy.deepcopy(model).regularization.vision.reference is not reference


@pytest.mark.parametrize(
    ("frozen", "weights", "exists"),
    [(True, True, False), (False, True, True), (False, False, False)],
)
def test_vision_term_exists_where_loaded_weights_are_trained(
    full_cfg, frozen, weights, exists, caplog
):
    full_cfg.MODEL.CLIP.FREEZE_IMAGE = frozen
    if not weights:
        full_cfg.MODEL.CLIP.WEIGHTS = ""
    with caplog.at_level("INFO", logger="tdos_d2"):
        model = build_model(full_cfg)
    assert ("loss_vision" in model([sample()])) == exists
    assert ("no vision regularizer" in caplog.text) == (not weights)
    assert ("no language meaning" in caplog.text) == (not weights)


def test_one_step_with_everything_on(full_cfg):
    torch.manual_seed(0)
    model = build_model(full_cfg).train()
    losses = model([sample(), sample(72, 80, seed=1)])
    assert set(losses) == {
        *("loss_class", "loss_mask", "loss_dice", "loss_score_map"),
        *("loss_language", "loss_vision"),
    }
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_weights_of_zero_switch_terms_off(full_cfg, monkeypatch):
    reg = full_cfg.MODEL.REG
    reg.LANGUAGE_WEIGHT = reg.VISION_MSE_WEIGHT = reg.VISION_COSINE_WEIGHT = 0.0
    full_cfg.MODEL.TDOS.SCORE_MAP_WEIGHT = 0.0
    model = build_model(full_cfg).train()
    monkeypatch.setattr(model.criterion, "_score_map_loss", lambda *_: pytest.fail("computed"))
    losses = model([sample()])
    assert set(losses) == {"loss_class", "loss_mask", "loss_dice"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_negatives_start_from_their_group(clip_file):
    """A negative spells the words of its group: its embedding is that of the text."""
    clip, _ = build_clip("tiny", clip_file)
    groups = [["sofa", "tent"], ["piano", "banana"]]
    length = sum(len(tokenize(word)) for word in groups[0])
    assert length == sum(len(tokenize(word)) for word in groups[1])
    text = PromptedText(
        TextTower(clip),
        ["road", "ood"],
        context_length=0,
        num_negative=2,
        negative_length=length,
        negative_words=groups,
    )
    with torch.no_grad():
        expected = clip.encode_text(open_clip.tokenize([" ".join(words) for words in groups]))
        torch.testing.assert_close(text()[2:], expected, atol=1e-5, rtol=1e-5)


def test_tokens_of_a_group_are_whole_words_from_all_of_it():
    words = ["sofa", "tent", "banana", "piano", "car", "road"]
    first = [tokenize(word)[0] for word in words]
    assert all(len(tokenize(word)) == 1 for word in words)
    assert words_to_tokens(words, 3) == [first[0], first[2], first[4]]
    assert words_to_tokens(words[:2], 5) == [*first[:2], *first[:2], first[0]]
    long = tokenize("hippopotamus")
    assert len(long) > 1
    assert words_to_tokens(["hippopotamus"], 1) == long[:1]


def test_fixed_text_takes_prototypes_from_its_file(tiny_cfg, tmp_path, caplog):
    rng = np.random.default_rng(0)
    names = ["road", "car", "sofa", "Tent", "piano"]
    vectors = (3 * rng.normal(size=(5, 8))).astype(np.float32)
    path = tmp_path / "text.npz"
    np.savez(path, names=np.array(names), embeddings=vectors)
    words = ("sofa", "tent", "unknown", "unknown", "piano")  # in groups of 3, 1 and 1
    groups = WordGroups((), words, (0.0,) * 5, ((0, 3), (3, 4), (4, 5)), "", {}, "")
    groups.save(tmp_path / "words.json")
    tiny_cfg.MODEL.PROMPTS.GROUPS = str(tmp_path / "words.json")
    tiny_cfg.MODEL.TEXT.EMBEDDINGS, tiny_cfg.MODEL.TDOS.NUM_NEGATIVE = str(path), 3
    tiny_cfg.MODEL.PROMPTS.INIT = "group"
    with caplog.at_level("INFO", logger="tdos_d2"):
        text = FixedText(tiny_cfg, ["road", "car", "ood"])
    assert "1 of 3 groups" in caplog.text
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = (unit[2] + unit[3]) / 2
    expected = np.stack([unit[0], unit[1], mean / np.linalg.norm(mean), unit[4]])
    references, queries = text.references()
    np.testing.assert_allclose(references, expected, atol=1e-6)
    assert queries.tolist() == [0, 1, 3, 5], "the OOD word (2) and the group without words (4)"
    start = F.normalize(text().detach(), dim=1)
    np.testing.assert_allclose(start[[0, 1, 3, 5]], expected, atol=1e-6)
    tiny_cfg.MODEL.PROMPTS.INIT = "random"
    random = FixedText(tiny_cfg, ["road", "car", "ood"])
    assert random.references()[1].tolist() == [0, 1, 3, 5]
    assert (F.normalize(random().detach(), dim=1)[5] - references[3]).norm() > 0.1


def test_heads_only_trains_heads_and_prompts(full_cfg):
    """Defect 15: what is frozen stays so under train(), with its statistics."""
    full_cfg.MODEL.TDOS.HEADS_ONLY = True
    full_cfg.MODEL.NECK.NORM = "BN"
    full_cfg.SOLVER.WEIGHT_DECAY = 0.1
    model = build_model(full_cfg)
    before = copy.deepcopy(model.state_dict())
    assert model.regularization.vision is None, "there is nothing to hold"
    modes = {name: part.training for name, part in model.train().named_children()}
    assert not modes["backbone"] and not modes["neck"] and not modes["context_decoder"]
    optimizer = build_optimizer(full_cfg, model)
    losses = model([sample(), sample(seed=1)])
    sum(losses.values()).backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    expected = {
        *("text.context", "text.negatives", "pixel_decoder.text_position.weight"),
        "transformer_decoder.query_position.weight",
    }
    heads = {k for k in before if k.startswith("transformer_decoder.") and "_head." in k}
    assert changed == expected | heads and heads
