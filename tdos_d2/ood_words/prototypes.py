"""One CLIP text embedding per group of OOD words, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..cache import cache_root
from ..errors import UserError
from ..files import atomic_write
from .groups import WordGroups

logger = logging.getLogger(__name__)

Encode = Callable[[list[str]], Tensor]


def prototypes(
    groups: WordGroups,
    encode: Encode,
    template: str = "a clean origami of a {}",
    *,
    weights: str | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Normalised mean of the normalised embeddings of each group's words.

    Args:
        groups: M groups of words.
        encode: n texts -> (n, D) embeddings, for example a
            :class:`~tdos_d2.modeling.text.TextEncoder`.
        template: text in which ``{}`` stands for the word.
        weights: what identifies the weights behind ``encode``
            (``TextEncoder.weights_identity``). With it the words' embeddings are kept in
            :func:`tdos_d2.cache.cache_root`, and ``encode`` is not called when they are there.
        batch_size: texts per call of ``encode``.

    Returns:
        (M, D) float32 on the CPU, unit length.

    Raises:
        UserError: the template has no ``{}``.
    """
    embeddings = embed_words(groups.words, encode, template, weights=weights, batch_size=batch_size)
    means = [embeddings[start:stop].mean(dim=0) for start, stop in groups.bounds]
    return F.normalize(torch.stack(means), dim=-1)


def embed_words(
    words: Sequence[str],
    encode: Encode,
    template: str,
    *,
    weights: str | None = None,
    batch_size: int = 256,
) -> Tensor:
    """(n, D) float32 normalised embeddings of ``words``; arguments as in :func:`prototypes`."""
    if "{}" not in template:
        raise UserError(f"the prompt template '{template}' has no {{}} for the word")
    path = None if weights is None else _cache_file(words, template, weights)
    if path is not None and (kept := _read(path, len(words))) is not None:
        return kept
    texts = [template.replace("{}", word) for word in words]
    starts = range(0, len(texts), batch_size)
    with torch.no_grad():
        batches = [
            F.normalize(encode(texts[i : i + batch_size]).float().cpu(), dim=-1)
            for i in tqdm(starts, desc="encoding OOD words", disable=len(starts) < 2)
        ]
    embeddings = torch.cat(batches)
    if path is not None:
        _write(path, embeddings)
    return embeddings


def _cache_file(words: Sequence[str], template: str, weights: str) -> Path:
    content = json.dumps([list(words), template, weights], allow_nan=False).encode()
    return cache_root() / "words" / f"{hashlib.sha256(content).hexdigest()[:32]}.pt"


def _read(path: Path, num_words: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        embeddings = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are cut or not its own
        logger.warning("%s cannot be read (%s): encoding again", path, type(error).__name__)
        return None
    return embeddings if len(embeddings) == num_words else None


def _write(path: Path, embeddings: Tensor) -> None:
    """Keep embeddings for the next run; other processes may do the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(embeddings, file)
    except OSError as error:
        logger.warning("cannot keep the OOD words' embeddings in %s: %s", path.parent, error)
