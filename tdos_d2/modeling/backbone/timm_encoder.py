"""Image encoders of timm as Detectron2 backbones: any model that returns feature maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ...errors import UserError
from ..semantic_augmentation import QueryNoise, StyleMixing, coverage
from .freezable_encoder import TAPS, FreezableEncoder
from .timm_weights import build_network, first_line

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
class TimmBackbone(FreezableEncoder):
    """Four feature maps of a timm encoder; the last one is also the dense embedding.

    CNNs and hierarchical transformers give maps of strides 4, 8, 16 and 32, plain ViTs maps of one
    stride after blocks round(L * {4, 6, 8, 12} / 12) of L, after the encoder's final norm.
    """

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        levels: Sequence[int] = (),
        frozen: bool = True,
        frozen_norm: bool = False,
        pretrained: bool = True,
        augmentation: StyleMixing | QueryNoise | None = None,
    ) -> None:
        """
        Args:
            network: a timm model with ``forward_intermediates``; layers that no level needs are
                removed from it.
            levels: four indices into its ``feature_info``, finest first; empty = see above.
            frozen, frozen_norm: ``whole`` and ``norms`` of :meth:`freeze`.
            pretrained: whether the weights are pretrained, so that ``VisionLoss`` can be used.
            augmentation: style mixing for the first map of a pyramid, query noise for a ViT.

        Raises:
            UserError: a level does not exist, the encoder has no four suitable maps, or it takes
                only images of one size; on the meta device the last is not checked.
        """
        super().__init__()
        info = list(network.feature_info)
        self.levels = _levels([layer["reduction"] for layer in info], list(levels))
        taps = [info[level] for level in self.levels]
        self.channels = [layer["num_chs"] for layer in taps]
        self.strides = [layer["reduction"] for layer in taps]
        self.dense_channels = self.channels[-1]
        self.is_pyramid = len(set(self.strides)) > 1
        # With several processes, parameters without gradients would stop training.
        network.prune_intermediate_layers(self.levels, prune_norm=self.is_pyramid, prune_head=True)
        self.network = network
        self.pretrained = pretrained
        self._region = _Region()
        if augmentation is not None:
            self._attach(augmentation, taps[0]["module"])
        self._check_size()
        self.freeze(frozen, frozen_norm)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        node, noise = cfg.MODEL.TIMM, cfg.MODEL.SEM_AUG
        network = build_network(node.NAME, node.WEIGHTS)
        if not node.WEIGHTS:
            logger.info("MODEL.TIMM.WEIGHTS is empty: the image encoder starts from random weights")
        augmentation = None
        if noise.ENABLED:
            is_vit = len({layer["reduction"] for layer in network.feature_info}) == 1
            # As for CLIP's two kinds: only a ViT has queries of patches that can get noise.
            augmentation = (
                QueryNoise(noise.BLOCKS, noise.NOISE)
                if is_vit
                else StyleMixing(noise.ALPHA, noise.STYLE_NOISE)
            )
        loaded = bool(node.WEIGHTS)
        return {
            "network": network,
            "levels": node.LEVELS,
            "frozen": node.FREEZE and loaded,
            "frozen_norm": cfg.MODEL.BACKBONE.FREEZE_NORM and loaded,
            "pretrained": loaded,
            "augmentation": augmentation,
        }

    def encode(self, images: Tensor, region: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Taps; the dense embedding is the last of them, the image embedding (B, C) its mean."""
        self._region.now = region
        try:
            taps = self.network.forward_intermediates(
                images,
                indices=self.levels,
                norm=not self.is_pyramid,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        finally:
            self._region.now = None
        return taps, taps[-1].mean(dim=(2, 3)), taps[-1]

    def _check_size(self) -> None:
        """UserError if images of a size that is not the encoder's own cannot be encoded."""
        weight = next(self.network.parameters())
        if weight.is_meta:  # slower than on the CPU, and some networks read values
            return
        # Of a valid size for every stage, and not square. Some networks need 75 pixels.
        height, width = 4 * self.size_divisibility, 5 * self.size_divisibility
        # Changes no statistics and draws no random numbers. freeze() sets the mode, which also
        # empties caches of attention biases.
        self.network.eval()
        try:
            with torch.no_grad():
                self.encode(weight.new_zeros(1, 3, height, width), None)
        except Exception as error:  # networks raise different types
            about = getattr(self.network, "pretrained_cfg", {})
            name = about.get("architecture", type(self.network).__name__)
            own = "x".join(map(str, about.get("input_size", ())[1:])) or "one size"
            raise UserError(
                f"MODEL.TIMM.NAME: {name} takes only images of {own}, not of other multiples of "
                f"{self.size_divisibility} such as {height}x{width}: {first_line(error)}"
            ) from error

    def _attach(self, augmentation: StyleMixing | QueryNoise, first: str) -> None:
        """Insert the perturbation into the network, for which timm has no argument."""
        if isinstance(augmentation, QueryNoise):
            for number in augmentation.in_blocks(len(self.network.blocks)):
                block = self.network.blocks[number - 1]
                block.attn = _NoisyAttention(
                    block.attn, augmentation, self.strides[0], self._region
                )
            return
        # Some networks, such as Swin, return (B, h, w, C).
        channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        mix = partial(_mix, augmentation, self._region, channels_last)
        self.network.get_submodule(first).register_forward_hook(mix)


class _Region:
    """The region of the present call, for hooks, as timm's forward takes only images.

    An object of its own, which a copy of the encoder has too: a function that names the encoder
    would be that of the original in the copy (the reference of ``VisionLoss``).
    """

    now: Tensor | None = None


def _mix(
    augmentation: StyleMixing, region: _Region, channels_last: bool,
    module: nn.Module, inputs: tuple, output: Tensor,
) -> Tensor:  # fmt: skip
    """Forward hook of the first map's layer."""
    if region.now is None:
        return output
    features = output.permute(0, 3, 1, 2) if channels_last else output
    features = augmentation(features, region.now)
    return features.permute(0, 2, 3, 1) if channels_last else features


class _NoisyAttention(nn.Module):
    """Self-attention of a timm ViT in which only the queries may be perturbed.

    One linear layer computes queries, keys and values. With noise, its output is composed of the
    noisy input's queries and the clean input's keys and values.
    """

    def __init__(
        self,
        attention: nn.Module,
        noise: QueryNoise,
        stride: int,
        region: _Region,
    ) -> None:
        super().__init__()
        self.attention, self.noise = attention, noise
        self.stride, self.region = stride, region

    def forward(self, tokens: Tensor, **kwargs) -> Tensor:
        region = self.region.now
        if region is None:
            return self.attention(tokens, **kwargs)
        cover = coverage(region, [side // self.stride for side in region.shape[-2:]])
        return self.noise(tokens, cover, lambda query, key, _: self._attend(query, key, kwargs))

    def _attend(self, query: Tensor, tokens: Tensor, kwargs: dict) -> Tensor:
        if query is tokens:  # the call of QueryNoise without noise
            return self.attention(tokens, **kwargs)
        # Without such a layer, or if timm uses its weight without calling it, nothing is swapped.
        joint = getattr(self.attention, "qkv", None) or nn.Identity()
        swapped: list[Tensor] = []

        def swap(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            noisy = F.linear(query, module.weight, module.bias)
            width = output.shape[-1] // 3  # queries, keys, values side by side
            swapped.append(noisy)
            return torch.cat([noisy[..., :width], output[..., width:]], dim=-1)

        # Only for this call, so that calls without noise and exported models are not affected.
        handle = joint.register_forward_hook(swap)
        try:
            result = self.attention(tokens, **kwargs)
        finally:
            handle.remove()
        if not swapped:
            raise UserError(
                "MODEL.SEM_AUG.ENABLED: the attention of this encoder has no projection whose "
                "queries can be perturbed alone: switch semantic augmentation off"
            )
        return result


def _levels(reductions: list[int], levels: list[int]) -> list[int]:
    """The four levels requested, or the network's default levels; UserError if there are none."""
    there = f"MODEL.TIMM.LEVELS: this encoder has levels 0 to {len(reductions) - 1} of strides "
    there += ", ".join(map(str, reductions))
    if not levels and len(set(reductions)) == 1:
        levels = [round(len(reductions) * k / 12) - 1 for k in (4, 6, 8, 12)]  # counted from 0
    elif not levels:
        levels = [reductions.index(stride) for stride in (4, 8, 16, 32) if stride in reductions]
    ordered = len(levels) == len(TAPS) and sorted(set(levels)) == levels
    if not ordered or levels[0] < 0 or levels[-1] >= len(reductions):
        raise UserError(f"{there}; four of them in order are needed, not {levels}")
    strides = [reductions[level] for level in levels]
    if len(set(strides)) > 1 and any(b != 2 * a for a, b in pairwise(strides)):
        raise UserError(f"{there}; four of one stride or of doubling strides are needed")
    return levels
