"""House rules that hold for the repository as a whole."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["tdos_d2", "tdos_commands", "tools", "datasets", "examples", "tests"]
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))],
    key=lambda p: p.relative_to(ROOT).as_posix(),
)
# Prints what setup.py says. It runs before anything is installed: nothing of ours can be imported.
SETUP = """
import json, runpy, setuptools, sys
setuptools.setup = lambda **given: print(json.dumps(given))
sys.modules.update(dict.fromkeys(["torch", "numpy", "tdos_d2"]))
runpy.run_path("setup.py")
"""
# For every script: exit status and usage of --help, exit status of a wrong option, what is loaded.
HELP = """
import contextlib, io, runpy, sys
def ended(script, word):
    sys.argv, sys.path[0], out = [script, word], script.rpartition("/")[0], io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code, out.getvalue()[:6]
for script in sys.argv[1:]:
    answers = *ended(script, "--help"), *ended(script, "--no-such-option")
    print(*answers, sorted({"torch", "detectron2"} & sys.modules.keys()), script)
"""
# The pure-Python Detectron2 lacks the first; the second needs a module that setuptools dropped.
FORBIDDEN = ("detectron2._C", "detectron2.model_zoo")
# From the bottom up: imports run downwards only, and not between the parts of one line.
LAYERS = """
    labels config value_checks files untrusted errors cache coco cores templates
    ood_words data visualization
    modeling
    tdos normality_memory
    loading
    evaluation
    engine
    inference
    __init__ tdos_commands
    train_net tools datasets examples tests
