"""Code blocks of the Markdown pages, and the commands in them.

A block of shell or Python code has one tag after its language: ``run`` (works as it is),
``needs-data``, ``needs-gpu``, or ``by-hand`` (downloads, or takes long).
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TAGS = {"run", "needs-data", "needs-gpu", "by-hand"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("datasets/*.md")])
CHECKPOINT = "output/tdos_vitb/model_final.pth"
# What pip installs, and the scripts they are.
INSTALLED = {
    "tdos-train": "train_net.py",
    "tdos-evaluate": "train_net.py",
    "tdos-predict": "tools/predict.py",
    "tdos-calibrate": "tools/calibrate.py",
    "tdos-app": "tools/app.py",
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """A script of the repository with its arguments."""

    script: str
    words: list[str]


class _Parsed(BaseException):
    """Carries what a parser made of a command line out of the script that called it."""


def read_blocks(page: Path) -> list[Block]:
    name, text = page.relative_to(ROOT).as_posix(), page.read_text()
    found = []
    for match in re.finditer(r"^```(.*)\n((?:(?!```).*\n)*)```$", text, re.MULTILINE):
        language, _, tag = match[1].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(name, line, language, tag, match[2]))
    assert len(found) * 2 == len(re.findall("^```", text, re.MULTILINE)), name
    return found


def shell_lines(text: str) -> list[list[str]]:
    """Words of each simple command, without comments and variables set before it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "|"]:
            if set(word) <= set("|;&"):
                while words and re.match(r"\w+=", words[0]):
                    del words[0]
                if words:
                    found.append(words)
                words = []
            else:
                words.append(word)
    return found


def script_commands(text: str) -> list[Command]:
    """The calls of the repository's scripts in shell code, but for ``--help`` and examples.

    ``...`` stands for a checkpoint.
    """
    found = []
    for first, *words in shell_lines(text):
        words = [CHECKPOINT if word == "..." else word for word in words]
        if first in INSTALLED:
            found.append(Command(INSTALLED[first], words))
        elif first == "python" and words[0].endswith(".py") and "examples/" not in words[0]:
            found.append(Command(words[0], words[1:]))
    return [command for command in found if "--help" not in command.words]


def parse(command: Command) -> argparse.Namespace:
    """What the script's own parser makes of the words; SystemExit if it takes them not."""
    original, argv, path = ArgumentParser.parse_args, sys.argv, sys.path
    script = ROOT / command.script

    def parse_and_stop(self, args=None, namespace=None):
        raise _Parsed(original(self, args, namespace))

    ArgumentParser.parse_args, sys.argv = parse_and_stop, [command.script, *command.words]
    sys.path = [str(script.parent), *path]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except _Parsed as parsed:
        return parsed.args[0]
    finally:
        ArgumentParser.parse_args, sys.argv, sys.path = original, argv, path
    raise AssertionError(f"{command.script} parses no command line")
