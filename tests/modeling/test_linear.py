"""Products by oneDNN: the values and gradients of torch's layers, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tdos_d2.modeling import linear as module
from tdos_d2.modeling.linear import Linear, PointwiseConv2d, SelfAttention, mkl_is_slow, use_onednn


@pytest.fixture
def products(monkeypatch):
    """oneDNN computes the products whatever this processor is; a list that each one adds to."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    calls, product = [], module._product
    monkeypatch.setattr(module, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(module, "_product", lambda *args: calls.append(1) or product(*args))
    return calls


def gradients(layer: nn.Module, x: torch.Tensor, *more: object, **options: object):
    """Output, and gradients of a weighted sum of it with respect to input and parameters."""
    x = x.clone().requires_grad_()
    output = layer(x, *more, **options)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return output, *torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 3, 5, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(products, shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7, bias=bias), torch.randn(shape)
    expected = gradients(layer, x)
    assert not products
    layer.__class__ = Linear
    torch.testing.assert_close(gradients(layer, x), expected)
    assert len(products) == 3
    # A map of channels, as flatten(2).transpose(1, 2) gives it, and a grad that is no copy.
    strided = torch.randn(2, 12, 9).transpose(1, 2)
    torch.testing.assert_close(gradients(layer, strided), gradients(plain(layer), strided))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected[0])
    # As activations do; torch forbids it for views that are made inside a function.
    assert layer(x).relu_().requires_grad


def plain(layer: nn.Linear) -> nn.Linear:
    """The same layer as torch's."""
    other = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    return other


def test_onednn_gets_layouts_that_it_is_fast_with(products, monkeypatch):
    """Parts of larger tensors as input, weight and gradient: it took seconds for milliseconds."""
    seen, onednn = [], module._onednn

    def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append((weight.is_contiguous() or weight.T.is_contiguous()) and 1 in x.stride())
        return onednn(x, weight, bias)

    monkeypatch.setattr(module, "_onednn", dense)
    torch.manual_seed(0)
    whole, weight = torch.randn(5, 24, requires_grad=True), torch.randn(7, 24, requires_grad=True)
    for part in (np.s_[:, :12], np.s_[:, ::2]):
        expected = F.linear(whole[part], weight[part])
        output = module.linear(whole[part], weight[part])
        torch.testing.assert_close(output, expected)
        grad = torch.randn(5, 14)[:, ::2]
        for one, other in zip(
            torch.autograd.grad(output, [whole, weight], grad),
            torch.autograd.grad(expected, [whole, weight], grad),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
    assert seen == [True] * 6


def test_frozen_weights_get_no_gradient(products):
    layer = Linear(4, 3).requires_grad_(False)
    x = torch.randn(5, 4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 4))
    assert layer.weight.grad is None and layer.bias.grad is None and len(products) == 2


def test_where_torch_computes(products, monkeypatch):
    """Half precision, nothing to multiply, an exported program, Intel's processors."""
    layer, x = Linear(4, 3), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x[:0]).shape == (0, 3) and layer(x[0]).shape == (3,)
    assert layer.double()(x.double()).dtype == torch.float64
    graph = torch.export.export(layer.float(), (x,)).graph
    assert "aten.linear" in str(graph) and "mkldnn" not in str(graph)
    assert not products
    monkeypatch.setattr(module, "mkl_is_slow", lambda: False)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not products


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1, "groups": 2}])
def test_pointwise_convolutions_are_those_of_torch(products, options, monkeypatch):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 6, 1, **options), torch.randn(2, 4, 5, 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = gradients(layer, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    used = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: used.append(args[5]) or convolve(*args))
    use_onednn(layer)
    torch.testing.assert_close(gradients(layer, x), expected)
    assert used == [2]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("slow", [True, False])
def test_attention_is_that_of_torch(products, masked, slow, monkeypatch):
    monkeypatch.setattr(module, "mkl_is_slow", lambda: slow)
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(2, 5, 12)
    nn.init.normal_(attention.in_proj_bias)
    mask = torch.full((5, 5), float("-inf")).triu(1) if masked else None

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False, attn_mask=mask)[0]

    expected = gradients(Block(), x)
    use_onednn(block := Block())
    assert type(attention) is SelfAttention and not products
    torch.testing.assert_close(gradients(block, x), expected)
    assert len(products) == 6 * slow
    # Other uses are torch's own.
    assert attention(x, x, x)[1].shape == (2, 5, 5)
    other = torch.randn(2, 4, 12)
    assert attention(x, other, other, need_weights=False)[0].shape == (2, 5, 12)
    assert attention(x, x, x, need_weights=False, attn_mask=torch.eye(5) < 1)[0].shape == x.shape
    assert len(products) == 6 * slow


@pytest.mark.parametrize(("queries", "most"), [(7, 2**20), (7, 12), (1, 3)])
def test_attention_head_by_head(products, queries, most, monkeypatch):
    """Also in blocks of rows, down to one, as long sequences need it."""
    monkeypatch.setattr(module, "_MIN_KEYS", 6)
    monkeypatch.setattr(module, "_MAX_WEIGHTS", most)
    torch.manual_seed(0)
    # Heads of one tensor, as a projection gives them: no layout that oneDNN likes.
    query, key, value = torch.randn(2, 6, 3, 3, 4).permute(2, 0, 3, 1, 4)
    query = torch.randn(2, queries, 3, 4).transpose(1, 2)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(module.attention(query, key, value), expected.float())
    blocks = -(-queries // max(most // 6, 1))
    assert len(products) == 2 * 2 * 3 * blocks
    # In bfloat16, with products in float32: exact up to the rounding of inputs and output.
    products.clear()
    half = [x.bfloat16() for x in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        result = module.attention(*half)
    expected = F.scaled_dot_product_attention(*(x.double() for x in half))
    torch.testing.assert_close(result, expected.bfloat16(), rtol=2**-7, atol=0)
    assert len(products) == 2 * 2 * 3 * blocks
    # Few keys, and what is trained, are torch's.
    products.clear()
    module.attention(query, key[:, :, :5], value[:, :, :5])
    result = module.attention(query, key.requires_grad_(), value)
    assert not products and result.requires_grad


def test_only_torchs_own_layers_change():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(2, 2), Own(2, 2), nn.MultiheadAttention(2, 1), nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1, padding_mode="reflect"),
    )  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    use_onednn(model)
    expected = [Linear, Own, SelfAttention, PointwiseConv2d, nn.Conv2d, nn.Conv2d]
    assert [type(part) for part in model] == expected
    torch.testing.assert_close(dict(model.state_dict()), state)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: fma avx2 avx512f\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t: fma avx2\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t: fma avx2 avx512f\n", False),
        ("processor : 0\nCPU implementer\t: 0x41\n", False),
        (None, False),
    ],
)
def test_which_processors(text, expected, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if text:
        file.write_text(text)
    monkeypatch.setattr(module, "_CPUINFO", file)
    for of in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(of, "is_available", lambda: True)
    assert mkl_is_slow.__wrapped__() == expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not mkl_is_slow.__wrapped__()


def test_a_bias_alone_is_trained(products):
    layer = Linear(4, 3)
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 4)).sum().backward()
    assert products and layer.bias.grad.tolist() == [5, 5, 5]
