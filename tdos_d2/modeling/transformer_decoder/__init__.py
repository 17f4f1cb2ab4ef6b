"""The text-query transformer decoder."""

from __future__ import annotations

from .text_query_decoder import TextQueryDecoder

__all__ = ["TextQueryDecoder"]
