"""CLIP's two encoders, opened: the only file that walks open_clip's modules.

open_clip's public ``encode_image`` and ``encode_text`` give one vector per image or text. TDOS also
needs the tokens of intermediate blocks, dense tokens in the space of CLIP's text embeddings, image
sizes other than the trained one, and learnable vectors among the text tokens. Parity with the
public functions is tested to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ImageTokens:
    """What a CLIP image encoder gives for B images on an (h, w) grid of patches.

    Attributes:
        taps: un-normalised patch tokens after the chosen blocks, each (B, C, h, w).
        embedding: (B, D), CLIP's image embedding (not normalised).
        dense: (B, D, h, w), patch tokens in the same space (not normalised).
    """

    taps: list[Tensor]
    embedding: Tensor
    dense: Tensor


class ViTTower(nn.Module):
    """CLIP's ViT image encoder for any image size.

    Args:
        visual: the ``visual`` of an open_clip ``CLIP`` with class-token pooling.
        taps: numbers of the blocks, counted from 1, whose output is returned.
    """

    def __init__(self, visual: nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.visual = visual
        self.taps = tuple(taps)
        self.patch_size: int = visual.patch_size[0]
        self.grid_size: tuple[int, int] = tuple(visual.grid_size)
        self.width: int = visual.conv1.out_channels
        self.embed_dim: int = visual.proj.shape[1]

    def forward(self, images: Tensor) -> ImageTokens:
        """Encode normalised images (B, 3, H, W), H and W multiples of the patch size."""
        visual = self.visual
        x = visual.conv1(images)
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._positions(grid).to(x.dtype)
        x = visual.ln_pre(x)
        taps = []
        for number, block in enumerate(visual.transformer.resblocks, start=1):
            x = block(x)
            if number in self.taps:
                taps.append(_to_map(x[:, 1:], grid))
        x = visual.ln_post(x) @ visual.proj
        return ImageTokens(taps, x[:, 0], _to_map(x[:, 1:], grid))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The positional table (1 + h * w, C) for ``grid``; the stored one stays as it is."""
        table = self.visual.positional_embedding
        if tuple(grid) == self.grid_size:
            return table
        old = table[1:].T.reshape(1, -1, *self.grid_size)
        # float32: bicubic is not there for half precision on every device
        new = F.interpolate(old.float(), size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], new.flatten(2)[0].T.to(table.dtype)])


class TextTower(nn.Module):
    """CLIP's text transformer on token embeddings instead of token numbers."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)

    @property
    def width(self) -> int:
        """C, channels of a token embedding."""
        return self.token_embedding.embedding_dim

    @property
    def max_length(self) -> int:
        """Tokens that the positional table holds."""
        return len(self.positional_embedding)

    @property
    def embed_dim(self) -> int:
        """D, channels of a text embedding."""
        return self.text_projection.shape[1]

    def forward(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Encode token embeddings.

        Args:
            tokens: (N, L, C) without positions, L <= ``max_length``.
            end: (N,) index of each sequence's end token, where CLIP reads the embedding.
                Attention is causal, so what stands behind it does not matter.

        Returns:
            (N, D) text embeddings, not normalised.
        """
        length = tokens.shape[1]
        x = tokens + self.positional_embedding[:length].to(tokens.dtype)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = self.ln_final(x)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
