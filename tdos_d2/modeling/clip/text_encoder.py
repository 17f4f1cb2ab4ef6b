"""CLIP's tokens, and its text encoder for whole texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import UserError
from .towers import TextTower

START = 49406
END = 49407


@lru_cache(maxsize=1)
def _tokenizer():
    import open_clip

    return open_clip.SimpleTokenizer()


def tokenize(text: str) -> list[int]:
    """CLIP's token numbers of ``text``, without start and end token."""
    return _tokenizer().encode(text.strip().lower())


def token_batch(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(n, L) token numbers padded behind the end token, and the (n,) index of that token."""
    sequences = [torch.tensor([START, *tokenize(text), END]) for text in texts]
    # CLIP pads with 0; as attention is causal, tokens after the end token have no effect.
    tokens = pad_sequence(sequences, batch_first=True, padding_value=END)
    return tokens, torch.tensor([len(s) - 1 for s in sequences])


class TextEncoder:
    """CLIP's text encoder for plain texts: open_clip's ``encode_text``, normalised.

    Texts are encoded at their own length, not at CLIP's 77 tokens: attention is causal, so tokens
    after the end token have no effect.
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
        with torch.autocast(device.type, enabled=False):  # results are cached for all calls
            embedded = self.tower.token_embedding(tokens.to(device))
            return F.normalize(self.tower(embedded, end.to(device)), dim=-1)  # (n, L, C) -> (n, D)

    def array(self, texts: list[str]) -> np.ndarray:
        """The same as a float32 NumPy array, for :mod:`tdos_d2.ood_words`."""
        return self(texts).float().cpu().numpy()

    def weights_identity(self) -> str:
        """Hash of architecture and weights, independent of the file they were loaded from."""
        digest = hashlib.sha256(repr(self.tower).encode())
        for name, value in sorted(self.tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
