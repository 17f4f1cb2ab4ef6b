"""The published configs at their own sizes: every parameter and its learning rate, by hand.

The models are built on the meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import tdos_d2
from tdos_d2.engine.optimizer import build_lr_scheduler, build_optimizer

NUM_KNOWN, NUM_NEGATIVE, C = 19, 50, 256
N = NUM_KNOWN + 1 + NUM_NEGATIVE
# Cityscapes' own 19 train ids; no data are needed to know them.
NAMES = [f"class {i}" for i in range(NUM_KNOWN)]


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(channels: int) -> int:
    return 2 * channels


def blocks(depth: int, width: int) -> tuple[int, int]:
    """CLIP's transformer blocks: attention, feed-forward of four times the width, two norms."""
    block = 4 * linear(width, width) + linear(width, 4 * width) + linear(4 * width, width)
    return depth * block, depth * 2 * norm(width)


def image_encoder_of_vit() -> tuple[int, int]:
    """(parameters that weight decay acts on, others): norms and embeddings do not decay."""
    weights, norms = blocks(12, 768)
    patches, projection = 768 * 3 * 16 * 16, 768 * 512
    return weights + patches + projection, norms + 2 * norm(768) + 768 + (1 + 14 * 14) * 768


def text_encoder(embed_dim: int) -> int:
    return 49408 * 512 + 77 * 512 + sum(blocks(12, 512)) + norm(512) + 512 * embed_dim


def decoders(embed_dim: int) -> dict[str, tuple[int, int]]:
    """(decaying, others) of each part that is trained whatever the encoder."""
    ffn = linear(C, 2048) + linear(2048, C)
    attention = 4 * linear(C, C)
    samples = 8 * 3 * 4  # heads, levels, points
    deformable = linear(C, 2 * samples) + linear(C, samples) + 2 * linear(C, C)
    # without biases in the projections of query, key and value
    context = 2 * (3 * C * C + linear(C, C)) + linear(C, 4 * C) + linear(4 * C, C)
    return {
        # 20 tokens of context, 20 of each negative
        "text": (0, 20 * 512 + NUM_NEGATIVE * 20 * 512),
        "context_decoder": (
            2 * linear(embed_dim, C) + 3 * context + linear(C, embed_dim),
            2 * norm(embed_dim) + norm(C) + 3 * 3 * norm(C) + norm(C) + embed_dim,  # last: gamma
        ),
        "pixel_decoder": (
            3 * linear(768, C) + 768 * C + 9 * C * C + linear(C, C)  # inputs, finest level
            + linear(embed_dim, C) + 6 * (deformable + attention + ffn),
            (3 + 1 + 1) * norm(C) + 3 * C + N * C + 6 * 3 * norm(C) + norm(C),
        ),
        "transformer_decoder": (
            linear(embed_dim, C) + linear(C, C) + 9 * (2 * attention + ffn)
            + linear(C, NUM_KNOWN + 2) + 3 * linear(C, C),
            N * C + 3 * C + 9 * 3 * norm(C) + norm(C),
        ),
    }  # fmt: skip


DECONVOLUTION = 768 * 768 * 2 * 2 + 768
SCALE_NECK = (3 * DECONVOLUTION, norm(768))
# laterals of the four stages, the last one joined by the score map, and their 3x3 convolutions
FPN_NECK = (
    sum(linear(c, 768) for c in (256, 512, 1024, 2048 + N)) + 4 * linear(9 * 768, 768),
    0,
)
CLIP_VIT, CLIP_RN50 = 149_620_737, 102_007_137  # what CLIP's model card and open_clip state
CASES = {
    "tdos_vitb.yaml": (512, SCALE_NECK, (0, 0)),
    "tdos_vitb_backbone_ft.yaml": (512, SCALE_NECK, image_encoder_of_vit()),
    "tdos_rn50.yaml": (1024, FPN_NECK, (0, 0)),
}


def published(name: str) -> CfgNode:
    cfg = get_cfg()
    tdos_d2.add_tdos_config(cfg)
    cfg.merge_from_file(tdos_d2.get_config_file(name))
    cfg.MODEL.CLIP.WEIGHTS = ""
    cfg.MODEL.TDOS.CLASS_NAMES = NAMES
    cfg.MODEL.DEVICE = "meta"
    return cfg


