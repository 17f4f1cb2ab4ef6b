"""Packed checkpoints: small, and as good as what they were made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors.torch import load_file

from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.loading.checkpoint import TDOSCheckpointer, read_checkpoint_info
from tdos_d2.loading.packing import pack


@pytest.fixture
def frozen_cfg(tiny_cfg, tmp_path):
    """TDOS with a memory on an encoder whose weights are in a file, and a trained checkpoint."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    torch.save(network.state_dict(), tmp_path / "encoder.pth")
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    tiny_cfg.MODEL.TIMM.WEIGHTS = str(tmp_path / "encoder.pth")
    tiny_cfg.MODEL.PIXEL_MEAN = tiny_cfg.MODEL.PIXEL_STD = [127.5] * 3
    tiny_cfg.INPUT.FORMAT, tiny_cfg.MODEL.MEMORY.SIZE = "RGB", 30
    tiny_cfg.MODEL.TDOS.SCORE, tiny_cfg.MODEL.TDOS.EXTRA_SCORES = "combined", ["memory"]
    torch.manual_seed(1)
    model = build_model(tiny_cfg)
    model.fit_memory(list(torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)))
    TDOSCheckpointer(model, str(tmp_path), run_info={"seed": 7}).save("trained")
    pack(model, tmp_path / "packed.safetensors", {"seed": 7})
    return tiny_cfg


def predictor(cfg, weights) -> OODPredictor:
    cfg.MODEL.WEIGHTS, cfg.INPUT.MIN_SIZE_TEST = str(weights), 0  # 0: images stay as they are
    return OODPredictor(cfg)


def test_predictions_are_those_of_the_checkpoint(frozen_cfg, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    torch.manual_seed(2)  # what the files lack would be random, and different, in the two
    whole = predictor(frozen_cfg, tmp_path / "trained.pth")(image)
    torch.manual_seed(3)
    packed = predictor(frozen_cfg, tmp_path / "packed.safetensors")(image)
    np.testing.assert_allclose(packed["sem_seg"], whole["sem_seg"], atol=5e-3)
    np.testing.assert_allclose(packed["ood_score"], whole["ood_score"], atol=5e-2)


def test_other_ways_of_loading_leave_nothing_at_its_start_value(frozen_cfg, tmp_path):
    """Detectron2's checkpointer, and plain load_state_dict."""
    frozen_cfg.MODEL.TDOS.SCORE, frozen_cfg.MODEL.TDOS.EXTRA_SCORES = "log_s_ood", []
    path = str(tmp_path / "packed.safetensors")
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    scores = []
    for seed, load in enumerate((
        lambda model: TDOSCheckpointer(model).load(path),
        lambda model: DetectionCheckpointer(model).load(path),
        lambda model: model.load_state_dict(load_file(path), strict=False),
    )):  # fmt: skip
        torch.manual_seed(seed)
        model = build_model(frozen_cfg).eval()
        load(model)
        with torch.no_grad():
            scores.append(model([{"image": image}])[0]["ood_score"])
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])


def test_encoder_and_text_encoder_are_not_in_it(frozen_cfg, tmp_path):
    small, large = (tmp_path / n for n in ("packed.safetensors", "trained.pth"))
    assert small.stat().st_size < large.stat().st_size / 4
    info = read_checkpoint_info(small)
    assert info["seed"] == 7 and info["class_names"] == ["road", "traffic sign", "car"]
    own = predictor(frozen_cfg, small)
    assert not own.words_have_meaning
    with pytest.raises(UserError, match="packed checkpoint holds no text encoder"):
        own.embed_words(["deer"])


def test_another_encoder_is_an_error(frozen_cfg, tmp_path):
    import timm

    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(UserError, match="packed.safetensors holds no image encoder.*MODEL.TIMM"):
        predictor(frozen_cfg, tmp_path / "packed.safetensors")


def test_a_frozen_encoder_of_clip(tiny_cfg, clip_file, tmp_path):
    """It is not in the file: the same weights give the same scores, others are refused."""
    tiny_cfg.MODEL.CLIP.WEIGHTS, tiny_cfg.MODEL.CLIP.FREEZE_IMAGE = clip_file, True
    tiny_cfg.INPUT.FORMAT = "RGB"
    torch.manual_seed(1)
    model = build_model(tiny_cfg).eval()
    TDOSCheckpointer(model, str(tmp_path)).save("trained")
    packed = tmp_path / "packed.safetensors"
    pack(model, packed, {})
    assert not [key for key in load_file(packed) if key.startswith("backbone.")]
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    torch.manual_seed(2)
    whole = predictor(tiny_cfg, tmp_path / "trained.pth")(image)["ood_score"]
    torch.manual_seed(3)
    found = predictor(tiny_cfg, packed)(image)["ood_score"]
    np.testing.assert_allclose(found, whole, atol=5e-2)
    assert whole.std() > 0
    state = torch.load(clip_file, weights_only=True)
    key = "visual.ln_post.weight"
    torch.save(state | {key: state[key] + 1e-3}, clip_file)
    with pytest.raises(UserError, match="packed.safetensors holds no image encoder.*MODEL.CLIP"):
        predictor(tiny_cfg, packed)


def test_a_trained_encoder_is_packed(tiny_cfg, tmp_path):
    torch.manual_seed(0)
    pack(build_model(tiny_cfg).eval(), tmp_path / "packed.safetensors", {})
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    scores = [predictor(tiny_cfg, tmp_path / "packed.safetensors")(image) for _ in range(2)]
    np.testing.assert_array_equal(scores[0]["ood_score"], scores[1]["ood_score"])


def test_what_half_precision_cannot_hold(tiny_cfg, tmp_path):
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        model.pixel_decoder.mask_features.weight[0] = 1e6
    with pytest.raises(UserError, match=r"mask_features\.weight.*half precision"):
        pack(model, tmp_path / "packed.safetensors", {})
    assert not (tmp_path / "packed.safetensors").exists()
