"""TDOS and the memory of normality on encoders of timm, from config to scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.errors import UserError
from tdos_d2.loading.config_checks import check_model
from tdos_d2.loading.config_files import load_config, use_pixel_statistics

ENCODERS = ["tf_efficientnet_lite0", "vit_tiny_patch16_224"]


def sample(height: int, width: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        "sem_seg": torch.randint(0, 4, (height, width), generator=generator),
    }


@pytest.fixture(params=ENCODERS)
def timm_cfg(tiny_cfg, request):
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = request.param, ""
    tiny_cfg.MODEL.SEM_AUG.ENABLED, tiny_cfg.MODEL.SEM_AUG.PROB = True, 1.0
    return tiny_cfg


def test_it_trains_and_predicts_at_any_size(timm_cfg):
    torch.manual_seed(0)
    model = build_model(timm_cfg)
    sum(model([sample(64, 80), sample(50, 64)]).values()).backward()
    lacking = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    with torch.no_grad():
        (output,) = model.eval()([{**sample(70, 90), "height": 35, "width": 45}])
    assert output["sem_seg"].shape == (3, 35, 45) and output["ood_score"].isfinite().all()


@pytest.mark.parametrize("clip", [True, False])
def test_equal_widths_make_no_common_space(clip, tmp_path, tiny_cfg):
    """Text and image embeddings are comparable as they are only if CLIP's encoders made both."""
    if not clip:
        tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
        tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = "vit_tiny_patch16_224", ""
    with torch.device("meta"):
        tiny_cfg.MODEL.DEVICE = "meta"
        width = build_model(tiny_cfg).backbone.output_shape()["dense"].channels
    names = ["road", "traffic sign", "car"]
    np.savez(tmp_path / "text.npz", names=names, embeddings=np.eye(3, width, dtype=np.float32))
    tiny_cfg.MODEL.TEXT.EMBEDDINGS, tiny_cfg.MODEL.DEVICE = str(tmp_path / "text.npz"), "cpu"
    projection = build_model(tiny_cfg).image_projection
    assert isinstance(projection, torch.nn.Identity if clip else torch.nn.Linear)


def test_it_is_built_without_weights_on_the_meta_device(timm_cfg):
    timm_cfg.MODEL.TIMM.WEIGHTS = "nowhere.pth"
    timm_cfg.MODEL.PIXEL_MEAN = timm_cfg.MODEL.PIXEL_STD = [127.5] * 3
    timm_cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        assert next(build_model(timm_cfg).parameters()).is_meta


def test_pretrained_weights_know_one_order_of_channels(tiny_cfg):
    tiny_cfg.INPUT.FORMAT = "BGR"
    check_model(tiny_cfg.clone())  # random weights
    tiny_cfg.MODEL.CLIP.WEIGHTS = "openai"
    with pytest.raises(UserError, match="INPUT.FORMAT: BGR, but .*MODEL.CLIP.WEIGHTS .* RGB"):
        check_model(tiny_cfg)


def test_mean_and_deviation_come_from_the_weights(tiny_cfg):
    tiny_cfg.INPUT.FORMAT = "RGB"
    tiny_cfg.MODEL.PIXEL_MEAN = [122.7709, 116.7460, 104.0937]
    tiny_cfg.MODEL.PIXEL_STD = [68.5005, 66.6322, 70.3232]
    before = list(tiny_cfg.MODEL.PIXEL_MEAN)
    use_pixel_statistics(tiny_cfg)
    assert list(tiny_cfg.MODEL.PIXEL_MEAN) == before  # CLIP's encoder
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.TIMM.NAME = "TimmBackbone", "resnet18"
    tiny_cfg.MODEL.TIMM.WEIGHTS = "timm"
    use_pixel_statistics(tiny_cfg)
    mean = [123.675, 116.28, 103.53]
    assert list(tiny_cfg.MODEL.PIXEL_MEAN) == pytest.approx(mean)
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = "tf_efficientnet_lite2", "package"
    with pytest.raises(UserError, match=r"PIXEL_MEAN.*127\.0, 127\.0, 127\.0"):
        use_pixel_statistics(tiny_cfg)
    tiny_cfg.MODEL.TIMM.WEIGHTS = ""  # random weights were trained with none
    use_pixel_statistics(tiny_cfg)
    assert list(tiny_cfg.MODEL.PIXEL_MEAN) == mean


def test_models_of_a_script_use_the_statistics_of_the_weights():
    """With Detectron2's build_model, which completes no config."""
    cfg = load_config("configs/memory_lite2.yaml", ["MODEL.DEVICE", "cpu"])
    for _ in range(2):
        model = build_model(cfg)
        assert model.pixel_mean.unique().tolist() == [127.0]
        assert model.pixel_std.unique().tolist() == [128.0]
        use_pixel_statistics(cfg)
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    with pytest.raises(UserError, match=r"PIXEL_MEAN.*127\.0, 127\.0, 127\.0"):
        build_model(cfg)


