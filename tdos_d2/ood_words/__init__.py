"""OOD words: mined from WordNet by distance to the known classes, grouped, and their prototypes."""

from __future__ import annotations

from .groups import WordGroups, load_groups
from .prototypes import prototypes

__all__ = ["WordGroups", "load_groups", "prototypes"]
