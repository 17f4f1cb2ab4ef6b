#!/usr/bin/env python
"""Measure how fast tdos_d2 is, in one run on this machine, and print it beside the goals.

    python tools/benchmark.py evaluation               speed of the OOD metrics: minutes, 8 GB
    python tools/benchmark.py evaluation --frames 3    a quick run
    python tools/benchmark.py export                   ONNX Runtime, OpenVINO, INT8: 5 minutes
    python tools/benchmark.py inference                a prediction: minutes, 5 GB
    python tools/benchmark.py loading                  data of a training crop: half a minute
    python tools/benchmark.py startup                  imports and --help: two minutes
    python tools/benchmark.py train                    a training step: minutes
    python tools/benchmark.py video                    flicker in drawn drives: minutes

``python tools/benchmark.py WHAT --help`` says what is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import evaluation, export, inference, loading, startup, train, video

from tdos_commands import exit_with_one_line, options

COMMANDS = (evaluation, export, inference, loading, startup, train, video)


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for command in COMMANDS:
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()
    exit_with_one_line(lambda: arguments.run(arguments))
