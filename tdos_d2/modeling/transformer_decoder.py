"""The transformer decoder: classes and masks of the text queries, by masked attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ..value_checks import check_positive
from .registry import TRANSFORMER_DECODER_REGISTRY
from .transformer_layers import MLP, Attention, FeedForward, sine_positions


@TRANSFORMER_DECODER_REGISTRY.register()
class TextQueryDecoder(nn.Module):
    """Mask2Former's decoder with queries that come from text embeddings (tqdm).

    Args:
        text_dim: D, channels of the text embeddings.
        num_queries: N.
        num_classes: K + 1 classes (known and OOD); "no object" is added here.
        num_levels: levels of the memory, used in turn by the layers, coarsest first.
        hidden_dim: C, width of the memory and of the queries.
        num_layers: layers.
        num_heads: heads.
        ffn_dim: width of the feed-forward blocks.
    """

    @configurable
    def __init__(
        self,
        text_dim: int,
        num_queries: int,
        num_classes: int,
        *,
        num_levels: int = 3,
        hidden_dim: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.query_content = MLP(text_dim, hidden_dim, hidden_dim, 2)
        self.query_position = nn.Embedding(num_queries, hidden_dim)
        self.level_embedding = nn.Embedding(num_levels, hidden_dim)
        self.layers = nn.ModuleList(
            _QueryLayer(hidden_dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.class_head = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_head = MLP(hidden_dim, hidden_dim, hidden_dim, 3)

    @classmethod
    def from_config(cls, cfg, text_dim: int, num_queries: int, num_classes: int) -> dict:
        sizes = "NUM_LAYERS", "NUM_HEADS", "FFN_DIM"
        check_positive(cfg, "MODEL.TRANSFORMER_DECODER", *sizes)
        node = cfg.MODEL.TRANSFORMER_DECODER
        return {
            "text_dim": text_dim,
            "num_queries": num_queries,
            "num_classes": num_classes,
            # Masks are products of queries and mask features, which must have the same width.
            "hidden_dim": cfg.MODEL.PIXEL_DECODER.HIDDEN_DIM,
            "num_layers": node.NUM_LAYERS,
            "num_heads": node.NUM_HEADS,
            "ffn_dim": node.FFN_DIM,
        }

    def forward(
        self, memory: Sequence[Tensor], mask_features: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            memory: ``num_levels`` maps (B, C, h, w), coarsest first.
            mask_features: (B, C, H, W).
            text: (B, N, D).

        Returns:
            Class logits (O, B, N, K + 2) and mask logits (O, B, N, H, W). In training
            O = layers + 1, where the first output precedes the first layer; in evaluation O = 1,
            the last output. Mask logits are float32 also under autocast, as half precision causes
            ties between pixels.
        """
        shapes = [tuple(m.shape[-2:]) for m in memory]
        # A mask is linear in the mask features, so small masks can use resized features.
        small_features = [F.interpolate(mask_features, size, mode="bilinear") for size in shapes]
        values = [  # (B, h * w, C) of each level
            m.flatten(2).transpose(1, 2) + embedding
            for m, embedding in zip(memory, self.level_embedding.weight, strict=True)
        ]
        positions = [sine_positions(*shape, values[0].shape[-1], text.device) for shape in shapes]
        query = self.query_content(text)
        query_position = self.query_position.weight
        # The first masks depend only on the text; they restrict the first layer's attention.
        states = [self.norm(query)]
        for i, layer in enumerate(self.layers):
            level = i % self.num_levels  # in turn (Mask2Former, section 3.2)
            blocked = self._blocked(states[-1], small_features[level])
            value = values[level]
            query = layer(query, query_position, value + positions[level], value, blocked)
            states.append(self.norm(query))
        outputs = torch.stack(states if self.training else states[-1:])  # (O, B, N, C)
        of_masks = self.mask_head(outputs)
        with torch.autocast(text.device.type, enabled=False):
            masks = torch.einsum("obnc,bchw->obnhw", of_masks.float(), mask_features.float())
        return self.class_head(outputs), masks

    @torch.no_grad()
    def _blocked(self, state: Tensor, features: Tensor) -> Tensor:
        """(B, N, h * w): True where a query's own mask is background, unless it all is."""
        masks = torch.einsum("bnc,bchw->bnhw", self.mask_head(state), features).flatten(2)
        blocked = masks < 0  # sigmoid < 0.5
        # The softmax of a row that blocks everything would be NaN.
        return blocked & ~blocked.all(-1, keepdim=True)


class _QueryLayer(nn.Module):
    """Post-norm: masked attention to the memory, self-attention, feed-forward."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attention = Attention(dim, num_heads)
        self.self_attention = Attention(dim, num_heads)
        self.feed_forward = FeedForward(dim, ffn_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, blocked: Tensor
    ) -> Tensor:
        x = self.norms[0](x + self.cross_attention(x + position, key, value, blocked))
        qk = x + position
        x = self.norms[1](x + self.self_attention(qk, qk, x))
        return self.norms[2](x + self.feed_forward(x))
