"""Text queries from a file of embeddings, in place of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError


class FixedText(nn.Module):
    """N = K + 1 + M text embeddings: fixed vectors, each with a learnable residual.

    Real language meaning without encoder weights, and small deployments. Vectors that the file
    lacks (the OOD word, if it is not there, and the M negatives) start in random directions.

    Args:
        vectors: (n, D) fixed embeddings of the first n of the K + 1 names.
        num_random: how many learnable vectors follow them.
    """

    def __init__(self, vectors: Tensor, num_random: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors.float())
        self.residual = nn.Parameter(torch.zeros_like(self.vectors))
        random = torch.randn(num_random, vectors.shape[1])
        norm = self.vectors.norm(dim=1).mean()
        self.negatives = nn.Parameter(norm * nn.functional.normalize(random, dim=1))

    @property
    def embed_dim(self) -> int:
        """D, channels of a text embedding."""
        return self.vectors.shape[1]

    def no_weight_decay(self) -> set[str]:
        """Parameters that are embeddings."""
        return {"residual", "negatives"}

    def forward(self) -> Tensor:
        """(N, D) embeddings, not normalised."""
        return torch.cat([self.vectors + self.residual, self.negatives])

    @classmethod
    def from_file(cls, path: str, names: Sequence[str], num_negative: int) -> FixedText:
        """Read a .npz with ``names`` (n,) and ``embeddings`` (n, D).

        Args:
            path: the file.
            names: the K known classes and, last, the OOD word; the file must have the known ones
                (upper and lower case are the same).
            num_negative: M.

        Raises:
            UserError: missing or malformed file, or a known class that it lacks.
        """
        if not Path(path).is_file():
            raise UserError(f"MODEL.TEXT.EMBEDDINGS: no file '{path}'")
        try:
            with np.load(path, allow_pickle=False) as data:
                file_names = [str(name).lower() for name in data["names"]]
                embeddings = torch.from_numpy(data["embeddings"].astype(np.float32))
        except (KeyError, ValueError, OSError) as error:
            raise UserError(
                f"MODEL.TEXT.EMBEDDINGS: '{path}' is no .npz with 'names' and 'embeddings': {error}"
            ) from error
        rows = [file_names.index(n.lower()) if n.lower() in file_names else -1 for n in names]
        lacking = [name for name, row in zip(names[:-1], rows[:-1], strict=True) if row < 0]
        if lacking:
            raise UserError(f"MODEL.TEXT.EMBEDDINGS: '{path}' lacks {', '.join(lacking)}")
        known = [row for row in rows if row >= 0]
        return cls(embeddings[known], num_random=len(names) - len(known) + num_negative)
