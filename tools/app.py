#!/usr/bin/env python
"""Open a web page for trying models (see --help)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands.app import main

if __name__ == "__main__":
    main()
