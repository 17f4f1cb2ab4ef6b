"""What people call a checkpoint: found in it what is there, one line where nothing is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.loading.checkpoint import TDOSCheckpointer
from tdos_d2.modeling.clip import build_clip


def prefixed(prefix: str):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


WRAPPED = {
    "alone": dict,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "model_state_dict": lambda state: {"loss": torch.zeros(1), "model_state_dict": state},
    "both": lambda state: {"model": {"state_dict": state}},
    "module.": prefixed("module."),
    "compiled": lambda state: {"state_dict": prefixed("module._orig_mod.")(state)},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "callbacks": {}},
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("kind", ["clip", "model", "safetensors"])
def test_weights_are_found(how, kind, tmp_path):
    clip, _ = build_clip("tiny", "")
    content, path = WRAPPED[how](clip.state_dict()), tmp_path / "a.pth"
    if kind == "safetensors":
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            return  # a flat format
        path = tmp_path / "a.safetensors"
        pytest.importorskip("safetensors.torch").save_file(content, path)
    else:
        torch.save(content, path)
    if kind == "clip":
        loaded, _ = build_clip("tiny", str(path))
    else:
        loaded, _ = build_clip("tiny", "")
        checkpointer = TDOSCheckpointer(loaded)
        checkpointer.load(str(path))
        assert not checkpointer.not_loaded
    for key, value in clip.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_model_whose_own_names_have_the_prefix(tmp_path):
    model = nn.ModuleDict({"model": nn.Linear(1, 1)})
    torch.save(model.state_dict(), tmp_path / "a.pth")
    checkpointer = TDOSCheckpointer(model)
    checkpointer.load(str(tmp_path / "a.pth"))
    assert not checkpointer.not_loaded


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "holds a list, no weights"),
        (torch.zeros(3), "holds a Tensor, no weights"),
        ({}, "holds an empty dict, no weights"),
        ({"epoch": 3, "lr": 0.1}, "holds a dict with epoch, lr, no weights"),
        ({"state_dict": {"epoch": 3}}, "holds a dict with state_dict, no weights"),
        (nn.Linear(1, 1), r"holds Python objects \(torch.nn.modules.linear.Linear\)"),
        ({"model": nn.Linear(1, 1)}, r"holds Python objects .*save a state dict alone"),
    ],
    ids=str,
)
def test_files_without_weights(content, what, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    loaders = (
        lambda: build_clip("tiny", str(path)),
        lambda: TDOSCheckpointer(nn.Linear(1, 1)).load(str(path)),
    )
    for load in loaders:
        with pytest.raises(UserError, match=rf"a\.pth .*{what}") as caught:
            load()
        assert str(caught.value).isprintable()  # one line without escape codes
