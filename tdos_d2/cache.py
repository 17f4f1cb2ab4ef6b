"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$TDOS_CACHE``, or else ``$XDG_CACHE_HOME/tdos_d2`` or ``~/.cache/tdos_d2``."""
    base = os.getenv("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.getenv("TDOS_CACHE") or os.path.join(base, "tdos_d2")).expanduser()
