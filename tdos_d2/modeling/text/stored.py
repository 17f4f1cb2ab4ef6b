"""Text embeddings of a packed checkpoint, which replace the text encoder."""

from __future__ import annotations

from torch import Tensor, nn


class StoredText(nn.Module):
    """(N, D) constant text embeddings, computed by a trained text encoder.

    Args:
        embeddings: (N, D).
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    def forward(self) -> Tensor:
        """(N, D)."""
        return self.embeddings
