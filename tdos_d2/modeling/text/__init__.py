"""The text side: learnable prompts or fixed embeddings, and the context decoder."""

from __future__ import annotations

from .context_decoder import ContextDecoder
from .encoder import TextEncoder
from .fixed import FixedText, read_embeddings
from .prompts import PromptedText

__all__ = ["ContextDecoder", "FixedText", "PromptedText", "TextEncoder", "read_embeddings"]
