"""Building on the meta device: what it must not swallow, and what it cannot know."""

from __future__ import annotations

import pytest
import torch

from tdos_d2.errors import UserError
from tdos_d2.loading.dry_build import check_build
from tdos_d2.modeling.registry import PIXEL_DECODER_REGISTRY


@pytest.fixture
def build_with(tiny_cfg, monkeypatch):
    """Checks a model whose pixel decoder runs a function while it is built."""

    def check(function) -> None:
        class Odd(PIXEL_DECODER_REGISTRY.get("TextPixelDecoder")):
            def __init__(self, cfg, *shapes) -> None:
                super().__init__(cfg, *shapes)
                function(torch.ones(2))

        monkeypatch.setitem(PIXEL_DECODER_REGISTRY._obj_map, "Odd", Odd)
        tiny_cfg.MODEL.PIXEL_DECODER.NAME = "Odd"
        check_build(tiny_cfg)

    return check


def fail(message: str):
    raise RuntimeError(message)


@pytest.mark.parametrize("message", ["no metadata for my table", "meta.json is empty", "meta"])
def test_an_error_of_the_users_own_is_reported(build_with, message):
    with pytest.raises(UserError, match=rf"PIXEL_DECODER\.NAME: this cannot be built \({message}"):
        build_with(lambda _: fail(message))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.equal(x, x),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(2, device="cpu"),
        lambda x: torch.ones(2, device="cpu").copy_(x),
    ],
)
def test_parts_that_read_values_are_left_to_the_run(build_with, read):
    build_with(read)
