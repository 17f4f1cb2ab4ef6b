#!/usr/bin/env python
"""Write docs/configuration.md from tdos_d2/config.py: every key, its default and its comment.

A comment describes the keys below it, up to the next comment; a comment above a node describes the
node. The page must be written again when config.py changes; a test compares them.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, PAGE = ROOT / "tdos_d2" / "config.py", ROOT / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Every key that `tdos_d2` adds to Detectron2's config, or gives another default, with its meaning.
A key's full name is that of its section and its own: `MODEL.TDOS.SCORE`. Values come from three
places, each overruling the one before:

1. the defaults below;
2. the file that `--config-file` names, and the files that its `_BASE_` names;
3. `KEY VALUE` pairs at the end of the command line, such as `SOLVER.MAX_ITER 100`. Lists and tuples
   are written as in Python and quoted: `DATASETS.TEST "('road_anomaly',)"`.

An unknown key or a value of the wrong type is an error that names it. `OUTPUT_DIR/config.yaml` is
what a run used. Detectron2's own keys are in
[its reference](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references);
those that this project's configs set are in
[configs/Base-TDOS.yaml](../configs/Base-TDOS.yaml).

This page is written by `tools/make_config_docs.py` from the comments of
[tdos_d2/config.py](../tdos_d2/config.py): change those.
"""

Row = tuple[list[str], list[str], str]  # keys, defaults, meaning


class Reader:
    """Reads the nodes and keys that assignments in functions of ``source`` add to ``cfg``.

    Attributes:
        nodes: name of a node -> its own comment (or "") and its rows, in the order of the source.
    """

    def __init__(self, source: str) -> None:
        self.nodes: dict[str, tuple[str, list[Row]]] = {}
        self._lines = source.splitlines()
        for function in ast.parse(source).body:
            if isinstance(function, ast.FunctionDef):
                self._aliases = {"cfg": ""}
                for statement in function.body:
                    if isinstance(statement, ast.Assign):
                        self._read(statement)

    def _read(self, statement: ast.Assign) -> None:
        comment = self._comment_above(statement.lineno)
        name = next(filter(None, map(self._full_name, statement.targets)), "")
        if ast.unparse(statement.value) == "CN()":
            self.nodes[name] = (comment, [])
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    self._aliases[target.id] = name
        elif name:
            node, _, key = name.rpartition(".")
            rows = self.nodes.setdefault(node, ("", []))[1]
            if comment:
                rows.append(([], [], comment))
            if not rows:
                raise ValueError(f"line {statement.lineno}: {name} has no comment")
            rows[-1][0].append(key)
            rows[-1][1].append(ast.unparse(statement.value).replace("'", '"'))

    def _full_name(self, target: ast.expr) -> str:
        """``node.KEY`` -> "MODEL.TDOS.KEY"; "" for targets that are not part of the config."""
        alias, _, rest = ast.unparse(target).partition(".")
        if not rest or alias not in self._aliases:
            return ""
        return f"{self._aliases[alias]}.{rest}".lstrip(".")

    def _comment_above(self, line: int) -> str:
        words: list[str] = []
        while (text := self._lines[line - 2].strip()).startswith("#"):
            words.insert(0, text.lstrip("# "))
            line -= 1
        return " ".join(words)


def make_page(source: str) -> str:
    """The page for this source of config.py.

    Raises:
        ValueError: a key without comment; the message names its line.
    """
    parts = [INTRODUCTION]
    for node, (comment, rows) in Reader(source).nodes.items():
        if rows:
            about = f"{comment}\n\n" if comment else ""
            table = "".join(map(_table_row, rows))
            parts.append(f"## {node}\n\n{about}| key | default | meaning |\n|---|---|---|\n{table}")
    return "\n".join(parts)


def _table_row(row: Row) -> str:
    keys, defaults, meaning = row
    names = "<br>".join(f"`{key}`" for key in keys)
    values = "<br>".join(f"`{value}`" for value in defaults)
    return f"| {names} | {values} | {_escape(meaning)} |\n"


def _escape(text: str) -> str:
    for sign in "|<>*$":
        text = text.replace(sign, f"\\{sign}")
    return text


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(make_page(SOURCE.read_text()))


if __name__ == "__main__":
    main()
