"""Semantic augmentation: what is chosen, and that it changes that and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling import build_model

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import ViTTower, build_clip
from tdos_d2.modeling.semantic_augmentation import (
    QueryNoise,
    SemanticAugmentation,
    StyleMixing,
    coverage,
)

K = 3


def labels(batch: int = 64, height: int = 40, width: int = 60) -> torch.Tensor:
    """Known classes, an OOD square and a void border."""
    values = torch.randint(0, K, (batch, height, width), generator=torch.Generator().manual_seed(0))
    values[:, 10:20, 10:20] = K
    values[:, :, -20:] = 255
    return values


@pytest.fixture
def seed():
    torch.manual_seed(0)


def test_labelled_region_is_what_is_labelled_ood(seed):
    given = labels()
    new, region = SemanticAugmentation(K, region="labelled", prob=0.5)(given)
    assert torch.equal(new, given)
    chosen = region.flatten(1).any(1)
    assert 16 < chosen.sum() < 48, "a draw per sample, not per batch"
    assert torch.equal(region[chosen].bool(), (given == K)[chosen])
    assert region.dtype == torch.float32 and region.shape == given.shape


def test_random_regions_are_known_pixels_that_become_ood(seed):
    given = labels()
    new, region = SemanticAugmentation(K, region="random", prob=0.5)(given)
    picked = region.bool()
    assert (given[picked] < K).all(), "neither void nor what is OOD already"
    assert (new[picked] == K).all()
    assert torch.equal(new[~picked], given[~picked])
    chosen = picked.flatten(1).any(1)
    assert 16 < chosen.sum() < 48
    centres = [picked[i].nonzero().float().mean(0) for i in chosen.nonzero()[:, 0]]
    assert torch.pdist(torch.stack(centres)).min() > 0, "each sample has regions of its own"


def test_both(seed):
    given = labels()
    new, region = SemanticAugmentation(K, region="both", prob=1.0)(given)
    assert torch.equal(region.bool(), new == K)
    assert ((new == K) & (given != K)).any() and region[:, 10:20, 10:20].all()
    assert (new[given == 255] == 255).all()


@pytest.mark.parametrize("shape", [(100, 100), (60, 200)])
def test_ellipses_have_the_size_asked_for(seed, shape):
    """One ellipse of diameter d has an area of pi / 4 d * b with b between d / 2 and d."""
    given = torch.zeros(200, *shape, dtype=torch.long)
    augmentation = SemanticAugmentation(
        K, region="random", prob=1.0, num_ellipses=(1, 1), size=(0.4, 0.4)
    )
    _, region = augmentation(given)
    d = 0.4 * min(shape)
    areas = region.flatten(1).sum(1)
    assert areas.max() <= math.pi / 4 * d * d * 1.05
    assert areas.median() > math.pi / 4 * d * d * 0.5
    widths, heights = region.any(1).sum(1), region.any(2).sum(1)
    assert max(widths.max(), heights.max()) <= d + 1
    assert 0.8 < widths.float().mean() / heights.float().mean() < 1.25, "in any direction"


def test_segments_end_where_the_class_of_their_centre_does(seed):
    given = torch.arange(60).div(20, rounding_mode="floor").expand(64, 40, 60)  # three strips
    given = given.clone()
    whole, parts = (
        SemanticAugmentation(
            K, region="random", prob=1.0, num_ellipses=(1, 1), size=(0.6, 0.6), shape=shape
        )
        for shape in ("ellipse", "segment")
    )
    torch.manual_seed(1)
    _, ellipse = whole(given)
    torch.manual_seed(1)
    _, segment = parts(given)
    assert (segment <= ellipse).all() and (segment < ellipse).any()
    several = 0
    for label, region, full in zip(given, segment.bool(), ellipse.bool(), strict=True):
        classes = label[region].unique()
        assert len(classes) == 1
        assert torch.equal(region, full & (label == classes)), "all that it has of this class"
        several += len(label[full].unique()) > 1
    assert several > 16


def test_never_and_nothing(seed):
    given = labels()
    for region in ("labelled", "random", "both"):
        new, where = SemanticAugmentation(K, region=region, prob=0.0)(given)
        assert torch.equal(new, given) and not where.any()
    void = torch.full((4, 20, 30), 255)
    new, where = SemanticAugmentation(K, region="both", prob=1.0)(void)
    assert torch.equal(new, void) and not where.any()


def test_unknown_region():
    with pytest.raises(UserError, match="somewhere"):
        SemanticAugmentation(K, region="somewhere")
    with pytest.raises(UserError, match="SEM_AUG.SHAPE: 'square'"):
        SemanticAugmentation(K, shape="square")


def tower(noise: QueryNoise | None = None) -> ViTTower:
    torch.manual_seed(1)
    clip, _ = build_clip("tiny", "")
    return ViTTower(clip.visual, [1, 2, 3, 4], noise).eval()


@torch.no_grad()
def test_last_block_changes_chosen_tokens_and_only_them(seed):
    """Defects 5 and 12: the region's tokens change, on a grid that is not square."""
    images = torch.randn(2, 3, 32, 64)  # 4 x 8 tokens
    region = torch.zeros(2, 32, 64)
    region[0, 8:16, 24:40] = 1  # second row, columns 3 and 4 of the first image
    encoder = tower(QueryNoise(blocks=[-1], scale=1.0))
    clean, noisy = encoder(images), encoder(images, region)
    changed = (clean.dense != noisy.dense).any(1)
    expected = torch.zeros(2, 4, 8, dtype=torch.bool)
    expected[0, 1, 3:5] = True
    assert torch.equal(changed, expected)
    assert torch.equal(clean.embedding, noisy.embedding), "the class token is never perturbed"
    for before, after in zip(clean.taps[:-1], noisy.taps[:-1], strict=True):
        assert torch.equal(before, after)
    relative = (noisy.taps[-1] - clean.taps[-1])[0, :, 1, 3:5].norm()
    assert relative > 1e-3 * clean.taps[-1][0, :, 1, 3:5].norm()


