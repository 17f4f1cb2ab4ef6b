"""The text part of the model: learnable prompts or fixed embeddings, and the context decoder."""

from __future__ import annotations

from ..clip import TextEncoder
from .context_decoder import ContextDecoder
from .fixed_text import FixedText, read_embeddings
from .prompts import PromptedText

__all__ = ["ContextDecoder", "FixedText", "PromptedText", "TextEncoder", "read_embeddings"]
