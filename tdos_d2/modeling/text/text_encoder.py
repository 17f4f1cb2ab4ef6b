"""CLIP's text encoder for whole texts."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ..clip import TextTower, token_batch


class TextEncoder:
    """CLIP's text encoder for plain texts: what open_clip's ``encode_text`` gives, normalised.

    Texts are encoded at their own length, not at CLIP's 77 tokens: attention is causal, so what
    stands behind the end token does not matter.
    """

    def __init__(self, tower: TextTower) -> None:
        self.tower = tower

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """(n, D) unit embeddings of n texts.

        Raises:
            UserError: a text is longer than the encoder's positional table.
        """
        tokens, end = token_batch(texts)
        if tokens.shape[1] > self.tower.max_length:
            longest = texts[int(end.argmax())]
            raise UserError(f"'{longest}' is longer than {self.tower.max_length} CLIP tokens")
        device = self.tower.positional_embedding.device
        with torch.autocast(device.type, enabled=False):  # what is kept serves calls without it
            embedded = self.tower.token_embedding(tokens.to(device))
            return F.normalize(self.tower(embedded, end.to(device)), dim=-1)  # (n, L, C) -> (n, D)

    def array(self, texts: list[str]) -> np.ndarray:
        """The same in float32 NumPy, as :mod:`tdos_d2.ood_words` takes it."""
        return self(texts).float().cpu().numpy()

    def weights_identity(self) -> str:
        """Hash of architecture and weights: the same wherever the weights were loaded from."""
        digest = hashlib.sha256(repr(self.tower).encode())
        for name, value in sorted(self.tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
