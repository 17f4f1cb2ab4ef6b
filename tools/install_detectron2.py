"""Install a pure-Python Detectron2 into this Python, unless one is installed.

Detectron2 is on no package index under its own name, and building it needs a compiler. The LabGym
wheel contains a copy of its main branch (January 2024, version string 0.6) in which only the import
prefix differs. This tool extracts only that folder from the wheel, restores the prefix and moves
the result into site-packages, so that pip lists and uninstalls it. The compiled part,
``detectron2._C``, is absent: tdos_d2 never needs it.

It needs only the standard library and pip.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "LabGym==3.1.2"
SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
DIST_INFO = "detectron2-0.6.dist-info"
METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: 0.6
Summary: Detectron2 (main, January 2024) without its compiled part
Home-page: https://github.com/facebookresearch/detectron2
License: Apache-2.0
Requires-Python: >=3.8

Copyright (c) Facebook, Inc. and its affiliates. Licensed under the Apache License, Version 2.0:
https://www.apache.org/licenses/LICENSE-2.0

Pure-Python copy, taken from the folder `LabGym/detectron2` of the wheel {REQUIREMENT} by
tdos_d2's tools/install_detectron2.py. Changed: the import prefix `LabGym.detectron2` is
`detectron2` again. Not included: the compiled module `detectron2._C`.
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: tdos_d2
Root-Is-Purelib: true
Tag: py3-none-any
"""
# Prints the path of `detectron2` and, if it can be imported, its version; nothing if there is none.
PROBE = """\
import importlib.util
spec = importlib.util.find_spec("detectron2")
if spec is not None:
    print(spec.origin or list(spec.submodule_search_locations)[0], flush=True)
    import detectron2
    print(detectron2.__version__)
"""


class InstallError(Exception):
    """The reason why Detectron2 cannot be installed, in one line for the user."""


def probe(folder: Path | None = None) -> tuple[str, str] | None:
    """Look for Detectron2 in a new interpreter.

    Args:
        folder: searched before the default search path.

    Returns:
        (path of the package, its version), or None if there is no ``detectron2``.

    Raises:
        InstallError: a ``detectron2`` exists, but cannot be imported.
    """
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if folder is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH")]))
    # Run in this file's folder: a clone of Detectron2 in the current folder would be found instead.
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=env, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        name = "the new copy of" if folder else f"{''.join(lines[:1])}:"
        raise InstallError(f"{name} detectron2 cannot be imported ({errors[-1]})")
    return (lines[0], lines[-1]) if lines else None


def download(folder: Path) -> Path:
    """Get the wheel with pip into ``folder`` and return its path.

    Raises:
        InstallError: no pip, no network, or the index no longer has the wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.10", "--ignore-requires-python", "--no-input", "-vv"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    # Without a network, pip also reports "no matching distribution"; its debug log has the cause.
    unreachable = [x for x in lines if "Could not fetch URL" in x and "404 Client" not in x]
    if unreachable:
        raise InstallError(
            f"pip could not reach the package index for {REQUIREMENT}: check the network, then "
            f"run this again ({unreachable[0].strip().split(': ')[0]})"
        )
    if any("No matching distribution" in line for line in lines):
        raise InstallError(
            f"the package index no longer has {REQUIREMENT}: install Detectron2 yourself, see "
            f"{GUIDE}"
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    raise InstallError(f"pip could not download {REQUIREMENT} ({errors[-1]})")


def read_wheel(path: Path) -> bytes:
    """The wheel's bytes, after a check of its checksum.

    Raises:
        InstallError: the file cannot be read or is not the expected one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InstallError(f"cannot read the wheel {path} ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise InstallError(
            f"wrong checksum, not installed: {path.name} has sha256 {found}, expected {SHA256}"
        )
    return content


def unpack(wheel: bytes, stage: Path) -> None:
    """Write the package and its dist-info into ``stage``, laid out as in site-packages."""
    files = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            if name.startswith("LabGym/detectron2/") and not name.endswith("/"):
                content = archive.read(name).replace(b"LabGym.detectron2", b"detectron2")
                files[name.removeprefix("LabGym/")] = content
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL.encode()
    files[f"{DIST_INFO}/INSTALLER"] = b"tdos_d2\n"
    files[f"{DIST_INFO}/RECORD"] = _record(files).encode()
    for name, content in files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_bytes(content)


def _record(files: dict[str, bytes]) -> str:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([f"{DIST_INFO}/RECORD", "", ""])
    return table.getvalue()


def move_into_place(stage: Path, site: Path) -> None:
    """Rename dist-info and package from ``stage`` into ``site``; after an error, neither."""
    # dist-info first: if the machine stops in between, pip can still uninstall it.
    names = [DIST_INFO, "detectron2"]
    try:
        for name in names:
            os.rename(stage / name, site / name)
    except BaseException:
        for name in names:
            if not (stage / name).exists():
                shutil.rmtree(site / name)
        raise


def install(wheel: Path | None = None) -> str:
    """Install Detectron2 unless it is installed.

    Args:
        wheel: the LabGym wheel, already downloaded; None = get it with pip.

    Returns:
        What was done, in one line.

    Raises:
        InstallError: nothing was installed; the message has the reason.
    """
    try:
        found = probe()
    except InstallError as error:
        raise InstallError(f"{error}; repair or remove it, then try again") from error
    if found:
        return f"Detectron2 {found[1]} is already here ({found[0]}): nothing to do"
    site = Path(sysconfig.get_path("purelib"))
    rest = [*site.glob("detectron2"), *site.glob("detectron2-*.dist-info")]
    if rest:
        raise InstallError(f"{rest[0]} is the rest of an older install: remove it, then try again")
    try:
        # The stage is inside site-packages, so that the final renames are within one file system.
        with tempfile.TemporaryDirectory(prefix=".detectron2-", dir=site) as folder:
            stage = Path(folder, "stage")
            unpack(read_wheel(wheel or download(Path(folder))), stage)
            try:
                probe(stage)
            except InstallError as error:
                raise InstallError(
                    f"{error}; first install what it needs: `{sys.executable} -m pip install -e .`"
                ) from error
            move_into_place(stage, site)
    except OSError as error:
        raise InstallError(
            f"cannot write to {site} ({error.strerror or error}): use a virtual environment"
        ) from error
    return f"Detectron2 0.6 (pure-Python copy from {REQUIREMENT}) is now in {site}"


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 = Detectron2 is there, 2 = it could not be installed, 130 = interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    wheel_help = f"the wheel of {REQUIREMENT}, already downloaded; without it pip gets it"
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=wheel_help)
    args = parser.parse_args(argv)
    # SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(install(args.wheel))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted, Detectron2 was not installed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
