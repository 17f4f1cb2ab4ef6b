"""OOD semantic augmentation: perturb features of a region instead of pasting objects into images.

Where to perturb is chosen once per sample (:class:`SemanticAugmentation`); how, depends on the
encoder: :class:`QueryNoise` in a ViT, :class:`StyleMixing` in a ResNet. On the features' grid a
region is the share of each cell that it covers, by which perturbed and clean features mix. All
draws come from torch's generator and are made per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..value_checks import check_choice, check_interval, check_positive, check_share

REGIONS = ("labelled", "random", "both")
SHAPES = ("ellipse", "segment")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class SemanticAugmentation(nn.Module):
    """Choose what is perturbed in each sample of a batch.

    Args:
        num_known: K; label K is OOD, labels above it are void.
        region: "labelled" = pixels labelled OOD, as the released code means it; "random" = random
            ellipses of known pixels, which become OOD targets (OOD without any inserted object);
            "both".
        prob: probability that a sample is perturbed.
        num_ellipses: range of their number in a perturbed sample.
        size: range of an ellipse's larger diameter, as a share of the image's shorter side.
        shape: of random regions: whole ellipses ("ellipse"), or what an ellipse has of the class at
            its centre ("segment"), so that the region ends where the class does.

    Raises:
        UserError: unknown region or shape.
    """

    def __init__(
        self,
        num_known: int,
        *,
        region: str = "labelled",
        prob: float = 0.5,
        num_ellipses: tuple[int, int] = (1, 3),
        size: tuple[float, float] = (0.1, 0.5),
        shape: str = "ellipse",
    ) -> None:
        super().__init__()
        check_choice("MODEL.SEM_AUG.REGION", region, REGIONS)
        check_choice("MODEL.SEM_AUG.SHAPE", shape, SHAPES)
        self.num_known, self.region, self.prob = num_known, region, prob
        self.num_ellipses, self.size, self.shape = num_ellipses, size, shape

    @torch.no_grad()
    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            labels: (B, H, W) int64 in 0..K and 255 (void), left as it is.

        Returns:
            The labels to train with, and the region (B, H, W) float32: 1 = perturb, 0 = leave.
            Samples that are not chosen keep their labels and have an empty region.
        """
        chosen = torch.rand(len(labels), 1, 1, device=labels.device) < self.prob
        if self.region == "labelled":
            return labels, (chosen & (labels == self.num_known)).float()
        picked = chosen & self._ellipses(labels) & (labels < self.num_known)  # neither void nor OOD
        new_labels = labels.masked_fill(picked, self.num_known)
        if self.region == "both":
            picked = chosen & (new_labels == self.num_known)
        return new_labels, picked.float()

    def _ellipses(self, labels: Tensor) -> Tensor:
        """(B, H, W) bool: pixels in one of a sample's random ellipses."""
        (batch, height, width), device = labels.shape, labels.device
        fewest, most = self.num_ellipses
        # Number, diameter, axis ratio, angle and centre (y, x). All samples draw the largest
        # number and drop what is beyond their own: one tensor, no loop over samples.
        u = torch.rand(6, batch, most, 1, 1, device=device)
        count = fewest + (u[0, :, :1] * (most - fewest + 1)).floor()  # one number per sample
        smallest, largest = self.size
        a = (smallest + (largest - smallest) * u[1]) * min(height, width) / 2
        b = a * (0.5 + 0.5 * u[2])
        # Half a turn has every direction of an ellipse.
        cosine, sine = torch.cos(math.pi * u[3]), torch.sin(math.pi * u[3])
        y = torch.arange(height, device=device)[:, None] + 0.5 - u[4] * height  # 0.5: pixel centres
        x = torch.arange(width, device=device) + 0.5 - u[5] * width
        along, across = cosine * x + sine * y, cosine * y - sine * x
        inside = (along / a).square() + (across / b).square() <= 1
        if self.shape == "segment":
            centre = (u[4] * height).long() * width + (u[5] * width).long()  # (B, most, 1, 1)
            classes = labels.flatten(1).gather(1, centre.flatten(1))
            inside &= labels[:, None] == classes[..., None, None]
        return (inside & (torch.arange(most, device=device).view(1, -1, 1, 1) < count)).any(1)


