"""From merged queries to known-class scores S_c and anomaly scores, all from one forward pass.

Notation: K known classes; Q = K + 1 merged queries; p(c | q) = softmax over K + 2 class logits
(known classes, OOD, no object); m_q(x) = mask logit; S_c(x) = sum_q p(c | q) sigmoid(m_q(x)) for
the known classes and for c = ood. S_c is what mask models have in place of a pixel's class logit
(RbA, arXiv 2211.14293), without any further softmax. Every score is larger where a pixel is more
anomalous.

Two kinds of scores differ in what is resized to the image and averaged over windows:

- The logarithms ``log_s_ood`` and ``text_only`` are made on the grid of the masks or of the score
  map, and it is the logarithms that are resized and averaged (a geometric mean): where S_ood is
  0 in float32, its logarithm still ranks pixels, and an average of S_ood would lose that.
- The functions of S, ``s_ood_softmax``, ``max_logit``, ``energy`` and ``rba``, are made at the end,
  per pixel, from the resized and averaged S. So they are functions of ``sem_seg`` as the model
  returns it, as in the released code of TDOS (which takes its softmax last) and of RbA.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError


def class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """S_c of the K known classes and, last, of OOD.

    Args:
        class_logits: (B, K + 1, K + 2) of the merged queries.
        mask_logits: (B, K + 1, h, w).

    Returns:
        (B, K + 1, h, w) in [0, K + 1].
    """
    probabilities = class_logits.softmax(-1)[..., :-1]  # "no object", the last, claims no pixel
    # A sigmoid for each mask, no softmax over queries: masks may overlap, and S may exceed 1.
    return torch.einsum("bqc,bqhw->bchw", probabilities, mask_logits.sigmoid())


def log_s_ood(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """log S_ood = logsumexp_q(log p(ood | q) + logsigmoid(m_q)).

    Never ``log(sigmoid(x))``: in log space no two pixels tie because a sigmoid saturated.

    Args:
        class_logits: (B, K + 1, K + 2) of the merged queries.
        mask_logits: (B, K + 1, h, w).

    Returns:
        (B, h, w).
    """
    log_p = F.log_softmax(class_logits, dim=-1)[..., -2]  # (B, K + 1), OOD of K + 2 classes
    return torch.logsumexp(log_p[..., None, None] + F.logsigmoid(mask_logits), dim=1)


def text_only(score_map: Tensor, temperature: float) -> Tensor:
    """log of OOD's share in softmax_c(cos_c / temperature): what image and words alone say.

    The decoders have no part in it; the score map's loss trains the same softmax.

    Args:
        score_map: (B, K + 1, h, w) merged cosines of dense image and text embeddings, OOD last.
        temperature: that of the score map's loss.

    Returns:
        (B, h, w) up to 0.
    """
    return F.log_softmax(score_map / temperature, dim=1)[:, -1]


def s_ood_softmax(s: Tensor) -> Tensor:
    """exp(S_ood) / sum_c exp(S_c) over known classes and OOD: the released code's last softmax.

    S lies roughly in [0, 1], so the range is squeezed, and it ranks pixels differently than S_ood.

    Args:
        s: (K + 1, H, W), OOD last.

    Returns:
        (H, W) in [0, 1].
    """
    # Over S as it is: the published last step has no temperature that would widen the range.
    return s.softmax(0)[-1]


def max_logit(s: Tensor) -> Tensor:
    """1 - max_c S_c over the known classes, (K + 1, H, W) -> (H, W)."""
    return 1 - s[:-1].amax(0)


def energy(s: Tensor) -> Tensor:
    """-logsumexp_c S_c over the known classes, (K + 1, H, W) -> (H, W); in [-1 - log K, -log K].

    The free energy (arXiv 2010.03759) at temperature 1, the class logits being S_c. The range holds
    as long as no S_c exceeds 1.
    """
    return -s[:-1].logsumexp(0)


def rba(s: Tensor) -> Tensor:
    """-sum_c tanh(S_c) over the known classes, (K + 1, H, W) -> (H, W); in [-K, 0].

    "Rejected by all" (RbA, arXiv 2211.14293): how far no known class claims the pixel.
    """
    # tanh, as in RbA, is bounded: no single class decides the sum.
    return -s[:-1].tanh().sum(0)


# Functions of S alone: made per pixel at the end, from S as it was resized and averaged.
PIXEL_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "s_ood_softmax": s_ood_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "rba": rba,
}
# The two whose sum, each in units of its upper tail on normal frames, is "combined".
COMBINED = ("log_s_ood", "memory")
_PIXELS_OF_A_FRAME = 4096  # that weigh the two: memory for an hour at a frame a second is 120 MB
SCORES = ("log_s_ood", "text_only", "memory", "combined", *PIXEL_SCORES)


def needs_memory(names: Collection[str]) -> bool:
    """Whether one of the scores is made with a ``FeatureMemory``."""
    return "memory" in names or "combined" in names


def check_score(name: str, key: str) -> None:
    """Raises UserError, naming the config key, if there is no score of that name."""
    if name not in SCORES:
        raise UserError(f"{key}: no score '{name}'; there are: {', '.join(SCORES)}")


class AnomalyScores(nn.Module):
    """Makes the scores asked for, S being computed once for all of them.

    Between ``window_maps`` and ``finish`` the caller resizes and averages the maps. The score
    "combined" is the sum of ``COMBINED``, each minus its median on normal frames and divided by the
    distance from there to its 99th percentile, which :meth:`fit` measures: no anomaly has a part in
    the weights. A score that is high in places of normal frames counts less.

    Args:
        names: from SCORES.
        temperature: that of the score map's loss, for ``text_only``.

    Raises:
        UserError: no such score.
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
            # Median and unit of each; 0 until they are measured.
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
        """What is averaged over windows.

        Args:
            class_logits: (B, K + 1, K + 2) of the merged queries.
            mask_logits: (B, K + 1, h, w).
            score_map: (B, K + 1, h', w') merged cosines.
            size: (H, W) of the windows.
            memory: (B, h'', w''), the score of ``FeatureMemory``, where it is needed.

        Returns:
            (B, K + 1 + n, H, W): S, then the n scores that are averaged themselves.
        """
        # S comes first: its K + 1 maps are needed whatever scores are asked for (sem_seg).
        maps = [class_scores(class_logits, mask_logits)]
        for name in self._averaged:
            if name == "log_s_ood":
                score = log_s_ood(class_logits, mask_logits)
            elif name == "text_only":
                score = text_only(score_map, self.temperature)
            else:
                score = memory
            maps.append(score[:, None])
        # Masks and score map have different grids; what is averaged has one.
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
            # A graph that is traced cannot depend on values; it was run before.
            if not torch.compiler.is_compiling() and not self.normal.any():
                raise UserError(
                    "the parts of the score combined were never measured on normal frames: run "
                    "tools/fit_memory.py"
                )
            scores["combined"] = self.combine([scores[name] for name in COMBINED])
        scores |= {name: PIXEL_SCORES[name](s) for name in self.names if name in PIXEL_SCORES}
        return s[:-1], scores

    def combine(self, parts: Sequence[Tensor]) -> Tensor:
        """The scores ``COMBINED`` of any one shape -> "combined"."""
        return sum(
            (part - median) / unit for part, (median, unit) in zip(parts, self.normal, strict=True)
        )

    def fit(self, frames: Iterable[Tensor]) -> None:
        """Measure median and 99th percentile of the parts of "combined" on normal frames.

        Args:
            frames: of each, the averaged maps (K + 1 + n, H, W) that ``finish`` is given; at most
                4,096 pixels of a frame, evenly spaced, count.

        Raises:
            UserError: a score that is the same nearly everywhere cannot be weighed.
        """
        rows = [self._averaged.index(name) - len(self._averaged) for name in COMBINED]
        pixels = []
        for maps in frames:
            parts = maps[rows].flatten(1).float().cpu()
            pixels.append(parts[:, :: -(-parts.shape[1] // _PIXELS_OF_A_FRAME)])
        values = torch.cat(pixels, dim=1).sort(dim=1).values if pixels else torch.zeros(2, 1)
        # Sorted: torch.quantile has a largest size.
        median, high = (values[:, round(q * (values.shape[1] - 1))] for q in (0.5, 0.99))
        if not (high - median > 1e-6).all():
            raise UserError("a score that is the same on all normal frames cannot be combined")
        self.normal.copy_(torch.stack([median, high - median], 1))


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear, pixel centres apart (align_corners=False)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
