"""The text-query decoder: parity with the papers, masks, blocking, queries from text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from references import query_decoder, randomise

from tdos_d2.modeling.transformer_decoder import TextQueryDecoder


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TextQueryDecoder(5, 4, 3, hidden_dim=16, num_layers=3, num_heads=2, ffn_dim=16)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    memory = [torch.randn(2, 16, 2 * s, 3 * s, generator=generator) for s in (1, 2, 4)]
    features = torch.randn(2, 16, 16, 24, generator=generator)
    return memory, features, torch.randn(2, 4, 5, generator=generator)


def test_shapes_in_training_and_evaluation(decoder, inputs):
    classes, masks = decoder(*inputs)
    assert classes.shape == (4, 2, 4, 4) and masks.shape == (4, 2, 4, 16, 24)
    last_classes, last_masks = decoder.eval()(*inputs)
    assert last_classes.shape == (1, 2, 4, 4)
    torch.testing.assert_close(last_classes[0], classes[-1])
    torch.testing.assert_close(last_masks[0], masks[-1])


@pytest.mark.parametrize("num_layers", [0, 5])
def test_decoder_follows_the_papers(inputs, num_layers):
    """All of it, with every weight random: positions, masking, order of attentions, every output.

    Five layers visit the first two levels twice.
    """
    options = {"hidden_dim": 16, "num_layers": num_layers, "num_heads": 2, "ffn_dim": 16}
    decoder = randomise(TextQueryDecoder(5, 4, 3, **options))
    classes, masks = decoder(*inputs)
    expected_classes, expected_masks = query_decoder(decoder, *inputs)
    torch.testing.assert_close(classes, expected_classes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks, expected_masks, atol=1e-4, rtol=1e-4)


def test_blocked_cells_are_where_the_resized_mask_is_background(decoder, inputs):
    _, features, text = inputs
    state = decoder.norm(decoder.query_content(text))
    full = torch.einsum("bnc,bchw->bnhw", decoder.mask_head(state), features)
    resized = F.interpolate(full, size=(4, 6), mode="bilinear", align_corners=False)
    expected = resized.sigmoid().flatten(2) < 0.5
    expected[expected.all(-1)] = False
    small = F.interpolate(features, size=(4, 6), mode="bilinear", align_corners=False)
    blocked = decoder._blocked(state, small)
    assert torch.equal(blocked, expected)
    assert 0.1 < blocked.float().mean() < 0.9


def test_a_query_whose_mask_is_empty_looks_everywhere(decoder):
    state = torch.randn(1, 4, 16)
    direction = decoder.mask_head(state)
    features = -direction[0, 0].view(1, 16, 1, 1).expand(1, 16, 2, 3)  # mask of query 0: all < 0
    blocked = decoder._blocked(state, features)
    assert not blocked[0, 0].any()


def test_queries_come_from_the_text(decoder, inputs):
    memory, features, text = inputs
    text = text.clone().requires_grad_()
    classes, masks = decoder(memory, features, text)
    (classes.sum() + masks.sum()).backward()
    assert (text.grad.abs().amax(-1) > 0).all()
