"""The parts of the model; importing this package registers those that a config can name."""

from __future__ import annotations

from . import backbone, pixel_decoder, text, transformer_decoder  # noqa: F401
