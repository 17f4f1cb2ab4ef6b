"""Text queries from a file of embeddings, in place of the text encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from ...errors import UserError
from ...ood_words import prototypes
from ...untrusted import load_arrays
from ..registry import TEXT_REGISTRY
from ..regularization import References
from .prompts import negative_groups, starts_at_groups

logger = logging.getLogger(__name__)

# About the length of CLIP's own text embeddings before they are normalised. The query decoder's
# biases are made for it: next to them vectors of length 1 say little, and all queries start alike.
NORM = 10.0


@TEXT_REGISTRY.register()
class FixedText(nn.Module):
    """N = K + 1 + M text embeddings: fixed vectors, each with a learnable residual.

    Vectors that the file lacks (the OOD word, if it is not there, and the M negatives) start in
    random directions.

    Args:
        vectors: (n, D) fixed embeddings of the first n of the K + 1 names, of any length but 0:
            they, and the learnable vectors at the start, are brought to length ``NORM``.
        num_random: how many learnable vectors follow them.
        prototypes: (M, D) unit vectors of word groups, of length 0 where there is none.
        start_at_prototypes: negatives start there, as far as there are any, not at random.
    """

    @configurable
    def __init__(
        self,
        vectors: Tensor,
        num_random: int,
        prototypes: Tensor | None = None,
        start_at_prototypes: bool = False,
    ) -> None:
        super().__init__()
        if prototypes is None:
            prototypes = vectors.new_zeros(0, vectors.shape[1])
        self.register_buffer("prototypes", prototypes.float(), persistent=False)
        # Part of the checkpoint: trained weights belong to these vectors.
        self.register_buffer("vectors", NORM * F.normalize(vectors.float(), dim=1))
        self.embed_dim: int = vectors.shape[1]  # D
        self.residual = nn.Parameter(torch.zeros_like(self.vectors))
        start = F.normalize(torch.randn(num_random, vectors.shape[1]), dim=1)
        if start_at_prototypes:
            known = self._has_prototype()
            # An OOD word that the file lacks comes before the negatives.
            start[num_random - len(self.prototypes) :][known] = self.prototypes[known]
        self.negatives = nn.Parameter(NORM * start)

    @classmethod
    def from_config(cls, cfg, names: Sequence[str]) -> dict:
        path, num_negative = cfg.MODEL.TEXT.EMBEDDINGS, cfg.MODEL.TDOS.NUM_NEGATIVE
        file_names, embeddings = read_embeddings(path)
        # The OOD word, the last name, may be missing: it then starts at random.
        lacking = [name for name in names[:-1] if name.lower() not in file_names]
        if lacking:
            raise UserError(f"MODEL.TEXT.EMBEDDINGS: '{path}' lacks {', '.join(lacking)}")
        rows = [file_names.index(name.lower()) for name in names if name.lower() in file_names]
        groups = negative_groups(cfg.MODEL.PROMPTS.GROUPS, num_negative)
        return {
            "vectors": embeddings[rows],
            "num_random": len(names) - len(rows) + num_negative,
            "prototypes": _prototypes(groups, file_names, embeddings) if groups else None,
            "start_at_prototypes": starts_at_groups(cfg),
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that are embeddings."""
        return {"residual", "negatives"}

    def forward(self) -> Tensor:
        """(N, D) embeddings, not normalised."""
        return torch.cat([self.vectors + self.residual, self.negatives])

    def build_references(self, cfg, names: Sequence[str]) -> References:
        """See :meth:`references`; neither argument matters."""
        return self.references

    def references(self) -> tuple[Tensor, Tensor]:
        """(R, D) unit vectors that do not change and the (R,) numbers of their queries."""
        there = self._has_prototype().nonzero()[:, 0]
        first_negative = len(self.vectors) + len(self.negatives) - len(self.prototypes)
        queries = torch.arange(len(self.vectors), device=there.device)
        # Without residuals: what is learned must not move its own target.
        references = torch.cat([F.normalize(self.vectors, dim=1), self.prototypes[there]])
        return references, torch.cat([queries, first_negative + there])

    def _has_prototype(self) -> Tensor:
        return self.prototypes.norm(dim=1) > 0


def read_embeddings(path: str) -> tuple[list[str], Tensor]:
    """The n names in lower case, and (n, D) float32 embeddings, of ``MODEL.TEXT.EMBEDDINGS``.

    Raises:
        UserError: missing or malformed file.
    """
    if not Path(path).is_file():
        raise UserError(f"MODEL.TEXT.EMBEDDINGS: {path} does not exist")
    try:
        data = load_arrays(path)
        if isinstance(data, np.ndarray):
            raise ValueError("it is a single array, without names")
        with data:
            names = [str(name).lower() for name in data["names"]]
            if data["embeddings"].dtype.kind not in "fiu":
                raise ValueError(f"'embeddings' are {data['embeddings'].dtype}, not numbers")
            embeddings = data["embeddings"].astype(np.float32)
            if embeddings.ndim != 2 or 0 in embeddings.shape or data["names"].ndim != 1:
                raise ValueError("'names' must be (n,), 'embeddings' (n, D)")
            if len(names) != len(embeddings):
                raise ValueError(f"{len(names)} names, but {len(embeddings)} embeddings")
            if not np.isfinite(embeddings).all():
                raise ValueError("some values are NaN or infinite")
            return names, torch.as_tensor(embeddings)
    except Exception as error:  # NumPy and zipfile raise nearly every kind there is
        raise UserError(
            f"MODEL.TEXT.EMBEDDINGS: '{path}' is no .npz with 'names' and 'embeddings': {error}"
        ) from error


def _prototypes(
    groups: Sequence[Sequence[str]], names: Sequence[str], embeddings: Tensor
) -> Tensor:
    """(M, D) :func:`prototypes` of the words that the file has; 0 where it has none."""
    vectors = dict(zip(names, embeddings.numpy(), strict=True))
    none = np.zeros(embeddings.shape[1], np.float32)  # a word of length 0 does not count

    def look_up(words: Sequence[str]) -> list[np.ndarray]:
        return [vectors.get(word.lower(), none) for word in words]

    of_groups = torch.from_numpy(prototypes(groups, look_up, "{}"))
    lacking = int((of_groups.norm(dim=1) == 0).sum())
    if lacking:
        logger.info(
            "MODEL.TEXT.EMBEDDINGS has no word of %d of %d groups of OOD words: their negatives "
            "start at random and have no prototype",
            lacking,
            len(groups),
        )
    return of_groups
