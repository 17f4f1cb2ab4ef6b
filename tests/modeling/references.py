"""Straightforward versions of the decoders, written from the papers, to compare ours with.

Mask2Former (arXiv 2112.01527), Deformable DETR (2010.04159), DETR (2005.12872; positions), tqdm
(text in the pixel decoder), DenseCLIP (2112.01518; context decoder). They take the weights of the
module that they are compared with, and share no code with it: plain loops, torch's own layers and
``nn.MultiheadAttention``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values: start values of 0 and 1 hide what is left out."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and id(parameter) not in tables:
            value = value / parameter[0].numel() ** 0.5
        elif parameter.ndim == 1:
            value = 0.3 * value + float(name.endswith("weight"))  # a norm's scale is around 1
        parameter.copy_(value)
    return module


def positions(height: int, width: int, dim: int) -> Tensor:
    """(h, w, C) sine encoding of the cells' coordinates, which end at 2 pi: y first, then x."""
    table = torch.zeros(height, width, dim)
    half = dim // 2
    for row in range(height):
        for column in range(width):
            for i in range(half):
                frequency = 10000 ** (2 * (i // 2) / half)
                wave = (math.sin, math.cos)[i % 2]
                table[row, column, i] = wave(2 * math.pi * (row + 1) / height / frequency)
                table[row, column, half + i] = wave(2 * math.pi * (column + 1) / width / frequency)
    return table


def bilinear(level: Tensor, x: float, y: float) -> Tensor:
    """(h, w, D) ``level`` at pixel coordinates, centres at whole numbers, zero outside."""
    x0, y0 = math.floor(x), math.floor(y)
    total = torch.zeros(level.shape[-1])
    for row, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for column, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            if 0 <= row < level.shape[0] and 0 <= column < level.shape[1]:
                total += wx * wy * level[row, column]
    return total


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
) -> Tensor:
    """``nn.MultiheadAttention`` with the weights of ``module``; ``blocked`` (B, Q, S)."""
    projections = module.q_proj, module.k_proj, module.v_proj
    reference = nn.MultiheadAttention(query.shape[-1], module.num_heads, batch_first=True)
    state = {
        "in_proj_weight": torch.cat([p.weight for p in projections]),
        "in_proj_bias": torch.cat(
            [torch.zeros(len(p.weight)) if p.bias is None else p.bias for p in projections]
        ),
        "out_proj.weight": module.out_proj.weight,
        "out_proj.bias": module.out_proj.bias,
    }
    reference.load_state_dict(state)
    if blocked is not None:
        blocked = blocked.repeat_interleave(module.num_heads, 0)
    return reference(query, key, value, attn_mask=blocked, need_weights=False)[0]


def deformable(module: nn.Module, query: Tensor, value: Tensor, shapes: Sequence) -> Tensor:
    """Deformable attention of every cell of a pyramid, query by query, head by head."""
    heads, points = module.num_heads, module.num_points
    batch, count, dim = query.shape
    values = module.value_proj(value)
    offsets = module.offsets(query).view(batch, count, heads, len(shapes), points, 2)
    weights = module.weights(query).view(batch, count, heads, -1).softmax(-1)
    weights = weights.view(batch, count, heads, len(shapes), points)
    centres = [
        ((x + 0.5) / w, (y + 0.5) / h) for h, w in shapes for y in range(h) for x in range(w)
    ]
    result = torch.zeros(batch, count, heads, dim // heads)
    for b in range(batch):
        parts = values[b].view(count, heads, -1).split([h * w for h, w in shapes])
        maps = [part.view(h, w, heads, -1) for part, (h, w) in zip(parts, shapes, strict=True)]
        for q, (cx, cy) in enumerate(centres):
            for head in range(heads):
                for i, (h, w) in enumerate(shapes):
                    for p in range(points):
                        dx, dy = offsets[b, q, head, i, p].tolist()  # in cells of level i
                        sample = bilinear(maps[i][:, :, head], cx * w + dx - 0.5, cy * h + dy - 0.5)
                        result[b, q, head] += weights[b, q, head, i, p] * sample
    return module.output_proj(result.flatten(2))


def feed_forward(module: nn.Module, x: Tensor) -> Tensor:
    first, _, second = module
    return second(first(x).clamp(min=0))


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    *hidden, last = module.layers
    for layer in hidden:
        x = layer(x).clamp(min=0)
    return last(x)


def convolve(conv: nn.Conv2d, norm: nn.GroupNorm, x: Tensor, groups: int) -> Tensor:
    """Convolution and group normalisation, the statistics written out."""
    x = F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
    x = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(x)
    return x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


@torch.no_grad()
def context_decoder(module: nn.Module, text: Tensor, visual: Tensor) -> Tensor:
    """DenseCLIP's decoder, pre-norm, from texts (N, D) to what images (B, S, D) make of them."""
    memory = module.visual_proj(visual)
    x = module.text_proj(text).expand(len(visual), -1, -1)
    for layer in module.layers:
        y = layer.norms[0](x)
        x = x + attend(layer.self_attention, y, y, y)
        x = x + attend(layer.cross_attention, layer.norms[1](x), memory, memory)
        first, _, second = layer.feed_forward
        x = x + second(F.gelu(first(layer.norms[2](x))))
    return text + module.gamma * module.out_proj(x)


@torch.no_grad()
def pixel_decoder(
    module: nn.Module, levels: Sequence[Tensor], text: Tensor, groups: int
) -> tuple[list[Tensor], Tensor]:
    """tqdm's pixel decoder: the three coarse levels attend to each other and to the text."""
    coarse = zip(module.inputs, levels[:0:-1], strict=True)  # the coarsest first
    maps = [convolve(*block, level, groups) for block, level in coarse]
    shapes = [tuple(m.shape[2:]) for m in maps]
    dim = maps[0].shape[1]
    position = torch.cat(
        [
            positions(h, w, dim).view(h * w, dim) + module.level_embedding.weight[i]
            for i, (h, w) in enumerate(shapes)
        ]
    )
    x = torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)
    value = module.text_proj(text)
    key = value + module.text_position.weight
    for layer in module.layers:
        x = layer.norms[0](x + deformable(layer.self_attention, x + position, x, shapes))
        x = layer.norms[1](x + attend(layer.text_attention, x + position, key, value))
        x = layer.norms[2](x + feed_forward(layer.feed_forward, x))
    x = module.norm(x).transpose(1, 2).split([h * w for h, w in shapes], 2)
    memory = [part.unflatten(2, shape) for part, shape in zip(x, shapes, strict=True)]
    finest = convolve(*module.lateral, levels[0], groups)
    finest = finest + F.interpolate(memory[2], size=finest.shape[2:], mode="bilinear")
    finest = convolve(*module.output[:2], finest, groups).clamp(min=0)
    return memory, F.conv2d(finest, module.mask_features.weight, module.mask_features.bias)


@torch.no_grad()
def query_decoder(
    module: nn.Module, memory: Sequence[Tensor], features: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask2Former's decoder with text as queries: class and mask logits of all outputs."""
    classes, masks = [], []

    def heads(query: Tensor) -> None:
        state = module.norm(query)
        classes.append(module.class_head(state))
        masks.append(torch.einsum("bnc,bchw->bnhw", mlp(module.mask_head, state), features))

    query, own = mlp(module.query_content, text), module.query_position.weight
    heads(query)
    for i, layer in enumerate(module.layers):
        level = memory[i % 3]
        h, w = level.shape[2:]
        value = level.flatten(2).transpose(1, 2) + module.level_embedding.weight[i % 3]
        key = value + positions(h, w, value.shape[-1]).view(h * w, -1)
        small = F.interpolate(masks[-1], size=(h, w), mode="bilinear")
        blocked = small.flatten(2).sigmoid() < 0.5
        blocked[blocked.all(-1)] = False
        attended = attend(layer.cross_attention, query + own, key, value, blocked)
        query = layer.norms[0](query + attended)
        attended = attend(layer.self_attention, query + own, query + own, query)
        query = layer.norms[1](query + attended)
        query = layer.norms[2](query + feed_forward(layer.feed_forward, query))
        heads(query)
    return torch.stack(classes), torch.stack(masks)
