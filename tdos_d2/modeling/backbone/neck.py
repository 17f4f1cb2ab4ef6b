"""The trainable neck: four ViT maps of one stride become a pyramid of strides 4, 8, 16, 32."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

# Stride of the finest level, exact where the patch size is a power of two (14 gives 3.5).
FINEST_STRIDE = 4


class ScaleNeck(nn.Module):
    """Rescale ViT taps by deconvolution and pooling (ViT-Adapter/DenseCLIP style).

    The published code keeps these layers inside its frozen backbone, as fixed random projections
    (defect 6); here they are a module of their own, and trained.

    Args:
        in_shapes: the four taps, finest level first, all of one stride (the patch size).
        norm: normalisation between two deconvolutions, a name of Detectron2's ``get_norm``.
    """

    def __init__(self, in_shapes: Sequence[ShapeSpec], norm: str = "LN") -> None:
        super().__init__()
        strides = {shape.stride for shape in in_shapes}
        if len(strides) != 1:
            raise ValueError(f"the taps of a ViT have one stride, these have {sorted(strides)}")
        stride = strides.pop()
        octaves = round(math.log2(stride / FINEST_STRIDE))
        self.levels = nn.ModuleList(
            _rescale(shape.channels, octaves - level, norm)
            for level, shape in enumerate(in_shapes)
        )
        self.channels = [shape.channels for shape in in_shapes]
        self.strides = [stride * 2.0 ** (level - octaves) for level in range(len(in_shapes))]

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this, so that every level has whole cells."""
        return int(self.strides[-1])

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) taps -> the same channels at strides 4, 8, 16, 32 (for patch 8, 16, 32)."""
        return [level(tap) for level, tap in zip(self.levels, taps, strict=True)]


def _rescale(channels: int, octaves: int, norm: str) -> nn.Module:
    """Enlarge a map by 2 ** octaves (shrink it where negative)."""
    if octaves <= 0:
        return nn.MaxPool2d(2**-octaves) if octaves else nn.Identity()
    layers: list[nn.Module] = []
    for octave in range(octaves):
        if octave:
            layers += [get_norm(norm, channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
