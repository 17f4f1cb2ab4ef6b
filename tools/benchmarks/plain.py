"""The plain ways that the benchmarks compare with: what the released code does, written out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdos_d2.modeling import deformable_attention, linear
from tdos_d2.modeling.clip import towers


def sampled_per_level(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    weights: Tensor,
) -> Tensor:
    """Deformable attention where there is no compiled kernel: grid_sample, level by level.

    The form that Mask2Former and detrex fall back to (Deformable DETR, equation 3). Arguments as of
    ``tdos_d2.modeling.deformable_attention._attend``.
    """
    batch, queries, heads, levels, points, _ = offsets.shape
    sizes = offsets.new_tensor([(w, h) for h, w in shapes])
    locations = reference[:, None, None, None] + offsets / sizes[:, None]
    samples = []
    for i, level in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = level.flatten(2).transpose(1, 2).reshape(batch * heads, -1, *shapes[i])
        grid = 2 * locations[:, :, :, i].transpose(1, 2).flatten(0, 1) - 1  # (B * H, Q, P, 2)
        samples.append(F.grid_sample(maps, grid, align_corners=False))  # (B * H, D, Q, P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)  # (B * H, D, Q)
    return output.view(batch, -1, queries).transpose(1, 2).contiguous()


class EncodedEachTime(nn.Module):
    """Text embeddings that nothing keeps."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text, self.embed_dim = text, text.embed_dim

    def forward(self) -> Tensor:
        if hasattr(self.text, "_encode"):
            return self.text._encode()
        return self.text()


@contextmanager
def plain(model: nn.Module) -> Iterator[nn.Module]:
    """``model``, not fused, as the released code runs it while the context lasts.

    One window at a time, the text encoded for each, open_clip's attention as it comes, deformable
    attention by grid_sample, no channels-last maps, products by MKL.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(deformable_attention, "_attend", sampled_per_level))
        enter(mock.patch.object(towers, "_fused_attention", nullcontext()))
        enter(mock.patch.object(linear, "mkl_is_slow", lambda: False))
        enter(mock.patch.object(linear.SelfAttention, "forward", nn.MultiheadAttention.forward))
        enter(mock.patch.dict(model.window, batch=1))
        enter(mock.patch.object(model.backbone, "memory_format", torch.contiguous_format))
        if hasattr(model, "text"):
            enter(mock.patch.dict(model._modules, text=EncodedEachTime(model.text)))
        yield model