@torch.no_grad()
def test_earlier_blocks_on_request(seed):
    images, region = torch.randn(1, 3, 32, 32), torch.ones(1, 32, 32)
    encoder = tower(QueryNoise(blocks=[2, -1]))
    clean, noisy = encoder(images), encoder(images, region)
    same = [torch.equal(a, b) for a, b in zip(clean.taps, noisy.taps, strict=True)]
    assert same == [True, False, False, False]
    for blocks in ([0], [5], [-5]):
        with pytest.raises(UserError, match="no block"):
            tower(QueryNoise(blocks=blocks))


@torch.no_grad()
def test_without_noise_a_perturbed_block_is_open_clips(seed):
    images, region = torch.randn(2, 3, 32, 48), torch.ones(2, 32, 48)
    noiseless = tower(QueryNoise(blocks=[1, 2, 3, 4], scale=0.0))
    torch.testing.assert_close(noiseless(images, region).dense, tower()(images).dense)


def test_noise_is_in_the_query_and_mixes_by_coverage(seed):
    """c attn(noisy q, k, v) + (1 - c) attn(q, k, v), the noise from the token's statistics."""
    tokens = 3 + 2 * torch.randn(4, 1 + 6, 512)
    cover = torch.rand(4, 1, 2, 3)
    queries = []

    def attend(query, key, value):
        assert key is tokens and value is tokens, "keys and values are clean"
        queries.append(query)
        return 10 * query

    out = QueryNoise(scale=0.5)(tokens, cover, attend)
    clean, noisy = queries
    assert clean is tokens
    share = torch.cat([torch.zeros(4, 1), cover.flatten(1)], dim=1)[..., None]
    torch.testing.assert_close(out, 10 * (share * noisy + (1 - share) * clean))
    assert torch.equal(out[:, 0], 10 * tokens[:, 0])
    noise = noisy - tokens
    torch.testing.assert_close(noise.mean(-1), torch.full((4, 7), 0.5 * 3), atol=0.25, rtol=0)
    torch.testing.assert_close(noise.std(-1), torch.full((4, 7), 0.5 * 2), atol=0.15, rtol=0)
    assert (noise[0] - noise[1]).abs().mean() > 0.5, "each sample has noise of its own"


def test_coverage_is_the_share_of_a_cell():
    region = torch.zeros(1, 8, 12)
    region[0, :2, :3] = 1
    region[0, 4:, 4:] = 1
    expected = torch.tensor([[[[6 / 16, 0, 0], [0, 1, 1]]]])
    torch.testing.assert_close(coverage(region, (2, 3)), expected)


