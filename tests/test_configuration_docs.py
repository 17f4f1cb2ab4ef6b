"""docs/configuration.md says what config.py says."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from tdos_d2 import add_tdos_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
SOURCE = (ROOT / "tdos_d2" / "config.py").read_text()


@pytest.fixture(scope="module")
def make_page():
    return runpy.run_path(str(ROOT / "tools" / "make_config_docs.py"))["make_page"]


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, CfgNode) else {name: value}
    return found


def documented() -> dict[str, tuple[object, str]]:
    """Full name of each key of the page -> default and meaning."""
    found, node = {}, ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            node = line[3:]
        elif line.startswith("| `"):
            keys, defaults, meaning = re.split(r" \| ", line.strip("| "), maxsplit=2)
            keys, defaults = (cell.split("<br>") for cell in (keys, defaults))
            for key, default in zip(keys, defaults, strict=True):
                assert f"{node}.{key}" not in found
                found[f"{node}.{key.strip('`')}"] = ast.literal_eval(default.strip("`")), meaning
    return found


def test_the_page_is_what_the_tool_makes_now(make_page):
    assert make_page(SOURCE) == PAGE, "run tools/make_config_docs.py"


def test_every_key_is_there_with_its_default_and_a_meaning():
    before, cfg = leaves(get_cfg()), get_cfg()
    add_tdos_config(cfg)
    after, page = leaves(cfg), documented()
    assert {k: after[k] for k in page} == {k: default for k, (default, _) in page.items()}
    assert {k for k, v in after.items() if k not in before or before[k] != v} <= set(page)
    assert [k for k, (_, meaning) in page.items() if len(meaning) < 10] == []


def test_a_new_key_makes_the_page_stale(make_page):
    line = "    cfg.TEST.MISSING = "
    assert SOURCE.count(line) == 1
    changed = make_page(SOURCE.replace(line, f"    cfg.TEST.NEW = (1, 'a')\n{line}"))
    assert '`NEW`<br>`MISSING` | `(1, "a")`<br>`"error"` |' in changed


def test_a_key_needs_a_comment(make_page):
    with pytest.raises(ValueError, match=r"line 3: MODEL\.NEW\.KEY has no comment"):
        make_page("def f(cfg):\n    node = cfg.MODEL.NEW = CN()\n    node.KEY = 1\n")
