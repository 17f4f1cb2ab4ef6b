"""The context decoder: text embeddings attend to the image (DenseCLIP's post-model prompting)."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ...value_checks import check_positive, check_share
from ..registry import CONTEXT_DECODER_REGISTRY
from ..transformer_layers import Attention, FeedForward


@CONTEXT_DECODER_REGISTRY.register()
class ContextDecoder(nn.Module):
    """Text embeddings attend to each other and to the image; the result is added as a residual.

    The output is ``t + gamma * delta`` with a learnable vector gamma, whose initial value is small:
    the published code overwrites this value by a normal of std 1 (defect 18).

    Args:
        text_dim: D_t, channels of the text embeddings.
        visual_dim: D_v, channels of the visual context.
        hidden_dim: width of the layers.
        num_layers: pre-norm decoder layers; 0 = text embeddings are not changed.
        num_heads: attention heads.
        dropout: dropout in training.
        gamma_init: initial value of gamma.
    """

    @configurable
    def __init__(
        self,
        text_dim: int,
        visual_dim: int,
        *,
        hidden_dim: int = 256,
        num_layers: int = 3,
        num_heads: int = 4,
        dropout: float = 0.1,
        gamma_init: float = 1e-4,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        if not num_layers:  # no parameters either: with several processes, all need gradients
            return
        # Norms first: CLIP is trained on unit vectors, so the length of these is arbitrary.
        self.visual_proj = nn.Sequential(
            nn.LayerNorm(visual_dim), nn.Linear(visual_dim, hidden_dim), nn.LayerNorm(hidden_dim)
        )
        self.text_proj = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, hidden_dim))
        self.layers = nn.ModuleList(
            _ContextLayer(hidden_dim, num_heads, dropout) for _ in range(num_layers)
        )
        self.out_proj = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, text_dim))
        self.gamma = nn.Parameter(torch.full((text_dim,), gamma_init))

    @classmethod
    def from_config(cls, cfg, text_dim: int, visual_dim: int) -> dict:
        check_positive(cfg, "MODEL.CONTEXT_DECODER", "HIDDEN_DIM", "NUM_HEADS")
        check_share(cfg, "MODEL.CONTEXT_DECODER", "DROPOUT")
        node = cfg.MODEL.CONTEXT_DECODER
        return {
            "text_dim": text_dim,
            "visual_dim": visual_dim,
            "hidden_dim": node.HIDDEN_DIM,
            "num_layers": node.NUM_LAYERS,
            "num_heads": node.NUM_HEADS,
            "dropout": node.DROPOUT,
            "gamma_init": cfg.MODEL.TDOS.GAMMA_INIT,
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, which would pull them to 0."""
        return {"gamma"}

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """
        Args:
            text: (N, D_t), the same for all images.
            visual: (B, S, D_v), image embedding and dense tokens.

        Returns:
            (B, N, D_t).
        """
        # From here on every image has its own text embeddings.
        text = text.expand(visual.shape[0], -1, -1)  # (B, N, D_t)
        if not self.num_layers:
            return text
        memory = self.visual_proj(visual)
        x = self.text_proj(text)
        for layer in self.layers:
            x = layer(x, memory)
        # gamma (D_t,) is small initially, so that the output starts as CLIP's text embeddings.
        return text + self.gamma * self.out_proj(x)


class _ContextLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        # No bias in queries, keys and values, as in DenseCLIP.
        self.self_attention = Attention(dim, num_heads, bias=False, dropout=dropout)
        self.cross_attention = Attention(dim, num_heads, bias=False, dropout=dropout)
        self.feed_forward = FeedForward(dim, 4 * dim, nn.GELU)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attention(y, y, y)
        # Memory needs no norm here, as visual_proj ends with one.
        x = x + self.cross_attention(self.norms[1](x), memory, memory)
        return x + self.dropout(self.feed_forward(self.norms[2](x)))