"""
LAYER = {part: i for i, line in enumerate(LAYERS.strip().splitlines()) for part in line.split()}
TOP = ("tdos_d2", "tdos_commands", "train_net", "tools", "datasets", "examples", "tests")
COMMANDS = [
    *ROOT.glob("train_net.py"),
    *sorted((ROOT / "tools").glob("*.py")),
    *sorted((ROOT / "datasets").glob("[!_]*.py")),
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def too_long_functions(source: str, limit: int) -> list[str]:
    nodes = ast.walk(ast.parse(source))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if f.end_lineno - f.lineno + 1 > limit]


def imported(source: str) -> set[str]:
    """Dotted names that ``source`` imports: modules, and what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def module_file(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def modules_imported(path: Path, source: str) -> set[str]:
    """Modules of this repository that a file imports, wherever in it and however written."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                # The version is no part of any layer.
                if whole != "tdos_d2.__version__":
                    found.add(whole if module_file(whole) else base)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return {module for module in found if module.split(".")[0] in TOP}


def unit(module: str) -> str:
    """The part of the repository that a module belongs to: a line's word in ``LAYERS``."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__" if top == "tdos_d2" else top


def upward_imports(path: Path, source: str) -> list[str]:
    own = unit(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = []
    for module in sorted(modules_imported(path, source)):
        other = unit(module)
        lower, upper = LAYER[other], LAYER[own]
        # Only the modules of the bottom are so small that they may use each other.
        if other != own and (lower > upper or lower == upper > 0):
            found.append(module)
    return found


def forbidden_imports(source: str) -> list[str]:
    beginnings = tuple(f"{module}." for module in FORBIDDEN)
    return sorted(n for n in imported(source) if f"{n}.".startswith(beginnings))


def test_the_checks_find_what_they_look_for() -> None:
    assert len(SOURCES) > 5
    assert too_long_functions("def f():\n    a = 1\n    return a\n", limit=2) == ["f"]
    assert too_long_functions("def f():\n    a = 1\n    return a\n", limit=3) == []
    code = "import detectron2._C\ndef f():\n    from detectron2 import model_zoo, _Config\n"
    assert forbidden_imports(code) == ["detectron2._C", "detectron2.model_zoo"]


@pytest.mark.parametrize("limit, only", [(400, ""), (200, "train_net.py")])
def test_files_are_short(limit: int, only: str) -> None:
    lengths = {name(p): len(p.read_text().splitlines()) for p in SOURCES}
    chosen = {k: v for k, v in lengths.items() if only in k}
    assert {k: v for k, v in chosen.items() if v > limit} == {}


def test_functions_are_short() -> None:
    found = {name(p): too_long_functions(p.read_text(), limit=80) for p in SOURCES}
    assert {k: v for k, v in found.items() if v} == {}


def test_nothing_imports_what_a_pure_python_detectron2_lacks() -> None:
    found = {name(p): forbidden_imports(p.read_text()) for p in SOURCES}
    assert {k: v for k, v in found.items() if v} == {}


def json_with_nan(source: str) -> list[int]:
    """Lines that write JSON without ``allow_nan=False``: what NaN becomes is no JSON."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    writers = {"json.dump", "json.dumps"}
    return [
        call.lineno
        for call in calls
        if writers & {ast.unparse(part) for part in (call.func, *call.args)}
        and not any(ast.unparse(word) == "allow_nan=False" for word in call.keywords)
    ]


def test_no_json_holds_nan() -> None:
    assert json_with_nan("import json\nf(json.dumps, a)\njson.dump(1, allow_nan=False)\n") == [2]
    sources = [path for path in SOURCES if ROOT / "tests" not in path.parents]
    found = {name(path): json_with_nan(path.read_text()) for path in sources}
    assert {k: v for k, v in found.items() if v} == {}


def test_imports_run_downwards() -> None:
    checked = [p for p in SOURCES if p.parts[len(ROOT.parts)] not in ("tests", "setup.py")]
    found = {name(p): upward_imports(p, p.read_text()) for p in checked}
    assert {k: v for k, v in found.items() if v} == {}


@pytest.mark.parametrize(
    "path, code, found",
    [
        ("data/loaders.py", "from ..modeling import merge", ["tdos_d2.modeling.merge"]),
        ("data/loaders.py", "def f():\n    from .. import engine", ["tdos_d2.engine"]),
        ("data/verify/x.py", "from ...visualization import x", ["tdos_d2.visualization"]),
        ("ood_words/x.py", "import tdos_d2.data", ["tdos_d2.data"]),
        ("modeling/x.py", "from .. import get_config_file", ["tdos_d2"]),
        ("engine/x.py", "import_module('tdos_d2.inference')", ["tdos_d2.inference"]),
        ("engine/x.py", "from .. import __version__, evaluation, tdos\nimport cv2", []),
        ("engine/x.py", "from . import launch\nfrom ..files import atomic_write", []),
    ],
)
def test_an_import_that_runs_upwards_is_found(path: str, code: str, found: list[str]) -> None:
    assert upward_imports(ROOT / "tdos_d2" / path, code) == found


@pytest.mark.parametrize("folder", ["ood_words", "visualization"])
def test_words_and_pictures_need_neither_torch_nor_detectron2(folder: str) -> None:
    sources = (ROOT / "tdos_d2" / folder).glob("*.py")
    needed = {n.split(".")[0] for path in sources for n in imported(path.read_text())}
    assert "numpy" in needed and needed.isdisjoint(["torch", "detectron2"])


def test_every_module_is_in_a_package() -> None:
    folders = {p.parent for p in (ROOT / "tdos_d2").rglob("*.py")}
    assert [name(f) for f in folders if not (f / "__init__.py").exists()] == []


def test_setup() -> None:
    done = subprocess.run([sys.executable, "-c", SETUP], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = json.loads(done.stdout)
    needs = [*given["install_requires"], *given["extras_require"]["test"]]
    names = {re.match(r"[\w-]+", need).group().lower() for need in needs}
    # Detectron2 is on no index under its name: whoever took the name could run code here.
    assert "detectron2" not in names
    assert {"torch", "open_clip_torch", "opencv-python-headless"} <= names
    assert {p.split(".")[0] for p in given["packages"]} == {"tdos_d2", "tdos_commands"}
    text = (ROOT / "tdos_d2" / "__init__.py").read_text()
    assert f'__version__ = "{given["version"]}"' in text
    listed = re.sub(r"\W", "", (ROOT / "THIRD_PARTY.md").read_text().lower())
    assert [n for n in names if re.sub(r"\W", "", n) not in listed] == []


def test_commands_answer_help_without_torch_and_detectron2() -> None:
    """And no message on a wrong option: both take seconds to load. All commands in one process."""
    command = [sys.executable, "-c", HELP, *map(str, COMMANDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"0 usage: 2  [] {path}" for path in COMMANDS]
