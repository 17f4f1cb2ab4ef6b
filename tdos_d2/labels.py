"""Values of the pixels of labels that OOD metrics are computed from."""

from __future__ import annotations

KNOWN, OOD, VOID = 0, 1, 255
