"""Test-time augmentation: which versions the model sees, and what becomes of its outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from torch import nn

from tdos_d2.modeling.test_time_augmentation import SemanticSegmentorWithTTA

IMAGE = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.manual_seed(0))


class Pixelwise(nn.Module):
    """A model without context, whose scores also grow with the column that it sees."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.seen = slope, []

    def forward(self, inputs):
        assert not self.training
        self.seen += [tuple(x["image"].shape[1:]) for x in inputs]
        return [self.one(x) for x in inputs]

    def one(self, x):
        image = x["image"].float()
        ramp = self.slope * torch.arange(image.shape[2], dtype=torch.float)
        size = (x["height"], x["width"])
        maps = F.interpolate((image + ramp)[None], size, mode="bilinear")[0]
        return {"sem_seg": maps, "ood_score": maps[0], "ood_scores": {"other": -maps[1]}, "x": 1}


def run(slope, inputs=None, **kwargs):
    model = Pixelwise(slope)
    wrapped = SemanticSegmentorWithTTA(model=model, **kwargs).eval()
    (output,) = wrapped([{"image": IMAGE, "height": 20, "width": 30, **(inputs or {})}])
    return model.seen, output


def test_flip_is_turned_back_and_averaged():
    seen, output = run(1.0, flip=True)
    assert seen == [(20, 30)] * 2 and set(output) == {"sem_seg", "ood_score", "ood_scores"}
    # The ramp 0 ... 29 and its mirror image have the mean 14.5 everywhere.
    expected = IMAGE.float() + 14.5
    torch.testing.assert_close(output["sem_seg"], expected)
    torch.testing.assert_close(output["ood_score"], expected[0])
    torch.testing.assert_close(output["ood_scores"]["other"], -expected[1])


def test_without_flip_and_sizes_it_is_the_model():
    seen, output = run(1.0, flip=False)
    assert seen == [(20, 30)]
    torch.testing.assert_close(output["ood_score"], IMAGE[0] + torch.arange(30.0))


def test_sizes_are_shorter_sides_with_a_longest_one():
    seen, output = run(0.0, {"height": 40, "width": 60}, min_sizes=(10, 40), max_size=45, flip=True)
    assert seen == [(10, 15)] * 2 + [(30, 45)] * 2
    assert output["sem_seg"].shape == (3, 40, 60)
    assert output["sem_seg"].min() >= 0 and output["sem_seg"].max() <= 255


def test_flat_image_stays_what_it_is_at_all_sizes():
    flat = {"image": torch.full((3, 20, 30), 77, dtype=torch.uint8)}
    _, output = run(0.0, flat, min_sizes=(7, 20, 41), max_size=100, flip=True)
    torch.testing.assert_close(output["ood_score"], torch.full((20, 30), 77.0))


def test_from_config():
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (10, 20), False
    wrapped = SemanticSegmentorWithTTA(cfg, Pixelwise(0.0)).eval()
    wrapped([{"image": IMAGE}])
    assert wrapped.model.seen == [(10, 15), (20, 30)]


def test_tdos_of_a_mirrored_image_is_the_mirrored_tdos(tiny_cfg):
    """With both versions averaged, mirroring the input mirrors the output."""
    from detectron2.modeling import build_model

    tiny_cfg.TEST.WINDOW.SIZE = 0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    wrapped = SemanticSegmentorWithTTA(model=model, flip=True).eval()
    with torch.no_grad():
        (one,), (other,) = (wrapped([{"image": x}]) for x in (IMAGE, IMAGE.flip(-1)))
        plain = model([{"image": IMAGE}])[0]["ood_score"]
    assert not torch.allclose(plain, one["ood_score"], atol=1e-6)
    for key in ("sem_seg", "ood_score"):
        torch.testing.assert_close(one[key].flip(-1), other[key], rtol=1e-4, atol=1e-5)
