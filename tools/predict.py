#!/usr/bin/env python
"""Find what should not be on the road, in images, folders and videos (see --help)."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# Detectron2 compiles with torch.jit when it is imported; torch warns of that in every process.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# ruff: noqa: E402
from tdos_d2.engine import exit_with_one_line
from tdos_d2.inference.command import run

if __name__ == "__main__":
    exit_with_one_line(run)
