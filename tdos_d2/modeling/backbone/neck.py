"""The trainable necks, which turn an encoder's four maps into a pyramid of strides 4, 8, 16, 32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import FPN, Backbone
from torch import Tensor, nn

from ...errors import UserError
from ...value_checks import check_positive
from ..registry import NECK_REGISTRY

# Stride of the finest level, exact if the patch size is a power of two (14 gives 3.5).
FINEST_STRIDE = 4


@NECK_REGISTRY.register()
class ScaleNeck(nn.Module):
    """Rescale ViT taps by deconvolution and pooling (ViT-Adapter/DenseCLIP style).

    The published code freezes these layers with the backbone, as random projections (defect 6);
    here they are trained. Every level keeps the channels of its tap.

    Args:
        in_shapes: the four taps, finest level first, all of one stride (the patch size).
        norm: normalisation between two deconvolutions, a name of Detectron2's ``get_norm``.

    Raises:
        UserError: taps of different strides.
    """

    @configurable
    def __init__(self, in_shapes: Sequence[ShapeSpec], norm: str = "LN") -> None:
        super().__init__()
        stride, *others = sorted({shape.stride for shape in in_shapes})
        if others:
            raise UserError(
                "MODEL.NECK.NAME: ScaleNeck is for the taps of a ViT, which have one stride; "
                f"these have strides {[stride, *others]}"
            )
        # Number of doublings from the patch grid to the finest level; one less per further level.
        octaves = round(math.log2(stride / FINEST_STRIDE))
        self.levels = nn.ModuleList(
            _rescale(shape.channels, octaves - level, norm) for level, shape in enumerate(in_shapes)
        )
        self.channels = [shape.channels for shape in in_shapes]
        self.strides = [stride * 2.0 ** (level - octaves) for level in range(len(in_shapes))]
        self.size_divisibility = int(self.strides[-1])  # so that every level has whole cells

    @classmethod
    def from_config(cls, cfg, in_shapes: Sequence[ShapeSpec], num_queries: int) -> dict:
        return {"in_shapes": in_shapes, "norm": cfg.MODEL.NECK.NORM}

    def forward(self, taps: Sequence[Tensor], score_map: Tensor | None = None) -> list[Tensor]:
        """(B, C, h, w) taps -> the same channels at strides 4, 8, 16, 32 (for patch 8, 16, 32).

        ``score_map`` is ignored; other necks use it.
        """
        return [level(tap) for level, tap in zip(self.levels, taps, strict=True)]


@NECK_REGISTRY.register()
class FPNNeck(nn.Module):
    """A feature pyramid whose last input is the last tap with the score map appended (DenseCLIP).

    Args:
        in_shapes: the four taps, finest level first, each with twice the previous stride.
        score_channels: N, channels of the score map.
        channels: channels of every level.
        norm: normalisation after every convolution, a name of Detectron2's ``get_norm``, or "".

    Raises:
        UserError: taps whose strides do not double.
    """

    @configurable
    def __init__(
        self,
        in_shapes: Sequence[ShapeSpec],
        score_channels: int,
        channels: int = 768,
        norm: str = "LN",
    ) -> None:
        super().__init__()
        self.strides = [shape.stride for shape in in_shapes]
        if any(b != 2 * a for a, b in pairwise(self.strides)):
            raise UserError(
                "MODEL.NECK.NAME: FPNNeck needs taps whose strides double, like those of a "
                f"ResNet; these have strides {self.strides}"
            )
        *finer, last = in_shapes
        joined = ShapeSpec(channels=last.channels + score_channels, stride=last.stride)
        # FPN looks up its backbone's maps by name; here these are numbers, finest first.
        maps = _GivenMaps([*finer, joined])
        self.pyramid = FPN(maps, list(maps.shapes), channels, norm=norm)
        self.channels = [channels] * len(in_shapes)
        self.size_divisibility = self.strides[-1]  # so that every level has whole cells

    @classmethod
    def from_config(cls, cfg, in_shapes: Sequence[ShapeSpec], num_queries: int) -> dict:
        check_positive(cfg, "MODEL.NECK", "CHANNELS")
        node = cfg.MODEL.NECK
        return {
            "in_shapes": in_shapes,
            "score_channels": num_queries,
            "channels": node.CHANNELS,
            "norm": node.NORM,
        }

    def forward(self, taps: Sequence[Tensor], score_map: Tensor) -> list[Tensor]:
        """
        Args:
            taps: (B, C_i, h_i, w_i), finest first.
            score_map: (B, N, h, w), raw cosines on the grid of the last tap.

        Returns:
            (B, ``channels``, h_i, w_i), finest first.
        """
        *finer, last = taps
        joined = [*finer, torch.cat([last, score_map], dim=1)]  # both on the encoder's last grid
        return list(self.pyramid({str(i): tap for i, tap in enumerate(joined)}).values())


class _GivenMaps(Backbone):
    """A backbone for Detectron2's FPN that returns its inputs."""

    def __init__(self, shapes: Sequence[ShapeSpec]) -> None:
        super().__init__()
        self.shapes = {str(i): shape for i, shape in enumerate(shapes)}

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


def _rescale(channels: int, octaves: int, norm: str) -> nn.Module:
    """Layers that enlarge a map by 2 ** octaves (shrink it if negative)."""
    if octaves <= 0:
        return nn.MaxPool2d(2**-octaves) if octaves else nn.Identity()
    layers: list[nn.Module] = []
    for octave in range(octaves):
        if octave:
            layers += [get_norm(norm, channels) or nn.Identity(), nn.GELU()]  # None for ""
        layers.append(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
