"""The meta-architecture: contracts, frozen parts, sizes, class counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from tdos_d2.errors import UserError
from tdos_d2.modeling import image_model


def sample(height: int, width: int, num_labels: int = 4, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        "sem_seg": torch.randint(0, num_labels, (height, width), generator=generator),
    }


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    return build_model(tiny_cfg)


def test_training_gives_losses_and_gradients_for_all_trainable(model):
    losses = model([sample(64, 96), sample(72, 80, seed=1)])  # non-square, not multiples, two sizes
    assert set(losses) == {"loss_class", "loss_mask", "loss_dice", "loss_score_map"}
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert any(n.startswith("backbone") for n, p in model.named_parameters() if p.requires_grad)


def test_a_step_lowers_the_loss(model):
    torch.manual_seed(0)
    batch = [sample(64, 64)]
    batch[0]["sem_seg"] = torch.zeros(64, 64, dtype=torch.long)
    batch[0]["sem_seg"][:, 32:] = 2
    batch[0]["image"][:, :, 32:] //= 8
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    totals = []
    for _ in range(10):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize("size", [(64, 96), (70, 50), (24, 200), (8, 8)])
def test_evaluation_output_at_original_size(model, size):
    model.eval()
    inputs = {"image": sample(*size)["image"], "height": 2 * size[0], "width": size[1] + 3}
    with torch.no_grad():
        output = model([inputs])[0]
    assert set(output) == {"sem_seg", "ood_score"}
    assert output["sem_seg"].shape == (3, 2 * size[0], size[1] + 3)
    assert output["ood_score"].shape == (2 * size[0], size[1] + 3)
    assert output["sem_seg"].dtype == output["ood_score"].dtype == torch.float32
    assert output["ood_score"].isfinite().all() and (output["sem_seg"] >= 0).all()


def test_windows_in_batches_or_one_by_one_are_the_same(tiny_cfg):
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    inputs = [sample(100, 130)]
    results = []
    with torch.no_grad():
        for batch in (1, 4):
            model.window["batch"] = batch
            results.append(model(inputs)[0])
    torch.testing.assert_close(results[0]["ood_score"], results[1]["ood_score"])
    torch.testing.assert_close(results[0]["sem_seg"], results[1]["sem_seg"])


def test_windows_are_encoded_and_the_image_decoded(tiny_cfg):
    """DECODE "image": one decoding, at full size, of maps that all windows make."""
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    tiny_cfg.TEST.WINDOW.DECODE = "image"
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    encoded, decoded = [], []
    model.backbone.register_forward_hook(lambda m, inputs, _: encoded.append(inputs[0].shape))
    model.pixel_decoder.register_forward_hook(
        lambda m, inputs, _: decoded.append(inputs[0][-1].shape)
    )
    with torch.no_grad():
        output = model([sample(100, 130)])[0]
        # An image of one window, or none: there is nothing to average.
        small = [sample(64, 64)]
        once = model(small)[0]["ood_score"]
        model.decode_once = False
        torch.testing.assert_close(once, model(small)[0]["ood_score"])
    d = model.size_divisibility
    rows, columns = -(-100 // d) * d, -(-130 // d) * d
    assert output["ood_score"].shape == (100, 130) and output["ood_score"].isfinite().all()
    assert sum(shape[0] for shape in encoded) > 4
    assert all(shape[-2:] == (64, 64) for shape in encoded)
    assert decoded[0][-2:] == (rows // d, columns // d) and len(decoded) == 3


def test_text_is_encoded_once_per_evaluation(tiny_cfg, monkeypatch):
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    model = build_model(tiny_cfg).eval()
    calls = []
    encode = model.text._encode
    monkeypatch.setattr(model.text, "_encode", lambda: calls.append(1) or encode())
    with torch.no_grad():
        for _ in range(2):
            model([sample(100, 130)])
    assert len(calls) == 1


def test_all_scores_come_from_one_forward_pass(tiny_cfg, monkeypatch):
    names = ["log_s_ood", "s_ood_softmax", "max_logit", "energy", "rba", "text_only"]
    tiny_cfg.MODEL.TDOS.EXTRA_SCORES = names
    model = build_model(tiny_cfg).eval()
    calls = []
    forward = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda *x: calls.append(1) or forward(*x))
    with torch.no_grad():
        output = model([sample(64, 96) | {"height": 50, "width": 70}])[0]
    assert len(calls) == 1
    assert list(output["ood_scores"]) == names
    assert all(score.shape == (50, 70) for score in output["ood_scores"].values())
    assert all(score.isfinite().all() for score in output["ood_scores"].values())
    assert torch.equal(output["ood_scores"]["log_s_ood"], output["ood_score"])
    known = output["sem_seg"].double()
    for name, expected in {
        "max_logit": 1 - known.amax(0),
        "energy": -known.exp().sum(0).log(),
        "rba": -known.tanh().sum(0),
    }.items():
        torch.testing.assert_close(output["ood_scores"][name].double(), expected, msg=name)


@pytest.mark.parametrize("rule", ["max", "mean", "score_weighted"])
def test_training_and_inference_merge_alike(tiny_cfg, monkeypatch, rule):
    """What the losses see of the last decoder output is what the scores are made of."""
    tiny_cfg.MODEL.TDOS.MERGE = rule
    tiny_cfg.MODEL.CONTEXT_DECODER.DROPOUT = 0.0
    model = build_model(tiny_cfg)
    seen = {}
    nothing = {"loss_class": torch.zeros(())}
    monkeypatch.setattr(
        model.criterion, "forward", lambda *x: seen.update(train=x[:3]) or nothing
    )
    maps = model.scores.window_maps
    monkeypatch.setattr(model.scores, "window_maps", lambda *x: seen.update(test=x[:3]) or maps(*x))
    batch = [sample(64, 64)]
    with torch.no_grad():
        model(batch)
        model.eval()(batch)
    (class_logits, mask_logits, score_map), test = seen["train"], seen["test"]
    assert mask_logits.shape[2] == test[1].shape[1] == 4  # K + 1
    for a, b in zip((class_logits[-1], mask_logits[-1], score_map), test, strict=True):
        torch.testing.assert_close(a, b)


def test_class_count_comes_from_the_names(tiny_cfg):
    tiny_cfg.MODEL.TDOS.CLASS_NAMES = ["a", "b", "c", "d", "e"]
    tiny_cfg.MODEL.TDOS.NUM_NEGATIVE = 0
    model = build_model(tiny_cfg)
    losses = model([sample(64, 64, num_labels=6)])
    assert all(v.isfinite() for v in losses.values())
    with torch.no_grad():
        assert model.eval()([sample(64, 64)])[0]["sem_seg"].shape[0] == 5
    assert model.checkpoint_info()["class_names"] == ["a", "b", "c", "d", "e"]


def test_no_class_names_at_all(tiny_cfg):
    tiny_cfg.MODEL.TDOS.CLASS_NAMES = []
    tiny_cfg.DATASETS.TRAIN = ()
    with pytest.raises(UserError, match="CLASS_NAMES"):
        build_model(tiny_cfg)


def test_loaded_encoder_is_frozen_and_keeps_its_state(frozen_cfg):
    """Defects 6 and 14: frozen parts keep weights and mode; the neck is trained."""
    model = build_model(frozen_cfg).train()
    assert not model.backbone.tower.training
    assert not any(p.requires_grad for p in model.backbone.parameters())
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    sum(model([sample(64, 64)]).values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.backbone.state_dict().items())
    neck = list(model.neck.parameters())
    assert neck and all(p.requires_grad and p.grad.abs().sum() > 0 for p in neck)


def test_loaded_encoder_can_be_trained_on_request(frozen_cfg):
    frozen_cfg.MODEL.CLIP.FREEZE_IMAGE = False
    model = build_model(frozen_cfg).train()
    assert model.backbone.tower.training
    sum(model([sample(64, 64)]).values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_fixed_text_of_another_width(tiny_cfg, tmp_path):
    import numpy as np

    path = tmp_path / "text.npz"
    names = ["road", "traffic sign", "car"]
    np.savez(path, names=np.array(names), embeddings=np.random.randn(3, 20).astype(np.float32))
    tiny_cfg.MODEL.TEXT.EMBEDDINGS = str(path)
    model = build_model(tiny_cfg)
    sum(model([sample(64, 64)]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MERGE", "median"), ("CLASS_MERGE", "best"), ("SCORE", "odd"), ("EXTRA_SCORES", ["odd"])],
)
def test_unknown_rules_and_scores(tiny_cfg, key, value):
    setattr(tiny_cfg.MODEL.TDOS, key, value)
    with pytest.raises(UserError, match=f"{key}.*'{value if key != 'EXTRA_SCORES' else 'odd'}'"):
        build_model(tiny_cfg)


def test_what_the_losses_are_made_of(tiny_cfg):
    """Normalised images, zero and void where padded, all outputs of the decoder, and cosines."""
    tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    model = build_model(tiny_cfg)
    seen = {}
    for name in ("backbone", "context_decoder", "criterion"):
        getattr(model, name).register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given, out)})
        )

    def by_hand(image):
        r, g, b = image.float()
        return torch.stack([(r - 10) / 2, (g - 20) / 4, (b - 30) / 5])

    batch = [sample(40, 64), sample(64, 50, seed=1)]
    model(batch)
    (images, *_), features = seen["backbone"]
    *outputs, cosines, labels = seen["criterion"][0]
    for image, label, given in zip(images, labels, batch, strict=True):
        height, width = given["sem_seg"].shape
        padded = (0, 64 - width, 0, 64 - height)
        torch.testing.assert_close(image, F.pad(by_hand(given["image"]), padded))
        assert torch.equal(label[:height, :width], given["sem_seg"])
        assert (label[height:] == 255).all() and (label[:, width:] == 255).all()
    assert [len(x) for x in outputs] == [3, 3]  # before, and after each of the two layers
    assert not torch.allclose(outputs[1][0], outputs[1][1])
    text, dense = seen["context_decoder"][1], features["dense"]
    expected = F.cosine_similarity(text[:, :3, :, None, None], dense[:, None], dim=2)
    torch.testing.assert_close(cosines[:, :3], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.eval()([batch[0]])
    images = seen["backbone"][0][0]
    torch.testing.assert_close(images[0, :, :40], by_hand(batch[0]["image"]))


@pytest.mark.parametrize("merge", ["max", "score_weighted"])
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_scores_are_in_full_precision_under_autocast(tiny_cfg, training, merge):
    """bfloat16 has 8 bits: numbers of that precision would be the same in most places."""
    tiny_cfg.MODEL.TDOS.MERGE = merge
    model = build_model(tiny_cfg).train(training)
    seen = []
    user, name = (model.criterion, "forward") if training else (model.scores, "window_maps")
    follow = getattr(user, name)
    setattr(user, name, lambda *outputs: seen.extend(outputs[:3]) or follow(*outputs))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        results = model([sample(96, 128)])
    for values in seen:
        assert values.dtype == torch.float32
    for maps in seen[1:]:
        ties = maps[0].detach() == maps[0].detach().bfloat16()
        assert ties.float().mean() < 0.05
    results = results if training else results[0]
    assert all(value.dtype == torch.float32 for value in results.values())


def test_embeddings_of_regions_are_in_full_precision_under_autocast(model):
    model.eval()
    images, regions = torch.randint(0, 256, (1, 3, 64, 96)), torch.ones(1, 64, 96)
    dense = {}
    follow = model.image_projection.forward
    model.image_projection.forward = lambda x: dense.setdefault("x", follow(x))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        given = model.embed(images, regions)
    expected = F.normalize(dense["x"].float(), dim=-1).mean(1)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["TDOS", "NormalityMemory"])
@pytest.mark.parametrize("on", [True, False])
def test_tf32(tiny_cfg, monkeypatch, on, architecture):
    tiny_cfg.MODEL.META_ARCHITECTURE = architecture
    tiny_cfg.MODEL.MEMORY.LEVELS = ["tap3"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    lines = []
    monkeypatch.setattr(image_model.logger, "info", lambda text, *_: lines.append(text))
    tiny_cfg.MODEL.TF32 = on
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        build_model(tiny_cfg)
        assert [switch.allow_tf32 for switch in switches] == [on, on]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
    assert len([line for line in lines if "TF32" in line]) == 1


def test_half_precision_ties_no_scores(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model.eval()([sample(64, 96)])[0]
    for maps in output.values():
        coarse = maps == maps.bfloat16().float()
        assert maps.dtype == torch.float32 and coarse.float().mean() < 0.1
