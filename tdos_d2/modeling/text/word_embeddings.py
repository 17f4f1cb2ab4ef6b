"""Plain text embeddings of words, from the model's text encoder or from its file of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ...ood_words.prototypes import embed_words
from ..clip import TextEncoder
from .fixed_text import FixedText, read_embeddings
from .prompts import PromptedText
from .stored import StoredText


def split_words(words: str | Sequence[str]) -> list[str]:
    """Words as a list without duplicates; a string is split at its commas.

    Raises:
        UserError: there are no words.
    """
    given = words.split(",") if isinstance(words, str) else words
    found = dict.fromkeys(" ".join(word.split()) for word in given)
    found.pop("", None)  # between two commas
    if not found:
        raise UserError("words are expected, such as: deer, lost cargo, sofa")
    return list(found)


class WordEmbeddings:
    """Unit text embeddings of words, cached until the weights change; safe in threads.

    Args:
        text: the model's text part.
        path: ``MODEL.TEXT.EMBEDDINGS``, the file of a ``FixedText``.
    """

    def __init__(self, text: PromptedText | FixedText | StoredText, path: str = "") -> None:
        self._lock = Lock()
        self._text, self._path = text, path
        self._encode = TextEncoder(text.tower) if isinstance(text, PromptedText) else None
        self._kept: dict[str, Tensor] = {}
        self._list: tuple[list[str], Tensor] = ([], torch.zeros(0))
        if isinstance(text, FixedText):
            names, vectors = read_embeddings(path)
            self._kept = dict(zip(names, F.normalize(vectors, dim=1), strict=True))
        self._generation = getattr(text, "generation", 0)  # increases when weights may have changed

    @property
    def words(self) -> list[str]:
        """The words in the file of embeddings; empty if there is a text encoder."""
        return list(self._kept) if self._encode is None else []

    def __call__(self, words: Sequence[str]) -> Tensor:
        """(n, D) float32 on the CPU, unit length.

        Raises:
            UserError: the file lacks a word, or a text is too long for the encoder.
        """
        keys = [word.lower() for word in words]
        with self._lock:
            self._forget_old()
            lacking = [key for key in dict.fromkeys(keys) if key not in self._kept]
            if lacking and isinstance(self._text, StoredText):
                raise UserError("a packed checkpoint holds no text encoder: no words for it")
            if lacking and self._encode is None:
                raise UserError(
                    f"MODEL.TEXT.EMBEDDINGS: '{self._path}' lacks {', '.join(lacking)}; only words "
                    "of that file can be asked for"
                )
            for key in lacking:
                # One at a time: the last digits of a vector depend on its batch, but results must
                # not depend on previous calls.
                self._kept[key] = self._encode([key])[0].float().cpu()
            return torch.stack([self._kept[key] for key in keys])

    def of_list(self, words: Sequence[str]) -> Tensor:
        """The same for a long list, cached on disk (see ``ood_words.prototypes``)."""
        if self._encode is None:
            return self(words)
        with self._lock:
            self._forget_old()
            if self._list[0] != list(words):
                identity = self._encode.weights_identity()
                vectors = embed_words(words, self._encode.array, "{}", weights=identity)
                self._list = list(words), torch.from_numpy(vectors)
            return self._list[1]

    def _forget_old(self) -> None:
        generation = getattr(self._text, "generation", 0)  # vectors of a file never change
        if generation != self._generation:
            self._generation = generation
            self._kept, self._list = {}, ([], torch.zeros(0))
