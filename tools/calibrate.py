#!/usr/bin/env python
"""Find a threshold from normal frames alone, with a guarantee about false alarms (see --help)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands.calibrate import main

if __name__ == "__main__":
    main()
