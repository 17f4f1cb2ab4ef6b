"""The text-attending pixel decoder."""

from __future__ import annotations

from .text_pixel_decoder import TextPixelDecoder

__all__ = ["TextPixelDecoder"]
