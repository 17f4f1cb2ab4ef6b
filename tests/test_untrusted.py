"""Files of strangers: limits, names that lead out, pipes and devices, text for the terminal."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tdos_d2.data import read_image
from tdos_d2.data.reading import image_size, read_values
from tdos_d2.errors import UserError, exit_with_one_line, printable
from tdos_d2.evaluation.score_files import read_score
from tdos_d2.files import find_files, stays_inside
from tdos_d2.untrusted import check_zip, load_arrays, parse_yaml, read_json, read_lines, read_text

ROOT = Path(__file__).resolve().parents[1]
# What runs code in a file or knows no limits, and the module that may call it.
CALLS = {
    r"\bpickle\.loads?\(": "", r"\byaml\.(unsafe_|full_)?load\(": "", r"\bjit\.load\(": "",
    r"\bnp\.load\(": "untrusted.py", r"\bImage\.open\(": "files.py",
    r"(?<![.\w])(eval|exec)\(": "", r"\btorch\.load\((?!.*weights_only=True)": "",
    r"\bmerge_from_file\(": "", r"allow_pickle=True": "",
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_readers_that_trust_their_file_are_not_called(call):
    folders = ("tdos_d2", "tdos_commands", "tools", "datasets")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [p.name for p in sources if re.search(call, p.read_text()) and p.name != CALLS[call]]
    assert len(sources) > 50 and found == []


def test_text_is_read_up_to_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\xc3\xa4")
    assert read_text(tmp_path / "a", 6) == "aä"
    with pytest.raises(ValueError, match="more than 5 bytes"):
        read_text(tmp_path / "a", 5)
    with pytest.raises(ValueError, match="device"):
        read_text("/dev/zero")


def test_a_list_may_name_a_million_files(tmp_path):
    (tmp_path / "list.txt").write_text("camera/front/2026-01-01/frame_0000000.jpg\n" * 10**6)
    assert len(read_lines(tmp_path / "list.txt", "list")) == 10**6


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "1" * 5000, "{", "\xff"])
def test_json_that_is_none(tmp_path, text):
    (tmp_path / "a").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError):
        read_json(tmp_path / "a")


def laughs(depth: int) -> str:
    """Each line has nine of the one before it."""
    lines = ["x0: &x0 [1]"]
    lines += [f"x{i + 1}: &x{i + 1} [{', '.join([f'*x{i}'] * 9)}]" for i in range(depth)]
    return "\n".join(lines)


def test_yaml_repeats_what_aliases_name_up_to_a_limit():
    assert parse_yaml(laughs(2), "a")["x2"] == [[[1]] * 9] * 9
    with pytest.raises(yaml.YAMLError, match="aliases"):
        parse_yaml(laughs(9), "a")
    assert parse_yaml("", "a") is None


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.getcwd []", "2020-13-99", "? [1]\n: 2", "&x [*x]", "\0"]
)
def test_yaml_that_is_none(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text, "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1}\n'a': 2\n", "the key 'a' of line 1 is repeated in line 3"),
        ("x:\n- a: {b: 1, c: 2, b: 3}", "the key 'b' of line 2 is repeated in line 2"),
        ("255: a\n0xFF: b", "the key '0xFF' of line 1 is repeated in line 2"),
    ],
)
def test_repeated_keys_of_yaml_are_named(text, message):
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text, "a.yaml")


def test_merged_keys_of_yaml_may_be_given_again():
    text = "a: &a {x: 1, y: {x: 2}}\nb: &b {z: 3}\nc:\n  <<: *a\n  <<: *b\n  x: 4\nd: [*a, *a]"
    content = parse_yaml(text, "a.yaml")
    assert content["c"] == {"x": 4, "y": {"x": 2}, "z": 3} and content["d"] == [content["a"]] * 2
    for path in (*ROOT.glob("configs/**/*.yaml"), ROOT / "tdos_d2/data/datasets/builtin.yaml"):
        assert parse_yaml(path.read_text(), path.name) == yaml.safe_load(path.read_text())


def test_arrays_that_would_fill_the_memory(tmp_path, monkeypatch):
    """Eight megabytes of zeros are some kilobytes on disk."""
    monkeypatch.setattr("tdos_d2.untrusted.MAX_ARRAYS", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": (2**20,)}
        )
        with archive.open("value.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            file.write(bytes(2**23))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**14
    with pytest.raises(UserError, match=r"bomb\.npz: it unpacks to more than 1048576 bytes"):
        read_score(tmp_path / "bomb.npz")
    content = io.BytesIO((tmp_path / "bomb.npz").read_bytes())
    with pytest.raises(ValueError, match="unpacks to more"):
        load_arrays(content)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, []], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", value=np.array([{}, []], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UserError, match=rf"{name}: Object arrays cannot be loaded"):
            read_score(tmp_path / name)


def hdf5(folder, name, write):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / name, "w") as file:
        write(h5py, file)
    return folder / name


def test_hdf5_that_leads_elsewhere_or_is_too_large(tmp_path):
    hdf5(tmp_path, "secret.h5", lambda _, file: file.create_dataset("value", data=np.ones((2, 3))))
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    text, layout = "no array of numbers", "in another file"

    def virtual(h5py, file):
        made = h5py.VirtualLayout((2, 3), "f8")
        made[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "value", (2, 3))
        file.create_virtual_dataset("value", made)

    outside = [(str(tmp_path / "secret.bin"), 0, 48)]
    cases = {
        layout: [
            lambda h5py, f: f.__setitem__("value", h5py.ExternalLink("secret.h5", "value")),
            lambda h5py, f: f.create_dataset("value", (2, 3), "f8", external=outside),
            virtual,
        ],
        text: [
            lambda h5py, f: f.create_dataset("value", data="text"),
            lambda h5py, f: f.create_dataset("value", (2,), h5py.ref_dtype),
            lambda h5py, f: f.create_group("value"),
        ],
        "more than 1073741824 bytes": [
            lambda h5py, f: f.create_dataset("value", (2**20, 2**20), "f4", chunks=(64, 64)),
        ],
    }
    for message, writers in cases.items():
        for i, write in enumerate(writers):
            with pytest.raises(UserError, match=rf"{i}\.h5: 'value' .*{message}"):
                read_score(hdf5(tmp_path, f"{i}.h5", write))


def test_images_of_absurd_size(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    for read in (read_image, read_values, image_size, read_score):
        with pytest.raises(UserError, match=r"large\.png: it has 12000x12000 pixels, more than"):
            read(tmp_path / "large.png")


def test_only_known_formats_are_decoded(tmp_path):
    """Pillow runs Ghostscript on PostScript, whatever the file is called."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    for read in (read_image, read_score):
        with pytest.raises(UserError, match=r"a\.png: (it is no image|cannot identify)"):
            read(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.h5"])
def test_pipes_in_folders_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert find_files(tmp_path) == [name]
    for read in (read_score, *([read_image, read_values] if name == "a.png" else [])):
        with pytest.raises(UserError, match=rf"{name}: it is a pipe, a socket or a device"):
            read(tmp_path / name)


def test_links_that_lead_nowhere_and_in_circles(tmp_path, monkeypatch):
    os.symlink("self.png", tmp_path / "self.png")
    os.symlink("nothing.png", tmp_path / "lost.png")
    assert find_files(tmp_path) == ["lost.png", "self.png"]
    with pytest.raises(UserError, match=r"self\.png: .*symbolic links"):
        read_image(tmp_path / "self.png")
    for i in range(6):  # of each to all: 6! paths
        (tmp_path / f"f{i}").mkdir()
        for j in range(6):
            os.symlink(f"../f{j}", tmp_path / f"f{i}" / f"l{j}")
    monkeypatch.setattr("tdos_d2.files._MAX_FOLDERS", 1000)
    with pytest.raises(UserError, match="over 1000 folders: do links lead in circles"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a.jpg", True), ("a/..b/c.jpg", True), ("/etc/passwd", False), ("../a", False),
     ("a/../../b", False), ("C:\\a", False), ("..\\a", False), ("\\\\host\\a", False)],
)  # fmt: skip
def test_names_that_lead_out(tmp_path, name, inside):
    assert stays_inside(name) == inside
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    if inside:
        check_zip(tmp_path / "a.zip", 1, stored=True)
    elif not name.startswith("/"):  # zipfile takes those for names below the folder
        with pytest.raises(ValueError, match="leads out of the archive"):
            check_zip(tmp_path / "a.zip", 1)


def test_archives_with_more_than_they_should(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1000))
    check_zip(tmp_path / "a.zip", 1000)
    with pytest.raises(ValueError, match="more than 999 bytes"):
        check_zip(tmp_path / "a.zip", 999)
    with pytest.raises(ValueError, match="is compressed"):
        check_zip(tmp_path / "a.zip", 1000, stored=True)


def test_names_do_not_steer_the_terminal(capsys):
    name = "a\x1b[2J\r\n\u202egnp.\udc80ä b"
    assert printable(name) == "a\\x1b[2J\\r\\n\\u202egnp.\\udc80ä b"

    def fail():
        raise UserError(f"cannot read {name}{'x' * 5000}")

    with pytest.raises(SystemExit):
        exit_with_one_line(fail)
    said = capsys.readouterr().err
    assert said.startswith("error: cannot read a\\x1b[2J\\r\\n") and said.count("\n") == 1
    assert len(said) < 2100 and said.endswith("x ...\n")
