"""CLIP's byte-pair tokens."""

from __future__ import annotations

from functools import lru_cache

START = 49406
END = 49407


@lru_cache(maxsize=1)
def _tokenizer():
    import open_clip

    return open_clip.SimpleTokenizer()


def tokenize(text: str) -> list[int]:
    """CLIP's token numbers of ``text``, without start and end token."""
    return _tokenizer().encode(text.strip().lower())
