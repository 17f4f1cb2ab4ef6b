"""The parts of the model."""

from __future__ import annotations

from . import backbone  # noqa: F401  registers the backbones