class QueryNoise(nn.Module):
    """Noise on the queries of selected tokens of a ViT's attention; keys and values stay clean.

    The noise of a token is a draw from a normal with the mean and standard deviation of the
    token's own channels, times ``scale``. The released code perturbs the class token's query and
    then takes that token's clean output, which changes nothing (defect 5), and needs a square grid
    (defect 12).

    Args:
        blocks: blocks that perturb, counted from 1, or from the end where negative.
        scale: 0 = no noise.
    """

    def __init__(self, blocks: Sequence[int] = (-1,), scale: float = 1.0) -> None:
        super().__init__()
        self.blocks, self.scale = tuple(blocks), scale

    def in_blocks(self, depth: int) -> set[int]:
        """The perturbing blocks of ``depth``, counted from 1.

        Raises:
            UserError: there is no such block.
        """
        for block in self.blocks:
            if block == 0 or abs(block) > depth:
                raise UserError(f"MODEL.SEM_AUG.BLOCKS: no block {block} among 1 to {depth}")
        return {block if block > 0 else depth + 1 + block for block in self.blocks}

    def forward(self, tokens: Tensor, cover: Tensor, attend: Attend) -> Tensor:
        """Attend with noisy and with clean queries, and mix.

        Args:
            tokens: (B, P + h * w, C), P class and register tokens first, as they enter attention.
            cover: (B, 1, h, w), share of a token's patch that is perturbed; see :func:`coverage`.
            attend: query, key, value -> output, each (B, P + h * w, C).

        Returns:
            (B, P + h * w, C). The first P tokens and those with coverage 0 are as without noise.
        """
        std, mean = torch.std_mean(tokens, dim=-1, keepdim=True, correction=0)
        noise = self.scale * (mean + std * torch.randn_like(tokens))
        # Both are needed: a cell that the region covers in part is a mixture.
        clean = attend(tokens, tokens, tokens)
        noisy = attend(tokens + noise, tokens, tokens)
        cells = cover.flatten(2).transpose(1, 2)  # (B, h * w, 1)
        share = F.pad(cells, (0, 0, tokens.shape[1] - cells.shape[1], 0)).to(clean.dtype)
        return clean + share * (noisy - clean)


class StyleMixing(nn.Module):
    """Move the style of a region, its channel means and deviations, towards that of the rest.

    x + cover * alpha * (AdaIN(x) - x), where AdaIN normalises by the statistics of the region
    itself (the released code takes those of the whole map and ignores alpha, defect 19) and takes
    on those of the rest, changed at random where ``noise`` is not 0. A sample whose region is empty
    or everything stays as it is.

    Args:
        alpha: 0 = no change, 1 = the style of the rest.
        noise: deviation of the random change of each channel's mean, in units of the channel's
            deviation over the rest, and of the logarithm of its deviation.
    """

    def __init__(self, alpha: float = 0.2, noise: float = 0.0) -> None:
        super().__init__()
        self.alpha, self.noise = alpha, noise

    def forward(self, features: Tensor, region: Tensor) -> Tensor:
        """
        Args:
            features: (B, C, h, w).
            region: (B, H, W) in [0, 1] at any resolution.

        Returns:
            (B, C, h, w).
        """
        cover = coverage(region, features.shape[-2:])
        x = features.float()  # squares, summed over a map, leave the range of half precision
        mean, std = _statistics(x, cover)
        other_mean, other_std = _statistics(x, 1 - cover)
        if self.noise:  # no draw without: the random numbers after it stay the same
            shift, factor = self.noise * torch.randn(2, *other_mean.shape, device=x.device)
            other_mean, other_std = other_mean + shift * other_std, other_std * factor.exp()
        styled = (x - mean) / std * other_std + other_mean
        # With nothing or everything covered, one of the two styles does not exist.
        both = (cover > 0).flatten(1).any(1) & (cover < 1).flatten(1).any(1)
        share = self.alpha * cover * both.view(-1, 1, 1, 1)
        return (x + share * (styled - x)).to(features.dtype)


def coverage(region: Tensor, grid: Sequence[int]) -> Tensor:
    """Share of each cell that a region covers: (B, H, W) -> (B, 1, h, w), mean over the cell."""
    return F.adaptive_avg_pool2d(region[:, None], tuple(grid))


def _statistics(x: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over positions, (B, C, 1, 1) each."""
    # The clamp is for an empty region, whose statistics nobody uses; they must be finite.
    weight = weight / weight.sum((-2, -1), keepdim=True).clamp(min=eps)
    mean = (weight * x).sum((-2, -1), keepdim=True)
    variance = (weight * (x - mean).square()).sum((-2, -1), keepdim=True)
    return mean, (variance + eps).sqrt()  # the gradient of sqrt(0) is infinite


def build_augmentation(cfg, num_known: int) -> SemanticAugmentation | None:
    """What chooses the region that is perturbed in training; None where it is off."""
    check_share(cfg, "MODEL.SEM_AUG", "ALPHA", "PROB")
    check_positive(cfg, "MODEL.SEM_AUG", "NUM")
    check_interval(cfg, "MODEL.SEM_AUG", "NUM", "SIZE")
    node = cfg.MODEL.SEM_AUG
    if not node.ENABLED:
        return None
    return SemanticAugmentation(
        num_known, region=node.REGION, prob=node.PROB, num_ellipses=node.NUM, size=node.SIZE,
        shape=node.SHAPE,
    )  # fmt: skip
