"""The list of mutations fits the code; running them finds those that no test notices."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from script_loading import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/mutants.py")


def test_every_text_is_in_its_file_once(tool, tmp_path):
    names = set()
    for mutant in tool.mutants():
        (tmp_path / mutant.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / mutant.file, tmp_path / mutant.file)
        mutant.apply(tmp_path)  # raises where it does not fit
        changed = (tmp_path / mutant.file).read_text()
        assert changed != (ROOT / mutant.file).read_text(), mutant
        if mutant.file.endswith(".py"):
            compile(changed, str(mutant), "exec")
        assert [t for t in mutant.tests.split() if not (ROOT / t).is_file()] == []
        names.add(str(mutant))
    assert len(names) == len(list(tool.mutants())) > 80


def test_survivors_and_lost_texts_are_reported(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "code_of_it.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_code.py").write_text(
        "import code_of_it\n\ndef test_double():\n    assert code_of_it.double(2) == 4\n"
    )
    monkeypatch.delitem(sys.modules, "tdos_d2", raising=False)  # that of other tests, not a copy
    monkeypatch.setattr(tool, "copy_repository", lambda root: shutil.copytree(tmp_path, root))
    breaks = {"tripled": ("2 * x", "3 * x"), "squared": ("2 * x", "x * x"), "gone": ("5 * x", "x")}
    run = {}
    for name in breaks:
        table = {("code_of_it.py", "test_code.py"): {name: breaks[name]}}
        monkeypatch.setattr(tool, "MUTANTS", table)
        monkeypatch.setattr(sys, "argv", ["mutants.py"])
        run[name] = tool.main(), capsys.readouterr().out
    assert run["tripled"][0] == 0 and "noticed  code_of_it.py: tripled" in run["tripled"][1]
    assert run["squared"][0] == 1 and "SURVIVES code_of_it.py: squared" in run["squared"][1]
    assert run["gone"][0] == 1 and "'5 * x' is there 0 times" in run["gone"][1]
