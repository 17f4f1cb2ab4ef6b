"""The pixel decoder: deformable attention over the pyramid, and attention to the text (tqdm)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ..value_checks import check_positive
from .deformable_attention import MultiScaleDeformableAttention
from .registry import PIXEL_DECODER_REGISTRY
from .transformer_layers import Attention, FeedForward, init_xavier, sine_positions

NUM_LEVELS = 3  # levels with attention: strides 8, 16, 32; stride 4 is added at the end


@PIXEL_DECODER_REGISTRY.register()
class TextPixelDecoder(nn.Module):
    """Six layers of deformable self-attention, pixel-to-text attention and feed-forward.

    Args:
        in_channels: channels of the four levels, finest first.
        text_dim: D, channels of the text embeddings.
        num_queries: N, number of text embeddings.
        hidden_dim: C, a multiple of 8.
        num_layers: layers.
        num_heads: heads of both attentions.
        num_points: sampling points per head and level.
        ffn_dim: width of the feed-forward blocks.
    """

    @configurable
    def __init__(
        self,
        in_channels: Sequence[int],
        text_dim: int,
        num_queries: int,
        *,
        hidden_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 2048,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        # 32 groups at the published width; at least 8 channels per group
        groups = math.gcd(32, hidden_dim // 8)
        finest, *coarse = in_channels
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, hidden_dim, 1), nn.GroupNorm(groups, hidden_dim))
            for c in reversed(coarse)  # coarsest first, like the memory
        )
        self.lateral = nn.Sequential(
            nn.Conv2d(finest, hidden_dim, 1, bias=False), nn.GroupNorm(groups, hidden_dim)
        )
        self.output = nn.Sequential(
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, bias=False),
            nn.GroupNorm(groups, hidden_dim),
            nn.ReLU(),
        )
        self.mask_features = nn.Conv2d(hidden_dim, hidden_dim, 1)
        self.level_embedding = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.text_proj = nn.Linear(text_dim, hidden_dim)
        self.text_position = nn.Embedding(num_queries, hidden_dim)
        self.layers = nn.ModuleList(
            _PixelLayer(hidden_dim, num_heads, num_points, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        # Both initialisations as in Mask2Former; this one is Detectron2's c2_xavier_fill.
        for conv in (self.lateral[0], self.output[0], self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        init_xavier(*(level[0] for level in self.inputs))

    @classmethod
    def from_config(cls, cfg, in_channels: Sequence[int], text_dim: int, num_queries: int) -> dict:
        sizes = "HIDDEN_DIM", "NUM_LAYERS", "NUM_HEADS", "NUM_SAMPLING_POINTS", "FFN_DIM"
        check_positive(cfg, "MODEL.PIXEL_DECODER", *sizes)
        node = cfg.MODEL.PIXEL_DECODER
        return {
            "in_channels": in_channels,
            "text_dim": text_dim,
            "num_queries": num_queries,
            "hidden_dim": node.HIDDEN_DIM,
            "num_layers": node.NUM_LAYERS,
            "num_heads": node.NUM_HEADS,
            "num_points": node.NUM_SAMPLING_POINTS,
            "ffn_dim": node.FFN_DIM,
        }

    def forward(self, levels: Sequence[Tensor], text: Tensor) -> tuple[list[Tensor], Tensor]:
        """
        Args:
            levels: four maps (B, C_i, h_i, w_i), finest first.
            text: (B, N, D).

        Returns:
            The memory, three maps (B, C, h, w), coarsest first, and the mask features
            (B, C, H, W) at the finest level.
        """
        maps = [proj(x) for proj, x in zip(self.inputs, reversed(levels[1:]), strict=True)]
        shapes = [tuple(m.shape[-2:]) for m in maps]
        # (S, C); the level embedding distinguishes cells of different levels at the same position.
        positions = torch.cat(
            [
                sine_positions(*shape, self.hidden_dim, maps[0].device) + embedding
                for shape, embedding in zip(shapes, self.level_embedding.weight, strict=True)
            ]
        )
        reference = torch.cat([_centres(*shape, maps[0].device) for shape in shapes])
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, C)
        text = self.text_proj(text)
        text_key = text + self.text_position.weight  # values stay plain text, as in DETR
        for layer in self.layers:
            x = layer(x, positions, reference, shapes, text_key, text)
        x = self.norm(x).transpose(1, 2)  # (B, C, S)
        sizes = [h * w for h, w in shapes]
        memory = [m.unflatten(2, s) for m, s in zip(x.split(sizes, dim=2), shapes, strict=True)]
        finest = self.lateral(levels[0])
        # FPN's top-down step from stride 8; the sizes need not differ by exactly a factor of 2.
        upsampled = F.interpolate(memory[-1], finest.shape[-2:], mode="bilinear")
        return memory, self.mask_features(self.output(finest + upsampled))


class _PixelLayer(nn.Module):
    """Post-norm: deformable self-attention, attention to text, feed-forward."""

    def __init__(self, dim: int, num_heads: int, num_points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attention = MultiScaleDeformableAttention(dim, NUM_LEVELS, num_heads, num_points)
        self.text_attention = Attention(dim, num_heads)
        self.feed_forward = FeedForward(dim, ffn_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        reference: Tensor,
        shapes: Sequence[tuple[int, int]],
        text_key: Tensor,
        text_value: Tensor,
    ) -> Tensor:
        x = self.norms[0](x + self.self_attention(x + positions, reference, x, shapes))
        x = self.norms[1](x + self.text_attention(x + positions, text_key, text_value))
        return self.norms[2](x + self.feed_forward(x))


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) centres (x, y) of the cells in [0, 1], row by row."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid[1], grid[0]], dim=-1).flatten(0, 1)
