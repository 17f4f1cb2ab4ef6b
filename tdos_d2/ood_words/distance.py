"""Distances of words to the nearest known class, in WordNet or in CLIP's text space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import Synset


def wup_distances(words: Sequence[Synset], known: Sequence[Synset]) -> np.ndarray:
    """1 - the largest Wu-Palmer similarity to a known sense.

    The similarity of a and b is the largest 2 d(c) / (2 d(c) + l(a, c) + l(b, c)) over their common
    ancestors c, with d(c) the number of synsets on the longest path from the root to c (including
    both) and l the number of edges on the shortest path up (Wu and Palmer 1994, as in NLTK).

    Args:
        words: n senses.
        known: senses of the known classes.

    Returns:
        (n,) float64 in [0, 1]; 1 without a common ancestor.
    """
    classes = [_above(sense) for sense in known]
    return np.array([1 - max(_similarity(_above(w), c) for c in classes) for w in words])


def path_distances(words: Sequence[Synset], known: Sequence[Synset]) -> np.ndarray:
    """Number of edges to the nearest known sense, up and down WordNet's hypernyms.

    Arguments as in :func:`wup_distances`; (n,) float64, infinite without a common ancestor.
    """
    classes = [_above(sense) for sense in known]
    return np.array([min(_edges(_above(w), c) for c in classes) for w in words])


def embedding_distances(words: np.ndarray, known: np.ndarray, quantile: float = 1.0) -> np.ndarray:
    """1 - a quantile over the known classes of the cosine between word and class.

    Args:
        words: (n, D) text embeddings of any length.
        known: (K, D) text embeddings of the known classes.
        quantile: 1.0 = the nearest class (maximum cosine); NegLabel uses 0.95 (Jiang et al. 2024,
            "Negative Label Guided OOD Detection with Pretrained Vision-Language Models").

    Returns:
        (n,) float64 in [0, 2].
    """
    words, known = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (words, known))
    cosines = words.astype(np.float64) @ known.astype(np.float64).T
    return 1 - np.quantile(cosines, quantile, axis=1)


def _similarity(a: dict[Synset, int], b: dict[Synset, int]) -> float:
    common = a.keys() & b.keys()
    depths = ((2 * (c.max_depth() + 1), a[c] + b[c]) for c in common)
    return max((twice / (twice + edges) for twice, edges in depths), default=0.0)


def _edges(a: dict[Synset, int], b: dict[Synset, int]) -> float:
    return min((a[c] + b[c] for c in a.keys() & b.keys()), default=np.inf)


@cache
def _above(sense: Synset) -> dict[Synset, int]:
    """``sense`` and its ancestors, with the number of edges on the shortest path to each."""
    ways = sorted(sense.hypernym_distances(), key=lambda way: -way[1])
    return dict(ways)  # of several paths to a synset the last, shortest one is kept
