"""One text embedding per group of OOD words, encoded once and cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from ..cache import cache_root, keep_array, read_array
from ..errors import UserError

Encode = Callable[[list[str]], ArrayLike]


def prototypes(
    groups: Sequence[Sequence[str]],
    encode: Encode,
    template: str = "a clean origami of a {}",
    *,
    weights: str | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Normalised mean of the normalised embeddings of each group's words.

    Args:
        groups: M groups of words.
        encode: n texts -> (n, D) embeddings, such as ``modeling.text.TextEncoder.array``.
            Embeddings of length 0 are ignored.
        template: text in which the word replaces ``{}``.
        weights: identifies the weights of ``encode`` (``TextEncoder.weights_identity``). If given,
            the words' embeddings are cached in :func:`tdos_d2.cache.cache_root`, and ``encode`` is
            only called if they are not there.
        batch_size: texts per call of ``encode``.

    Returns:
        (M, D) float32, unit length; 0 for a group whose embeddings all have length 0.

    Raises:
        UserError: the template has no ``{}``.
    """
    words = [word for group in groups for word in group]
    embeddings = embed_words(words, encode, template, weights=weights, batch_size=batch_size)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return unit_length(np.stack([part.sum(axis=0) for part in np.split(embeddings, ends)]))


def embed_words(
    words: Sequence[str],
    encode: Encode,
    template: str,
    *,
    weights: str | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """(n, D) float32 normalised embeddings of ``words``; arguments as in :func:`prototypes`."""
    if "{}" not in template:
        raise UserError(f"the prompt template '{template}' has no {{}} for the word")
    if weights is not None:
        content = json.dumps([list(words), template, weights], allow_nan=False).encode()
        path = cache_root() / "words" / f"{hashlib.sha256(content).hexdigest()[:32]}.npz"
        if (kept := read_array(path, len(words))) is not None:
            return kept
    texts = [template.replace("{}", word) for word in words]
    starts = range(0, len(texts), batch_size)
    batches = [
        unit_length(np.asarray(encode(texts[i : i + batch_size]), np.float32))
        for i in tqdm(starts, desc="encoding OOD words", disable=len(starts) < 2)
    ]
    embeddings = np.concatenate(batches)
    if weights is not None:
        keep_array(path, embeddings, "embeddings of OOD words are")
    return embeddings


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """(n, D) vectors scaled to length 1; those of length 0 are unchanged."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