@pytest.fixture
def memory_cfg(tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE = "NormalityMemory"
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = "tf_efficientnet_lite0", ""
    tiny_cfg.MODEL.MEMORY.SIZE = 50
    tiny_cfg.TEST.WINDOW.SIZE = 0
    return tiny_cfg


def normal_frames() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(100, 140, (3, 64, 96), dtype=torch.uint8) for _ in range(4)]


def test_memory_knows_what_it_was_fitted_with(memory_cfg):
    torch.manual_seed(0)
    memory_cfg.MODEL.MEMORY.SIZE, memory_cfg.MODEL.MEMORY.NEIGHBOURS = 1000, 1
    model = build_model(memory_cfg)
    frames = normal_frames()
    assert model.fit_memory(frames) == 4 * (64 // 16) * (96 // 16)
    (output,) = model([{"image": frames[0], "height": 32, "width": 48}])
    assert output["ood_score"].shape == (32, 48) and output["ood_score"].abs().max() < 1e-5
    odd = frames[0].clone()
    odd[:, 16:48, 32:64] = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    (output,) = model([{"image": odd}])
    inside = output["ood_score"][24:40, 40:56].mean()
    assert inside > output["ood_score"][:, :8].mean() > 1e-3  # deep features see far


def test_score_is_the_mean_cosine_to_the_nearest(memory_cfg):
    torch.manual_seed(0)
    model = build_model(memory_cfg)
    count = model.fit_memory(normal_frames(), seed=3)
    assert count == 50
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    features = model.backbone((image.float() - model.pixel_mean)[None] / model.pixel_std)
    means = model.memory.mean.split([112, 320])
    at = features["tap3"][0] - means[0][:, None, None]
    coarse = features["tap4"][0] - means[1][:, None, None]
    coarse = coarse / coarse.norm(dim=0)
    coarse = torch.nn.functional.interpolate(coarse[None], size=at.shape[1:], mode="bilinear")[0]
    at, coarse = at / at.norm(dim=0), coarse / coarse.norm(dim=0)
    bank = model.memory.vectors
    scores = model.memory(features)
    for y, x in ((0, 0), (2, 3), (3, 5)):
        vector = torch.cat([at[:, y, x], coarse[:, y, x]]) / 2**0.5
        nearest = sorted((float(vector @ row) for row in bank), reverse=True)[:3]
        assert float(scores[0, y, x]) == pytest.approx(1 - sum(nearest) / 3, abs=1e-5)


def test_fitting_is_repeatable_and_loads_again(memory_cfg):
    torch.manual_seed(0)
    model = build_model(memory_cfg)
    with pytest.raises(UserError, match="memory is empty"):
        model([{"image": normal_frames()[0]}])
    with pytest.raises(UserError, match="no normal frame"):
        model.fit_memory([])
    model.fit_memory(normal_frames(), seed=1)
    first = model.memory.vectors.clone()
    model.fit_memory(normal_frames(), seed=1)
    assert torch.equal(model.memory.vectors, first)
    model.fit_memory(normal_frames(), seed=2)
    assert not torch.equal(model.memory.vectors, first)
    other = build_model(memory_cfg)
    other.load_state_dict(model.state_dict())
    inputs = [{"image": normal_frames()[1]}]
    assert torch.equal(other(inputs)[0]["ood_score"], model(inputs)[0]["ood_score"])


@pytest.mark.parametrize(("height", "rows"), [(64, 4), (72, 4), (73, 5), (3, 1)])
def test_padding_is_not_remembered(memory_cfg, height, rows):
    """Cells of stride 16 whose centres are in the frame; it is padded to a multiple of 32."""
    torch.manual_seed(0)
    memory_cfg.MODEL.MEMORY.SIZE = 1000
    model = build_model(memory_cfg)
    frame = torch.randint(0, 256, (3, height, 96), dtype=torch.uint8)
    assert model.fit_memory([frame]) == rows * 96 // 16
    maps = model._encode(model._normalise(frame)[None])
    means = [maps["tap3"][..., :rows, :].mean((0, 2, 3)), model.memory.mean[112:]]
    torch.testing.assert_close(model.memory.mean, torch.cat(means))
    expected = model.memory.embed(maps)[0, :, :rows].flatten(1).T
    torch.testing.assert_close(model.memory.vectors, expected)


def test_a_memory_scores_alone_as_it_does_in_a_tdos(memory_cfg):
    """Also frames that are padded."""
    frames = [torch.randint(0, 256, (3, 72, 104), dtype=torch.uint8) for _ in range(2)]
    scores = []
    for name in ("NormalityMemory", "TDOS"):
        memory_cfg.MODEL.META_ARCHITECTURE, memory_cfg.MODEL.TDOS.SCORE = name, "memory"
        torch.manual_seed(0)
        model = build_model(memory_cfg).eval()
        model.backbone.load_state_dict(scores[0][1] if scores else model.backbone.state_dict())
        model.fit_memory(frames[:1])
        with torch.no_grad():
            score = model([{"image": frames[1]}])[0]["ood_score"]
        scores.append((score, model.backbone.state_dict()))
    torch.testing.assert_close(scores[0][0], scores[1][0])


@pytest.mark.parametrize("decode", ["window", "image"])
def test_frames_are_remembered_as_they_are_scored(memory_cfg, decode):
    """In windows: a frame that was remembered is at distance 0 of itself everywhere."""
    torch.manual_seed(0)
    memory_cfg.MODEL.MEMORY.SIZE, memory_cfg.MODEL.MEMORY.NEIGHBOURS = 1000, 1
    memory_cfg.TEST.WINDOW.SIZE, memory_cfg.TEST.WINDOW.STRIDE = 64, 32
    memory_cfg.TEST.WINDOW.DECODE = decode
    model = build_model(memory_cfg)
    frame = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    model.fit_memory([frame])
    assert model([{"image": frame}])[0]["ood_score"].abs().max() < 1e-5


def test_levels_that_the_encoder_does_not_have(memory_cfg):
    memory_cfg.MODEL.MEMORY.LEVELS = ["tap9"]
    with pytest.raises(UserError, match="MODEL.MEMORY.LEVELS.*tap1"):
        build_model(memory_cfg)


@pytest.fixture
def joined_cfg(timm_cfg):
    timm_cfg.MODEL.SEM_AUG.ENABLED = False
    timm_cfg.MODEL.MEMORY.SIZE = 50
    timm_cfg.MODEL.TDOS.SCORE = "combined"
    timm_cfg.MODEL.TDOS.EXTRA_SCORES = ["memory", "log_s_ood"]
    return timm_cfg


def test_memory_rides_in_tdos(joined_cfg):
    """Sum of both scores, each in units of its upper tail over the pixels of normal frames."""
    torch.manual_seed(0)
    model = build_model(joined_cfg)
    with pytest.raises(UserError, match="memory is empty"):
        model.eval()([{"image": normal_frames()[0]}])
    assert model.fit_memory(normal_frames(), seed=1) == min(50, len(model.memory.vectors))
    normal = [model([{"image": frame}])[0]["ood_scores"] for frame in normal_frames()]
    values = {n: torch.stack([x[n] for x in normal]).double() for n in ("memory", "log_s_ood")}
    (output,) = model([{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}])
    expected = 0.0
    for name, value in values.items():
        generator = torch.Generator().manual_seed(0)  # 4,096 of the 6,144 pixels of each frame
        drawn = [torch.randperm(6144, generator=generator)[:4096] for _ in value]
        value = torch.cat([x.flatten()[i] for x, i in zip(value, drawn, strict=True)])
        median, high = value.quantile(torch.tensor([0.5, 0.99]).double(), interpolation="nearest")
        expected += (output["ood_scores"][name].double() - median) / (high - median)
    torch.testing.assert_close(output["ood_score"].double(), expected, rtol=1e-3, atol=1e-3)


def test_memory_of_tdos_is_that_of_its_encoder(joined_cfg):
    torch.manual_seed(0)
    joined_cfg.TEST.WINDOW.SIZE = 0
    model = build_model(joined_cfg)
    model.fit_memory(normal_frames(), seed=1)
    joined_cfg.MODEL.META_ARCHITECTURE, joined_cfg.MODEL.TDOS.EXTRA_SCORES = "NormalityMemory", []
    alone = build_model(joined_cfg)
    alone.backbone.load_state_dict(model.backbone.state_dict())
    alone.fit_memory(normal_frames(), seed=1)
    torch.testing.assert_close(alone.memory.vectors, model.memory.vectors)
    inputs = [{"image": normal_frames()[1]}]
    scores = model(inputs)[0]["ood_scores"]
    torch.testing.assert_close(alone(inputs)[0]["ood_score"], scores["memory"], atol=1e-4, rtol=0)


def test_memory_needs_a_score_that_uses_it(timm_cfg):
    with pytest.raises(UserError, match="MODEL.TDOS.SCORE"):
        build_model(timm_cfg).fit_memory(normal_frames())


def test_memory_of_tdos_is_loaded_with_its_own_levels(joined_cfg, tmp_path):
    joined_cfg.MODEL.MEMORY.LEVELS = ["tap3", "tap4"]
    model = build_model(joined_cfg)
    model.fit_memory(normal_frames())
    TDOSCheckpointer(model, str(tmp_path)).save("fitted")
    joined_cfg.MODEL.WEIGHTS = str(tmp_path / "fitted.pth")
    check_model(joined_cfg.clone())
    joined_cfg.MODEL.MEMORY.LEVELS = ["tap4", "tap3"]
    with pytest.raises(UserError, match="fitted with .*tap3, tap4, but .*tap4, tap3"):
        check_model(joined_cfg.clone())
    joined_cfg.MODEL.TDOS.SCORE, joined_cfg.MODEL.TDOS.EXTRA_SCORES = "log_s_ood", []
    check_model(joined_cfg)  # the memory is not used
