"""CLIP's byte-pair tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

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
    sequences = [[START, *tokenize(text), END] for text in texts]
    length = max(len(s) for s in sequences)
    # CLIP pads with 0; behind the end token it makes no difference, attention being causal.
    tokens = torch.tensor([s + [END] * (length - len(s)) for s in sequences])
    return tokens, torch.tensor([len(s) - 1 for s in sequences])
