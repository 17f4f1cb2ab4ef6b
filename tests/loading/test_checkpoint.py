"""Checkpoints: never half written, read safely, one clear line when something is wrong."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.files import atomic_write
from tdos_d2.loading.checkpoint import TDOSCheckpointer, read_checkpoint_info


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def checkpoint_info(self) -> dict:
        return {"class_names": ["road", "car"], "ood_name": "ood"}


@pytest.fixture
def checkpointer(tmp_path):
    return TDOSCheckpointer(Model(), str(tmp_path), run_info={"seed": 7})


def test_round_trip(checkpointer, tmp_path):
    checkpointer.save("model_a", iteration=3)
    other = TDOSCheckpointer(Model(), str(tmp_path))
    rest = other.resume_or_load("", resume=True)
    assert torch.equal(other.model.linear.weight, checkpointer.model.linear.weight)
    assert rest["iteration"] == 3
    info = read_checkpoint_info(tmp_path / "model_a.pth")
    assert info == {"class_names": ["road", "car"], "ood_name": "ood", "seed": 7}


def test_model_without_info_and_foreign_files(tmp_path):
    TDOSCheckpointer(nn.Linear(1, 1), str(tmp_path)).save("plain")
    assert read_checkpoint_info(tmp_path / "plain.pth") == {}
    old_format = {"_use_new_zipfile_serialization": False}
    torch.save({"weight": torch.zeros(1)}, tmp_path / "old.pth", **old_format)
    assert read_checkpoint_info(tmp_path / "old.pth") == {}


def test_crash_while_saving_keeps_the_old_checkpoint(checkpointer, tmp_path, monkeypatch):
    checkpointer.save("model_final")
    good = (tmp_path / "model_final.pth").read_bytes()
    checkpointer.model.linear.weight.data.fill_(5)

    def crash(data, file):
        file.write(b"half a checkpoint")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    for name in ("model_final", "model_b"):
        with pytest.raises(OSError, match="No space"):
            checkpointer.save(name)
    assert (tmp_path / "model_final.pth").read_bytes() == good
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_last_checkpoint_is_written_after_the_file(checkpointer, tmp_path, monkeypatch):
    def crash(name):
        assert (tmp_path / name).is_file()
        raise KeyboardInterrupt

    checkpointer.save("model_a")
    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_b")
    assert (tmp_path / "last_checkpoint").read_text() == "model_a.pth"


def test_atomic_write_replaces_at_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off"])
def test_damaged_file(checkpointer, tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    for read in (read_checkpoint_info, lambda p: checkpointer.load(str(p))):
        with pytest.raises(UserError, match=r"bad\.pth cannot be read") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_truncated_checkpoint(checkpointer, tmp_path):
    checkpointer.save("model_a")
    path = tmp_path / "model_a.pth"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="model_a"):
        checkpointer.load(str(path))


def test_file_of_something_else(checkpointer, tmp_path):
    torch.save({"model": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth has nothing that fits"):
        checkpointer.load(str(tmp_path / "other.pth"))


def test_missing_file_and_next_load(checkpointer, tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth does not exist"):
        checkpointer.load(str(tmp_path / "gone.pth"))
    with pytest.raises(UserError, match=r"gone\.pth does not exist"):
        read_checkpoint_info(tmp_path / "gone.pth")
    checkpointer.save("model_a")
    checkpointer.load(str(tmp_path / "model_a.pth"))  # an error leaves no trace


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("code of the checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(checkpointer, tmp_path):
    torch.save({"model": {}, "x": Exploit()}, tmp_path / "evil.pth")
    for read in (read_checkpoint_info, lambda p: checkpointer.load(str(p))):
        with pytest.raises(UserError, match=r"evil\.pth"):
            read(tmp_path / "evil.pth")


@pytest.mark.parametrize("name", ["zoo.pkl", "model.pyth"])
def test_code_in_a_pickle_is_not_run(checkpointer, tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"model": {}, "__author__": Exploit()}))
    with pytest.raises(UserError, match=name):
        checkpointer.load(str(tmp_path / name))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_that_cannot_be_reached(checkpointer, scheme, capsys):
    address = f"{scheme}://127.0.0.1:9/model.pth"  # nothing listens there
    expected = rf"^MODEL.WEIGHTS: {address} cannot be reached \(.*refused"
    with pytest.raises(UserError, match=expected):
        checkpointer.load(address)
    assert "model.pth: 0" not in capsys.readouterr().err  # no progress bar


def test_few_lines_for_many_tensors(tmp_path, caplog):
    torch.save({"0.weight": torch.zeros(1, 1)}, tmp_path / "a.pth")
    checkpointer = TDOSCheckpointer(nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)]))
    checkpointer.load(str(tmp_path / "a.pth"))
    assert len(checkpointer.not_loaded) == 99
    assert caplog.text.count("\n") <= 22 and "not loaded from" in caplog.text
    assert caplog.records[-1].getMessage().endswith("79 more")
    caplog.clear()
    with pytest.raises(UserError, match="of another model: no fitting 0.bias and 98 more"):
        checkpointer.load(str(tmp_path / "a.pth"), whole="of another model:")
    assert not [record for record in caplog.records if record.name.startswith("tdos_d2")]


def test_detectron2_pickles_still_load(checkpointer, tmp_path):
    weights = {"linear.weight": torch.ones(2, 2).numpy(), "linear.bias": torch.zeros(2).numpy()}
    with open(tmp_path / "zoo.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "someone"}, file)
    checkpointer.load(str(tmp_path / "zoo.pkl"))
    assert torch.equal(checkpointer.model.linear.weight, torch.ones(2, 2))
    assert read_checkpoint_info(tmp_path / "zoo.pkl") == {}


def test_a_memory_that_no_score_needs_is_no_damage(tiny_cfg, tmp_path, caplog):
    tiny_cfg.MODEL.TDOS.SCORE = "combined"
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("fitted")
    tiny_cfg.MODEL.TDOS.SCORE = "log_s_ood"
    with caplog.at_level(logging.INFO):
        TDOSCheckpointer(build_model(tiny_cfg)).load(str(tmp_path / "fitted.pth"))
    assert "fitted.pth also has a memory" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
