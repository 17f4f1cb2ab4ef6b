"""Deformable attention and the pixel decoder against loops written from the papers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from references import bilinear, pixel_decoder, randomise

from tdos_d2.modeling.deformable_attention import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attention,
)
from tdos_d2.modeling.deformable_sampling import sum_of_samples
from tdos_d2.modeling.pixel_decoder import TextPixelDecoder
from tdos_d2.modeling.transformer_layers import sine_positions


def test_deformable_attention_agrees_with_a_loop():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (4, 5)]
    batch, queries, heads, points, dim = 2, 3, 2, 3, 4
    value = torch.randn(batch, 26, heads, dim, generator=generator)
    locations = 1.4 * torch.rand(batch, queries, heads, 2, points, 2, generator=generator) - 0.2
    weights = torch.rand(batch, queries, heads, 2, points, generator=generator)
    expected = torch.zeros(batch, queries, heads, dim)
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                start = 0
                for i, (height, width) in enumerate(shapes):
                    level = value[b, start : start + height * width, h].view(height, width, dim)
                    start += height * width
                    for p in range(points):
                        x, y = locations[b, q, h, i, p].tolist()
                        sample = bilinear(level, x * width - 0.5, y * height - 0.5)
                        expected[b, q, h] += weights[b, q, h, i, p] * sample
    ours = multi_scale_deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(ours, expected.flatten(2), atol=1e-5, rtol=1e-5)
    ours = sum_of_samples(value, shapes, in_cells(locations, shapes), weights)
    torch.testing.assert_close(ours, expected.flatten(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_nan_gives_nan(heads):
    """Not an index error: the training then names the batch."""
    shapes = [(2, 3), (4, 5)]
    cells = torch.zeros(1, 2, heads, 2, 3, 2)
    cells[0, 1] = torch.nan
    sums = sum_of_samples(torch.ones(1, 26, heads, 4), shapes, cells, torch.ones(cells.shape[:-1]))
    assert sums[0, 0].isfinite().all() and sums[0, 1].isnan().all()


def in_cells(locations, shapes):
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=locations.dtype)
    return locations * sizes[:, None] - 0.5


def test_rows_have_the_gradients_of_grid_sample():
    """Also where points lie far outside, and where they look at border cells."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (1, 2), (6, 4)]
    random = partial(torch.rand, generator=generator, dtype=torch.float64)
    value = random(2, 41, 2, 3) - 0.5
    locations, weights = 3 * random(2, 7, 2, 3, 4, 2) - 1, random(2, 7, 2, 3, 4)
    sides = random(2, 7, 6)
    gradients = []
    for rows in (False, True):
        inputs = [x.clone().requires_grad_() for x in (value, locations, weights)]
        if rows:
            out = sum_of_samples(inputs[0], shapes, in_cells(inputs[1], shapes), inputs[2])
        else:
            out = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
        gradients.append(torch.autograd.grad((out * sides).sum(), inputs))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference)


def test_rows_keep_no_samples_for_the_backward_pass():
    """They keep their inputs; grid_sample's form keeps every sample, D channels each."""
    shapes = [(4, 4), (8, 8)]
    value = torch.randn(1, 80, 4, 32, requires_grad=True)
    locations = torch.rand(1, 80, 4, 2, 4, 2, requires_grad=True)
    weights = torch.rand(1, 80, 4, 2, 4, requires_grad=True)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    sizes = []
    for run in (
        lambda: multi_scale_deformable_attention(value, shapes, locations, weights),
        lambda: sum_of_samples(value, shapes, in_cells(locations, shapes), weights),
    ):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = run()  # alive, so that no address is used twice
        sizes.append(sum(kept.values()))
        assert graph.requires_grad
    assert sizes[1] < sizes[0] / 4


def test_offsets_are_in_cells_of_each_level():
    """With one point, no offset weights and offset (1, 0) a query reads the cell to its right."""
    module = MultiScaleDeformableAttention(4, num_levels=1, num_heads=1, num_points=1)
    with torch.no_grad():
        module.offsets.bias.copy_(torch.tensor([1.0, 0.0]))
        for layer in (module.value_proj, module.output_proj):
            layer.weight.copy_(torch.eye(4))
    value = torch.randn(1, 6, 4)
    reference = torch.tensor([[0.5 / 3, 0.25]])  # centre of the first cell of a 2 x 3 map
    out = module(torch.randn(1, 1, 4), reference, value, [(2, 3)])
    torch.testing.assert_close(out[0, 0], value[0, 1])


def test_sine_positions_match_the_formula():
    positions = sine_positions(2, 3, 8).view(2, 3, 8)
    y, x = 2 * math.pi * 2 / 2, 2 * math.pi * 1 / 3  # second row, first column
    expected = [
        math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100),
        math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100),
    ]
    torch.testing.assert_close(positions[1, 0], torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TextPixelDecoder(
        [6, 6, 6, 6], 5, 4, hidden_dim=16, num_layers=2, num_heads=2, ffn_dim=16
    )


def pyramid(height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, height // s, width // s, generator=generator) for s in (4, 8, 16, 32)]


def test_pixel_decoder_follows_the_papers(decoder):
    """All of it, with every weight random: positions, both attentions, norms, the last level."""
    randomise(decoder)
    generator = torch.Generator().manual_seed(2)
    shapes = [(11, 19), (6, 9), (3, 5), (2, 3)]
    levels = [torch.randn(2, 6, *shape, generator=generator) for shape in shapes]
    text = torch.randn(2, 4, 5, generator=generator)
    memory, features = decoder(levels, text)
    expected_memory, expected = pixel_decoder(decoder, levels, text, groups=2)
    torch.testing.assert_close(memory, expected_memory, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_pixel_decoder_on_a_non_square_image(decoder):
    memory, mask_features = decoder(pyramid(64, 160), torch.randn(2, 4, 5))
    assert [tuple(m.shape) for m in memory] == [(2, 16, 2, 5), (2, 16, 4, 10), (2, 16, 8, 20)]
    assert mask_features.shape == (2, 16, 16, 40)


def test_pixels_attend_to_text_and_everything_gets_gradient(decoder):
    levels, text = pyramid(64, 64), torch.randn(2, 4, 5)
    one = decoder(levels, text)[1]
    other = decoder(levels, text + torch.randn(2, 4, 5))[1]
    assert (one - other).abs().max() > 1e-4
    memory, mask_features = decoder(levels, text.requires_grad_())
    (sum(m.square().sum() for m in memory) + mask_features.square().sum()).backward()
    without = [n for n, p in decoder.named_parameters() if p.grad is None]
    assert not without
    assert text.grad.abs().sum() > 0
