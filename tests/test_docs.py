"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from tdos_d2 import add_tdos_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("datasets/*.md")])
METHOD = (ROOT / "docs" / "method.md").read_text()


def defects() -> dict[int, str]:
    """Number of a defect -> the last cell of its row."""
    rows = [line.split(" | ") for line in METHOD.splitlines() if re.match(r"\| \d+ \| ", line)]
    return {int(row[0].strip("| ")): row[-1] for row in rows}


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, test) of each `file::test` in a cell; a bare `::test` is in the file before it."""
    found, file = [], ""
    for path, test in re.findall(r"`([\w/.]*)::(\w+)`", cell):
        file = path or file
        found.append((file, test))
    return found


def test_every_defect_is_decided_and_the_first_23_have_tests():
    assert list(defects()) == list(range(1, 31))
    assert [n for n, cell in defects().items() if n <= 23 and not named_tests(cell)] == []


@pytest.mark.parametrize("number", defects())
def test_the_tests_named_are_there(number):
    for file, test in named_tests(defects()[number]):
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_config_keys_named_are_there(page):
    cfg = get_cfg()
    add_tdos_config(cfg)
    nodes = "|".join(key for key, value in cfg.items() if isinstance(value, CfgNode))
    for key, group in re.findall(
        rf"\b((?:{nodes})(?:\.[A-Z0-9_]+)+)(\.{{[A-Z_,\s]+}})?", page.read_text()
    ):
        node = cfg
        for part in key.split("."):
            assert part in node, f"{page.name}: {key}"
            node = node[part]
        missing = [name for name in re.findall(r"[A-Z_]+", group) if name not in node]
        assert not missing, f"{page.name}: {key} has no {missing}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"
