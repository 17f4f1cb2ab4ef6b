"""Pixel values of the labels for OOD metrics."""

from __future__ import annotations

KNOWN, OOD, VOID = 0, 1, 255
