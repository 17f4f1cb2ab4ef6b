"""Linear layers and attention whose products are computed by oneDNN where MKL is slow.

torch multiplies float32 matrices with MKL, which uses AVX-512 only on Intel's processors: on an AMD
EPYC that has it, a product takes more than twice as long as with oneDNN, which torch brings too,
but uses only for convolutions and half precision. With AVX2, both are equally fast.
:func:`use_onednn` changes the layers of a model: the same results up to rounding on such a
processor; on any other, only self-attention differs from torch's own layers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CPUINFO = Path("/proc/cpuinfo")
_POINTWISE = (1, 1), "zeros"  # kernel and padding mode
# Fewest keys for which attention head by head is faster than torch's, and most weights at a time.
_MIN_KEYS, _MAX_WEIGHTS = 512, 2**20


@cache
def mkl_is_slow() -> bool:
    """Whether the processor has AVX-512 but is not Intel's, and torch has both MKL and oneDNN."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    text = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
    is_other = "GenuineIntel" not in text and "avx512f" in text
    return is_other and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, by oneDNN where that is faster.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D). Where oneDNN is used, second derivatives are not implemented.
    """
    if not _for_onednn(x, weight):
        return F.linear(x, weight, bias)
    trained = x.requires_grad or weight.requires_grad
    trained = trained or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and trained:
        # Of rows, so that the result is no view, which torch would not let change in place.
        return _Linear.apply(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)
    return _product(x, weight, bias)


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() > 1
        and x.numel() > 0
        and mkl_is_slow()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        # An exported program has torch's own operation.
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # For other layouts oneDNN has only a reference implementation, thousands of times slower.
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    if 1 not in x.stride():
        x = x.contiguous()
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Of rows (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if for_x else None,
            _product(grad.T, x.T) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention`` of (B, H, Q, D), (B, H, S, D) and (B, H, S, D).

    Without gradients, many keys and products of oneDNN, one head at a time: torch's own kernel has
    products that use no AVX-512 either.
    """
    tensors = query, key, value
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if trained or key.shape[-2] < _MIN_KEYS:
        return F.scaled_dot_product_attention(query, key, value)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and mkl_is_slow():
        # torch's kernel for bfloat16 is slower than this in float32, and as exact.
        with torch.autocast("cpu", enabled=False):
            return attention(query.float(), key.float(), value.float()).to(query.dtype)
    if not _for_onednn(query, key):
        return F.scaled_dot_product_attention(query, key, value)
    batch, heads, queries, dim = query.shape
    rows = max(_MAX_WEIGHTS // key.shape[-2], 1)
    output = query.new_empty((batch, queries, heads, value.shape[-1]))
    query = query * dim**-0.5
    for i in range(batch):
        for head in range(heads):
            for block in range(0, queries, rows):
                part = slice(block, block + rows)
                weights = _product(query[i, head, part], key[i, head])
                torch.softmax(weights, -1, out=weights)
                output[i, part, head] = _product(weights, value[i, head].T)
    return output.transpose(1, 2)


class Linear(nn.Linear):
    """``nn.Linear`` with :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class PointwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a kernel of 1x1."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.get_num_threads() > 1 or not _for_onednn(input, self.weight):
            return super().forward(input)
        # With one thread, torch would choose MKL, except for dilated convolutions. One point is the
        # same with any dilation.
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, 2, self.groups)


class SelfAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with :func:`linear` where query, key and value are one tensor.

    torch's puts the sequence first; with frozen weights and several samples, its projection then
    multiplies with a copy of the weights per token.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and result of ``nn.MultiheadAttention``."""
        usual = self.batch_first and self._qkv_same_embed_dim and query.dim() == 3
        more = args or options or need_weights or self.bias_k is not None or self.add_zero_attn
        boolean = attn_mask is not None and attn_mask.dtype == torch.bool  # True = blocked
        if (
            not usual or more or boolean or not (query is key is value)
            or torch.compiler.is_compiling() or torch.jit.is_tracing()
        ):  # fmt: skip
            return super().forward(
                query, key, value, *args, need_weights=need_weights, attn_mask=attn_mask, **options
            )
        projected = linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if attn_mask is None and not dropout:
            x = attention(q, k, v)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        x = x.transpose(1, 2).flatten(2)  # concatenate the heads
        return linear(x, self.out_proj.weight, self.out_proj.bias), None


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model, also those of libraries, use oneDNN, in place.

    These are linear layers, self-attention and convolutions of 1x1. Parameters and their names
    stay. Subclasses of torch's layers are left as they are.
    """
    for part in model.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
        elif type(part) is nn.MultiheadAttention:
            part.__class__ = SelfAttention
        elif type(part) is nn.Conv2d and (part.kernel_size, part.padding_mode) == _POINTWISE:
            part.__class__ = PointwiseConv2d
