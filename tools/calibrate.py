#!/usr/bin/env python
"""Find a threshold from normal frames alone, with a promise about false alarms (see --help)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_d2.engine import exit_with_one_line
from tdos_d2.inference.calibrate_command import run

if __name__ == "__main__":
    exit_with_one_line(run)
