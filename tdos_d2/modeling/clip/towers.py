"""CLIP's two encoders with access to their intermediate results.

open_clip's public ``encode_image`` and ``encode_text`` give one vector per image or text. TDOS also
needs intermediate and dense tokens, other image sizes than the trained one, and learnable vectors
among the text tokens, so this file, and no other, uses open_clip's inner modules. Tests check that
the results agree with the public functions to 1e-5.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..semantic_augmentation import coverage


class ImageTokens(NamedTuple):
    """Outputs of a CLIP image encoder for B images.

    Attributes:
        taps: maps after the chosen blocks or stages, each (B, C, h, w).
        embedding: (B, D), CLIP's image embedding (not normalised).
        dense: (B, D, h, w), local embeddings in the same space (not normalised).
    """

    taps: list[Tensor]
    embedding: Tensor
    dense: Tensor


class ViTTower(nn.Module):
    """CLIP's ViT image encoder for any image size.

    Args:
        visual: the ``visual`` of an open_clip ``CLIP`` with class-token pooling.
        taps: numbers of the blocks, counted from 1, whose output is returned.
        noise: a ``QueryNoise`` for the attention of some blocks.
    """

    def __init__(
        self, visual: nn.Module, taps: Sequence[int], noise: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.visual = visual
        self.noise = noise
        self.noisy_blocks = noise.in_blocks(len(visual.transformer.resblocks)) if noise else set()
        self.taps = tuple(taps)
        self.channels = [visual.conv1.out_channels] * len(self.taps)
        self.strides = [visual.patch_size[0]] * len(self.taps)
        self.grid_size: tuple[int, int] = tuple(visual.grid_size)
        self.embed_dim: int = visual.proj.shape[1]

    def forward(self, images: Tensor, region: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, H, W), H and W multiples of the patch size.

        ``region`` (B, H, W) in [0, 1] is where ``noise`` perturbs queries; None: no perturbation.
        """
        visual = self.visual
        x = visual.conv1(images)
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (B, 1, C)
        # The class embedding once, as in CLIP: the published code adds it twice (defect 13).
        x = torch.cat([class_token, x], dim=1)
        x = x + _resize_positions(visual.positional_embedding, self.grid_size, grid).to(x.dtype)
        x = visual.ln_pre(x)
        taps = []
        with _fused_attention:
            for number, block in enumerate(visual.transformer.resblocks, start=1):
                if region is not None and number in self.noisy_blocks:
                    x = self._perturbed(block, x, coverage(region, grid))
                else:
                    x = block(x)
                if number in self.taps:
                    taps.append(_to_map(x[:, 1:], grid))  # without the class token
        # CLIP does this for the class token; the same two steps map patch tokens to text space.
        x = visual.ln_post(x) @ visual.proj
        return ImageTokens(taps, x[:, 0], _to_map(x[:, 1:], grid))

    def _perturbed(self, block: nn.Module, x: Tensor, cover: Tensor) -> Tensor:
        """``block`` for tokens (B, 1 + h * w, C), with noise on queries where ``cover`` > 0."""
        # The steps of open_clip's ResidualAttentionBlock, with other queries in the attention.
        attended = self.noise(block.ln_1(x), cover, block.attention)
        x = x + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))


class ResNetTower(nn.Module):
    """CLIP's modified ResNet for any image size.

    The image embedding is CLIP's: the mean token attends to all tokens through the query, key and
    value projections. Dense embeddings use the value projection in all three places ("v-v"
    attention, CLIP Surgery, arXiv 2304.05653): in CLIP's training only the mean token was a query,
    so queries of single locations were never trained, while values are what the output projection
    maps to text space, and attention among them preserves each location's own content.

    Args:
        visual: the ``visual`` of an open_clip ``CLIP`` with a ModifiedResNet.
        mixing: a ``StyleMixing`` for the first stage's map.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, visual: nn.Module, mixing: nn.Module | None = None) -> None:
        super().__init__()
        self.visual = visual
        self.mixing = mixing
        side = visual.image_size // self.strides[-1]
        self.grid_size: tuple[int, int] = (side, side)
        self.channels = [stage[-1].conv3.out_channels for stage in self._stages()]
        self.embed_dim: int = visual.attnpool.c_proj.out_features

    def forward(self, images: Tensor, region: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, H, W), H and W multiples of 32.

        ``region`` (B, H, W) in [0, 1] is where ``mixing`` changes the first stage's map; None: no
        change. The taps are the maps of the four stages.
        """
        x = self.visual.stem(images)
        taps = []
        for stage in self._stages():
            x = stage(x)
            # The first stage only, as published: early features carry style more than content.
            if not taps and region is not None and self.mixing is not None:
                x = self.mixing(x, region)
            taps.append(x)
        return ImageTokens(taps, *self._pool(x))

    def _stages(self) -> list[nn.Module]:
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> image embedding (B, D) and dense embeddings (B, D, h, w)."""
        pool, grid = self.visual.attnpool, x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # the mean token first
        x = x + _resize_positions(pool.positional_embedding, self.grid_size, grid).to(x.dtype)
        query, key, value = (
            projection(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for projection, tokens in ((pool.q_proj, x[:, :1]), (pool.k_proj, x), (pool.v_proj, x))
        )
        embedding = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, C / heads)
        dense = F.scaled_dot_product_attention(value[:, :, 1:], value, value)
        tokens = torch.cat([embedding, dense], dim=2).transpose(1, 2).flatten(2)  # heads joined
        tokens = pool.c_proj(tokens)
        return tokens[:, 0], _to_map(tokens[:, 1:], grid)


class TextTower(nn.Module):
    """CLIP's text transformer with token embeddings instead of token numbers as input."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.width: int = clip.token_embedding.embedding_dim  # C, channels of a token embedding
        self.max_length = len(clip.positional_embedding)  # length of the positional table in tokens
        self.embed_dim: int = clip.text_projection.shape[1]  # D, channels of a text embedding
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)

    def forward(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Encode token embeddings.

        Args:
            tokens: (N, L, C) without positions, L <= ``max_length``.
            end: (N,) index of each sequence's end token, where CLIP reads the embedding.
                Attention is causal, so tokens after it have no effect.

        Returns:
            (N, D) text embeddings, not normalised.
        """
        length = tokens.shape[1]
        x = tokens + self.positional_embedding[:length].to(tokens.dtype)
        # The upper left part of a causal mask is the causal mask of a shorter sequence.
        with _fused_attention:
            x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = self.ln_final(x)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection


class _FusedAttention:
    """Let nn.MultiheadAttention use ``scaled_dot_product_attention`` also without gradients.

    Its "fast path" for evaluation stores the attention matrix, and is slower. The switch is one of
    the process: the first thread that enters turns it off, the last that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                torch.backends.mha.set_fastpath_enabled(self._before)


_fused_attention = _FusedAttention()


def _resize_positions(table: Tensor, stored: tuple[int, int], grid: Sequence[int]) -> Tensor:
    """The positional table (1 + h * w, C) for an (h, w) ``grid``; ``table`` is not changed."""
    # An exported program must work for all grids, so it cannot have a branch for one.
    if not torch.compiler.is_compiling() and tuple(grid) == stored:
        return table
    old = table[1:].T.reshape(1, -1, *stored)  # (1, C, h, w), without the class token
    # In float32, as some devices lack bicubic interpolation in half precision.
    new = F.interpolate(old.float(), size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], new.flatten(2)[0].T.to(table.dtype)])


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
