"""Text queries from a file of embeddings instead of the text encoder."""

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

# About the length of CLIP's text embeddings before normalisation, which suits the query decoder's
# biases: vectors of length 1 would be small beside them, and all queries would start alike.
NORM = 10.0


@TEXT_REGISTRY.register()
class FixedText(nn.Module):
    """N = K + 1 + M text embeddings: fixed vectors, each with a learnable residual.

    Vectors that are not in the file (the M negatives, and the OOD word if missing) are initialised
    with random directions.

    Args:
        vectors: (n, D) fixed embeddings of the first n of the K + 1 names, of any length except 0.
            They, and the initial learnable vectors, are scaled to length ``NORM``.
        num_random: number of learnable vectors that follow them.
        prototypes: (M, D) unit vectors of word groups, of length 0 for groups without one.
        start_at_prototypes: initialise negatives with their prototypes, if any, not at random.
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
        # In the checkpoint, as the trained weights depend on these vectors.
        self.register_buffer("vectors", NORM * F.normalize(vectors.float(), dim=1))
        self.embed_dim: int = vectors.shape[1]  # D
        self.residual = nn.Parameter(torch.zeros_like(self.vectors))
        start = F.normalize(torch.randn(num_random, vectors.shape[1]), dim=1)
        if start_at_prototypes:
            known = self._has_prototype()
            # If the file lacks the OOD word, its vector precedes the negatives.
            start[num_random - len(self.prototypes) :][known] = self.prototypes[known]
        self.negatives = nn.Parameter(NORM * start)

    @classmethod
    def from_config(cls, cfg, names: Sequence[str]) -> dict:
        path, num_negative = cfg.MODEL.TEXT.EMBEDDINGS, cfg.MODEL.TDOS.NUM_NEGATIVE
        file_names, embeddings = read_embeddings(path)
        # The OOD word, the last name, may be missing; it is then initialised at random.
        lacking = [name for name in names[:-1] if name.lower() not in file_names]
        if lacking:
            raise UserError(f"MODEL.TEXT.EMBEDDINGS: '{path}' lacks {', '.join(lacking)}")
        rows = [file_names.index(name.lower()) for name in names if name.lower() in file_names]
        if zero := [file_names[row] for row in rows if not embeddings[row].any()]:
            raise UserError(f"MODEL.TEXT.EMBEDDINGS: '{path}' has only zeros for {zero[0]}")
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
        """See :meth:`references`; the arguments are not used."""
        return self.references

    def references(self) -> tuple[Tensor, Tensor]:
        """(R, D) constant unit vectors and the (R,) numbers of their queries."""
        there = self._has_prototype().nonzero()[:, 0]
        first_negative = len(self.vectors) + len(self.negatives) - len(self.prototypes)
        queries = torch.arange(len(self.vectors), device=there.device)
        # Without residuals, so that learning does not move the targets.
        references = torch.cat([F.normalize(self.vectors, dim=1), self.prototypes[there]])
        return references, torch.cat([queries, first_negative + there])

    def _has_prototype(self) -> Tensor:
        return self.prototypes.norm(dim=1) > 0


def read_embeddings(path: str) -> tuple[list[str], Tensor]:
    """The n names in lower case, and (n, D) float32 embeddings, of ``MODEL.TEXT.EMBEDDINGS``.

    Of names that differ in case alone, or are there several times, the first counts.

    Raises:
        UserError: the file is missing or malformed.
    """
    if not path:
        raise UserError("MODEL.TEXT.NAME FixedText needs a file: MODEL.TEXT.EMBEDDINGS is empty")
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
            rows: dict[str, int] = {}
            for row, name in enumerate(names):
                rows.setdefault(name, row)
            return list(rows), torch.as_tensor(embeddings[list(rows.values())])
    except Exception as error:  # NumPy and zipfile may raise almost any type
        raise UserError(
            f"MODEL.TEXT.EMBEDDINGS: '{path}' is no .npz with 'names' and 'embeddings': {error}"
        ) from error


def _prototypes(
    groups: Sequence[Sequence[str]], names: Sequence[str], embeddings: Tensor
) -> Tensor:
    """(M, D) :func:`prototypes` of the words in the file; 0 for groups without any."""
    vectors = dict(zip(names, embeddings.numpy(), strict=True))
    none = np.zeros(embeddings.shape[1], np.float32)  # vectors of length 0 are ignored

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