def test_clips_own_size():
    visual = sum(image_encoder_of_vit())
    assert visual + text_encoder(512) + 1 == CLIP_VIT  # 1: the temperature


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_learning_rates(name):
    embed_dim, neck, trained_encoder = CASES[name]
    cfg = published(name)
    with torch.device("meta"):
        model = build_model(cfg)
    if cfg.MODEL.CLIP.FREEZE_IMAGE:  # as it is where weights are loaded
        model.backbone.requires_grad_(False)
    parts = {**decoders(embed_dim), "neck": neck, "backbone": trained_encoder}
    counts = Counter()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[key.split(".")[0]] += parameter.numel()
    assert counts == Counter({part: sum(both) for part, both in parts.items() if sum(both)})
    clip = CLIP_VIT if "vit" in name else CLIP_RN50
    total = sum(p.numel() for p in model.parameters())
    assert total == clip - 1 + sum(sum(both) for k, both in parts.items() if k != "backbone")
    assert all(m.num_groups == 32 for m in model.modules() if isinstance(m, torch.nn.GroupNorm))

    optimizer = build_optimizer(cfg, model)
    found = {
        (group["lr"], group["weight_decay"]): sum(p.numel() for p in group["params"])
        for group in optimizer.param_groups
    }
    encoder = parts.pop("backbone")
    decaying, others = (sum(column) for column in zip(*parts.values(), strict=True))
    expected = {(1e-4, 1e-5): decaying, (1e-4, 0.0): others}
    if sum(encoder):  # a tenth of the learning rate
        expected |= {(1e-5, 1e-5): encoder[0], (1e-5, 0.0): encoder[1]}
    assert {(round(lr, 12), decay): n for (lr, decay), n in found.items()} == expected

    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = {}
    for iteration in (0, 10000, 20000):
        scheduler.last_epoch = iteration
        rates[iteration] = max(scheduler.get_lr())
    assert rates == pytest.approx({0: 1e-10, 10000: 1e-4 * 0.5**0.9, 20000: 1e-6})


@pytest.mark.parametrize("name", CASES)
def test_recipe(name):
    """The released code's numbers (method.md, sections a, b and e)."""
    recipe = {
        "MODEL.TDOS.NUM_NEGATIVE": NUM_NEGATIVE,
        "MODEL.TDOS.CONTEXT_LENGTH": 20,
        "MODEL.TDOS.NEGATIVE_LENGTH": 20,
        "MODEL.TDOS.MERGE": "max",
        "MODEL.TDOS.CLASS_MERGE": "mean",
        "MODEL.TDOS.CLASS_WEIGHT": 2.0,
        "MODEL.TDOS.MASK_WEIGHT": 5.0,
        "MODEL.TDOS.DICE_WEIGHT": 5.0,
        "MODEL.TDOS.SCORE_MAP_WEIGHT": 1.0,
        "MODEL.TDOS.SCORE_MAP_TEMPERATURE": 0.07,
        "MODEL.TDOS.OOD_WEIGHT": 1.0 if "rn50" in name else 10.0,
        "MODEL.TDOS.NO_OBJECT_WEIGHT": 0.1,
        "MODEL.TDOS.NUM_POINTS": 12544,
        "MODEL.TDOS.OVERSAMPLE_RATIO": 3.0,
        "MODEL.TDOS.IMPORTANCE_SAMPLE_RATIO": 0.75,
        "MODEL.REG.LANGUAGE_WEIGHT": 1.0,
        "MODEL.REG.VISION_MSE_WEIGHT": 10.0,
        "MODEL.REG.VISION_COSINE_WEIGHT": 2.0,
        "MODEL.CONTEXT_DECODER.DROPOUT": 0.1,
        "MODEL.CONTEXT_DECODER.NUM_HEADS": 4,
        "MODEL.PIXEL_DECODER.NUM_HEADS": 8,
        "MODEL.TRANSFORMER_DECODER.NUM_HEADS": 8,
        "MODEL.SEM_AUG.PROB": 0.5,
        "INPUT.FORMAT": "RGB",
        "INPUT.CROP.SIZE": [512, 512],
        "INPUT.SCALE_RANGE": (0.5, 2.0),
        "SOLVER.IMS_PER_BATCH": 32,
        "SOLVER.WARMUP_ITERS": 1500,
        "SOLVER.CLIP_GRADIENTS.ENABLED": False,
        "TEST.WINDOW.SIZE": 512,
        "TEST.WINDOW.STRIDE": 341,
    }
    cfg = published(name)
    assert {key: attrgetter(key)(cfg) for key in recipe} == recipe
    # CLIP's normalisation, of values in 0..1
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(cfg.MODEL.PIXEL_MEAN, 255 * np.array(mean), atol=1e-3)
    np.testing.assert_allclose(cfg.MODEL.PIXEL_STD, 255 * np.array(std), atol=1e-3)
