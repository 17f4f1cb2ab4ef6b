"""Known-class scores S_c and anomaly scores of the merged queries, from one forward pass.

Notation: K known classes; Q = K + 1 merged queries; p(c | q) = softmax over K + 2 class logits
(known classes, OOD, no object); m_q(x) = mask logit; S_c(x) = sum_q p(c | q) sigmoid(m_q(x)) for
the known classes and for c = ood. S_c takes the place of a pixel's class logit in mask models (RbA,
arXiv 2211.14293), without any further softmax. All scores are larger for more anomalous pixels.

Two kinds of scores differ in what is resized to the image and averaged over windows:

- The logarithms ``log_s_ood`` and ``text_only`` are computed on the grid of the masks or of the
  score map, then resized and averaged as logarithms (a geometric mean): where S_ood is 0 in
  float32, its logarithm still ranks pixels, which would be lost in an average of S_ood.
- The functions of S, ``s_ood_softmax``, ``max_logit``, ``energy`` and ``rba``, are computed at the
  end, per pixel, from the resized and averaged S. So they are functions of the model's ``sem_seg``,
  as in the released code of TDOS (which applies its softmax last) and of RbA.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError


def class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """S_c of the K known classes and, as the last channel, of OOD.

    Args:
        class_logits: (B, K + 1, K + 2) of the merged queries.
        mask_logits: (B, K + 1, h, w).

    Returns:
        (B, K + 1, h, w) in [0, K + 1].
    """
    probabilities = class_logits.softmax(-1)[..., :-1]  # without "no object", the last
    # A sigmoid per mask, not a softmax over queries: masks may overlap, and S may exceed 1.
    return torch.einsum("bqc,bqhw->bchw", probabilities, mask_logits.sigmoid())


def log_s_ood(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """log S_ood = logsumexp_q(log p(ood | q) + logsigmoid(m_q)).

    It never computes ``log(sigmoid(x))``: in log space, saturated sigmoids do not cause ties.

    Args:
        class_logits: (B, K + 1, K + 2) of the merged queries.
        mask_logits: (B, K + 1, h, w).

    Returns:
        (B, h, w).
    """
    log_p = F.log_softmax(class_logits, dim=-1)[..., -2]  # (B, K + 1), OOD of K + 2 classes
    return torch.logsumexp(log_p[..., None, None] + _log_sigmoid(mask_logits), dim=1)


def _log_sigmoid(x: Tensor) -> Tensor:
    """``F.logsigmoid`` in operators that ONNX has.

    ``F.logsigmoid`` is exported as log(sigmoid(x)), which is inexact below -18 in ONNX Runtime and
    infinite where the sigmoid is 0.
    """
    return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs()))


def text_only(score_map: Tensor, temperature: float) -> Tensor:
    """log of OOD's share in softmax_c(cos_c / temperature): a score without the decoders.

    The score map's loss trains the same softmax.

    Args:
        score_map: (B, K + 1, h, w) merged cosines of dense image and text embeddings, OOD last.
        temperature: temperature of the score map's loss.

    Returns:
        (B, h, w) up to 0.
    """
    return F.log_softmax(score_map / temperature, dim=1)[:, -1]


def s_ood_softmax(s: Tensor) -> Tensor:
    """exp(S_ood) / sum_c exp(S_c) over known classes and OOD: the released code's last softmax.

    S is roughly in [0, 1], so the score's range is small; it ranks pixels differently from S_ood.

    Args:
        s: (K + 1, H, W), OOD last.

    Returns:
        (H, W) in [0, 1].
    """
    # Without a temperature, as in the published last step.
    return s.softmax(0)[-1]


def max_logit(s: Tensor) -> Tensor:
    """1 - max_c S_c over the known classes, (K + 1, H, W) -> (H, W)."""
    return 1 - s[:-1].amax(0)


def energy(s: Tensor) -> Tensor:
    """-logsumexp_c S_c over the known classes, (K + 1, H, W) -> (H, W); in [-1 - log K, -log K].

    The free energy (arXiv 2010.03759) at temperature 1 with S_c as class logits. The range holds if
    no S_c exceeds 1.
    """
    return -s[:-1].logsumexp(0)


def rba(s: Tensor) -> Tensor:
    """-sum_c tanh(S_c) over the known classes, (K + 1, H, W) -> (H, W); in [-K, 0].

    "Rejected by all" (RbA, arXiv 2211.14293): it is high where no known class claims the pixel.
    """
    # tanh, as in RbA, is bounded, so that no single class dominates the sum.
    return -s[:-1].tanh().sum(0)


# Functions of S only, computed per pixel at the end from the resized and averaged S.
PIXEL_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "s_ood_softmax": s_ood_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "rba": rba,
}
# The scores that "combined" adds, each in units of its upper tail on normal frames.
COMBINED = ("log_s_ood", "memory")
_PIXELS_OF_A_FRAME = 4096  # used for the weights: 120 MB for an hour of one frame per second
SCORES = ("log_s_ood", "text_only", "memory", "combined", *PIXEL_SCORES)


def needs_memory(names: Collection[str]) -> bool:
    """Whether one of the scores needs a ``FeatureMemory``."""
    return "memory" in names or "combined" in names


def check_score(name: str, key: str) -> None:
    """Raise UserError, naming the config key, if there is no score of that name."""
    if name not in SCORES:
        raise UserError(f"{key}: no score '{name}'; there are: {', '.join(SCORES)}")


class AnomalyScores(nn.Module):
    """Computes the requested scores, with S computed once for all of them.

    Between ``window_maps`` and ``finish`` the caller resizes and averages the maps. The score
    "combined" is the sum of ``COMBINED``, each minus its median on normal frames and divided by the
    distance from the median to its 99th percentile. :meth:`fit` measures these, so no anomalies are
    needed for the weights. A score that is high in parts of normal frames has less weight.

    Args:
        names: from SCORES.
        temperature: temperature of the score map's loss, for ``text_only``.

    Raises:
        UserError: unknown score.
    """

    def __init__(self, names: Iterable[str], temperature: float = 0.07) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))  # SCORE may be among EXTRA_SCORES, too
        self.temperature = temperature
        for name in self.names:
            check_score(name, "MODEL.TDOS.SCORE or MODEL.TDOS.EXTRA_SCORES")
        averaged = [name for name in self.names if name not in ("combined", *PIXEL_SCORES)]
        if "combined" in self.names:
            averaged += COMBINED
            # Median and unit of each score; 0 until they are measured.
            self.register_buffer("normal", torch.zeros(2, 2))
        self._averaged = tuple(dict.fromkeys(averaged))

    @property
    def need_memory(self) -> bool:
        """Whether ``window_maps`` needs the memory's score."""
        return needs_memory(self.names)

    def window_maps(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        score_map: Tensor,
        size: tuple[int, int],
        memory: Tensor | None = None,
    ) -> Tensor:
        """The maps that are averaged over windows.

        Args:
            class_logits: (B, K + 1, K + 2) of the merged queries.
            mask_logits: (B, K + 1, h, w).
            score_map: (B, K + 1, h', w') merged cosines.
            size: (H, W) of the windows.
            memory: (B, h'', w''), the score of ``FeatureMemory``, if it is needed.

        Returns:
            (B, K + 1 + n, H, W): S, then the n scores that are averaged themselves.
        """
        # S comes first; its K + 1 maps are always needed, for sem_seg.
        maps = [class_scores(class_logits, mask_logits)]
        for name in self._averaged:
            if name == "log_s_ood":
                score = log_s_ood(class_logits, mask_logits)
            elif name == "text_only":
                score = text_only(score_map, self.temperature)
            else:
                score = memory
            maps.append(score[:, None])
        # Masks and score map have different grids, so all maps are resized before averaging.
        return torch.cat([resize(x, size) for x in maps], dim=1)

    def finish(self, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            maps: (K + 1 + n, H, W): maps of ``window_maps``, averaged, at the image's size.

        Returns:
            S of the known classes (K, H, W), and all scores (H, W) by name.
        """
        count = len(maps) - len(self._averaged)
        # The order of window_maps: S, then one map per averaged score.
        s = maps[:count]
        scores = dict(zip(self._averaged, maps[count:], strict=True))
        if "combined" in self.names:
            # A traced graph cannot depend on values; the check has run before tracing.
            if not torch.compiler.is_compiling() and not self.normal.any():
                raise UserError(
                    "the parts of the score combined were never measured on normal frames: run "
                    "tools/fit_memory.py"
                )
            scores["combined"] = self.combine([scores[name] for name in COMBINED])
        scores |= {name: PIXEL_SCORES[name](s) for name in self.names if name in PIXEL_SCORES}
        return s[:-1], scores

    def combine(self, parts: Sequence[Tensor]) -> Tensor:
        """The scores ``COMBINED``, of the same shape -> "combined"."""
        return sum(
            (part - median) / unit for part, (median, unit) in zip(parts, self.normal, strict=True)
        )

    def fit(self, frames: Iterable[Tensor]) -> None:
        """Measure median and 99th percentile of the parts of "combined" on normal frames.

        Args:
            frames: per frame, the averaged maps (K + 1 + n, H, W) as for ``finish``; at most 4,096
                pixels of a frame are used, drawn at random, but the same for the same frames.

        Raises:
            UserError: a score is almost constant and cannot be weighted.
        """
        rows = [self._averaged.index(name) - len(self._averaged) for name in COMBINED]
        pixels, generator = [], torch.Generator().manual_seed(0)
        for maps in frames:
            parts = maps[rows].flatten(1).float().cpu()
            # Not every n-th pixel: where n divides the width, these are a few columns.
            drawn = torch.randperm(parts.shape[1], generator=generator)[:_PIXELS_OF_A_FRAME]
            pixels.append(parts[:, drawn])
        values = torch.cat(pixels, dim=1).sort(dim=1).values if pixels else torch.zeros(2, 1)
        # Sorted, as torch.quantile has a size limit.
        median, high = (values[:, round(q * (values.shape[1] - 1))] for q in (0.5, 0.99))
        if not (high - median > 1e-6).all():
            raise UserError("a score that is the same on all normal frames cannot be combined")
        self.normal.copy_(torch.stack([median, high - median], 1))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear with align_corners=False."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
