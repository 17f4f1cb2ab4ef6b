"""Weights in TorchScript archives, read without torch.jit, which is the reference."""

from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from clip_models import random_clip, write
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import build_clip
from tdos_d2.modeling.torchscript import is_torchscript, read_torchscript


class Small(nn.Module):
    """Of several types, with a shared tensor, a view, an empty one, and lists as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Parameter(torch.randn(3, 4).half())
        self.norm = nn.BatchNorm2d(3)
        self.twin = self.norm
        self.register_buffer("steps", torch.arange(12)[2:8:2])
        self.register_buffer("turned", torch.randn(4, 6).T[1:])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flag", torch.tensor(True))
        self.sizes: list[int] = [1, 2]
        self.names = ["a"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self.sizes[0]


@pytest.fixture
def archive(tmp_path):
    torch.jit.script(Small()).save(str(tmp_path / "small.pt"))
    return tmp_path / "small.pt"


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """The archive with other files in it: ``change`` gets name and content."""
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in files.items():
            new.writestr(name, change(name, content))


def same(found, expected):
    assert expected.items() and set(expected) <= set(found)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_tensors_are_those_of_torch_jit(archive, tmp_path):
    assert is_torchscript(archive)
    same(read_torchscript(archive), torch.jit.load(str(archive)).state_dict())
    torch.save(Small().state_dict(), tmp_path / "state.pt")
    assert not is_torchscript(tmp_path / "state.pt")


def test_code_in_the_archive_is_not_even_compiled(archive):
    expected = torch.jit.load(str(archive)).state_dict()
    rewrite(archive, lambda name, old: b"while True: pass" if name.endswith(".py") else old)
    with pytest.raises(RuntimeError):
        torch.jit.load(str(archive))
    same(read_torchscript(archive), expected)


def test_clip_does_not_run_code(tmp_path, monkeypatch):
    path = write(random_clip("tiny"), "archive", tmp_path)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("ran"))
    clip, _ = build_clip("tiny", path)
    expected = random_clip("tiny").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in clip.state_dict().items())


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("code of the archive was run",))


def described_as(content):
    return lambda name, old: content if name.endswith("/data.pkl") else old


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (described_as(pickle.dumps(Exploit())), "holds Python objects"),
        (described_as(b"ctorch._utils\n_rebuild_qtensor\n."), "torch._utils._rebuild_qtensor"),
        (described_as(b"cbuiltins\neval\n."), "builtins.eval"),
        (described_as(pickle.dumps({})), "no weights"),
        (described_as(b""), "damaged"),
        (lambda name, old: old[:4] if "/data/" in name else old, "damaged"),
        (lambda name, old: old + bytes(4) if "/data/" in name else old, "damaged"),
        (lambda name, old: b"big" if name.endswith("byteorder") else old, "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_archive_of_weights_is_one_line(archive, change, message):
    rewrite(archive, change)
    with pytest.raises(UserError, match=rf"MODEL.CLIP.WEIGHTS: .*small\.pt .*{message}"):
        build_clip("tiny", str(archive))


def test_a_compressed_archive_is_refused(archive, tmp_path):
    rewrite(archive, lambda _, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_torchscript(archive)