def test_style_mixing_by_hand(seed):
    """Defect 19: the region's own statistics, and alpha counts."""
    features = torch.randn(2, 5, 6, 9)
    region = torch.zeros(2, 24, 36)
    region[:, 4:16, 8:28] = 1  # whole cells: rows 1 to 3, columns 2 to 6
    features[:, :, 1:4, 2:7] = 4 * features[:, :, 1:4, 2:7] + 7
    out = StyleMixing(alpha=0.25)(features, region)
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[1:4, 2:7] = True
    for image, result in zip(features, out, strict=True):
        for channel, mixed in zip(image, result, strict=True):
            own, rest = channel[mask], channel[~mask]
            deviation = own.std(correction=0)
            styled = (own - own.mean()) / deviation * rest.std(correction=0) + rest.mean()
            expected = 0.75 * own + 0.25 * styled
            torch.testing.assert_close(mixed[mask], expected, atol=1e-4, rtol=1e-4)
            assert torch.equal(mixed[~mask], rest)


def test_random_styles_spread_by_the_noise_asked_for(seed):
    """Means are drawn around that of the rest, deviations as a factor with a log-normal spread."""
    features = torch.randn(400, 3, 6, 9)
    region = torch.zeros(400, 6, 9)
    region[:, :3] = 1
    out = StyleMixing(alpha=1.0, noise=0.5)(features, region)
    assert torch.equal(out[:, :, 3:], features[:, :, 3:])
    styled, rest = out[:, :, :3].flatten(2), features[:, :, 3:].flatten(2)
    shift = (styled.mean(-1) - rest.mean(-1)) / rest.std(-1, correction=0)
    factor = (styled.std(-1, correction=0) / rest.std(-1, correction=0)).log()
    for values in (shift, factor):  # 1,200 draws each
        assert abs(values.mean()) < 0.06
        assert values.std() == pytest.approx(0.5, abs=0.05)
    assert torch.corrcoef(torch.stack([shift.flatten(), factor.flatten()]))[0, 1].abs() < 0.1
    plain = StyleMixing(alpha=1.0)
    torch.manual_seed(2)
    before = plain(features, region), torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(1), before[1]), "without noise nothing is drawn"


def test_style_mixing_leaves_what_has_no_rest(seed):
    features = torch.randn(3, 5, 6, 9)
    region = torch.stack([torch.zeros(6, 9), torch.ones(6, 9), torch.zeros(6, 9)])
    region[2, 0, 0] = 1
    out = StyleMixing(alpha=1.0)(features, region)
    assert torch.equal(out[:2], features[:2])
    assert out.isfinite().all() and not torch.equal(out[2], features[2])
    assert torch.equal(StyleMixing(alpha=0.0)(features, region), features)


def sample(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (64, 96), generator=generator)
    return {"image": torch.randint(0, 256, (3, 64, 96), generator=generator), "sem_seg": target}


@pytest.mark.parametrize("region", ["labelled", "random", "both"])
def test_training_only(tiny_cfg, region):
    cfg = tiny_cfg
    cfg.MODEL.SEM_AUG.ENABLED, cfg.MODEL.SEM_AUG.PROB = True, 1.0
    cfg.MODEL.SEM_AUG.REGION = region
    torch.manual_seed(0)
    model = build_model(cfg)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args))
    losses = model([sample(), sample(1)])
    assert all(loss.isfinite() for loss in losses.values())
    assert seen[0][1].shape == (2, 64, 96) and seen[0][1].any()
    with torch.no_grad():
        model.eval()([sample()])
    assert len(seen[1]) == 1, "no region in evaluation"


def test_resnet_mixes_style_after_its_first_stage(tiny_cfg):
    cfg = tiny_cfg
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.NAME = "CLIPModifiedResNet", "tiny-rn"
    cfg.MODEL.SEM_AUG.ENABLED, cfg.MODEL.SEM_AUG.PROB = True, 1.0
    torch.manual_seed(0)
    model = build_model(cfg)
    assert all(loss.isfinite() for loss in model([sample(), sample(1)]).values())
    images, region = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96)
    region[0, 16:32, 24:48] = 1
    backbone = model.backbone.eval()
    with torch.no_grad():
        clean, mixed = backbone(images), backbone(images, region)
    torch.testing.assert_close(
        mixed["tap1"], StyleMixing(cfg.MODEL.SEM_AUG.ALPHA)(clean["tap1"], region)
    )
    changed = (mixed["tap1"] != clean["tap1"]).any(1)[0]
    assert changed[4:8, 6:12].all() and changed.sum() == 4 * 6
    assert not torch.equal(mixed["tap2"], clean["tap2"])


def test_no_module_where_it_is_off(tiny_cfg):
    model = build_model(tiny_cfg)
    assert model.semantic_augmentation is None and model.backbone.tower.noise is None
