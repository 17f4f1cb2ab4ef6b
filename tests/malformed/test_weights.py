"""Malformed checkpoints, memories, CLIP weights, embeddings, and metadata of exported models."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import Case, damaged, no_files, outcomes, wrong_values
from safetensors.torch import save
from torch import nn

from tdos_d2.errors import UserError
from tdos_d2.loading.checkpoint import TDOSCheckpointer, read_checkpoint_info
from tdos_d2.modeling.clip import build_clip
from tdos_d2.modeling.memory import FeatureMemory
from tdos_d2.modeling.text.fixed_text import read_embeddings

ROOT = Path(__file__).resolve().parents[2]
INFO = {
    "class_names": ["road", "car"], "ood_name": "ood", "clip_name": "tiny", "seed": 3,
    "memory": {"vectors": 5, "encoder": "x", "levels": ["tap3"]},
}  # fmt: skip


def check(found) -> None:
    assert [o for o in found if o.fault] == []
    assert any(outcome.refused for outcome in found)


def content_of(suffix: str, state: dict, info=INFO) -> bytes:
    if suffix == ".safetensors":
        return save(state, {"tdos": json.dumps(info)})
    if suffix == ".pkl":
        arrays = {key: value.numpy() for key, value in state.items()}
        return pickle.dumps({"model": arrays, "__author__": "nobody"})
    file = io.BytesIO()
    torch.save({"model": state, "iteration": 3, "tdos": info}, file)
    return file.getvalue()


def checkpoint_cases(suffix: str, state: dict):
    yield from damaged(content_of(suffix, state), flips=12)
    yield from no_files()
    if suffix == ".pkl":
        return
    for name, info in wrong_values(INFO, 3):
        content = content_of(suffix, state, info)
        yield Case(name, lambda path, content=content: path.write_bytes(content))
    for name, value in {"nothing": {}, "shape": {"weight": torch.zeros(7, 7)}}.items():
        content = content_of(suffix, value)
        yield Case(name, lambda path, content=content: path.write_bytes(content))


def finite_or_not(model: nn.Module) -> bool:
    return all(value.shape == (2, 2) or value.ndim == 1 for value in model.state_dict().values())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_checkpoints(tmp_path, suffix):
    def read(path):
        read_checkpoint_info(path)
        model = nn.Linear(2, 2)
        TDOSCheckpointer(model).load(str(path))
        return model

    state = nn.Linear(2, 2).state_dict()
    check(outcomes(checkpoint_cases(suffix, state), tmp_path / "in", suffix, read, finite_or_not))


def test_memories(tmp_path):
    """Any number of vectors, but of the memory's channels."""
    def read(path):
        read_checkpoint_info(path)
        memory = FeatureMemory(["a"], [4], 10, 3)
        whole = f"{path} is not of the config's model: it has"
        TDOSCheckpointer(memory).load(str(path), whole=whole)
        return memory

    memory = FeatureMemory(["a"], [4], 10, 3)
    memory.vectors = torch.randn(6, 4)
    state = memory.state_dict()
    wrong = [torch.zeros(6, 5), torch.zeros(6), torch.zeros(()), torch.zeros(2, 3, 4)]

    def cases():
        yield from checkpoint_cases(".pth", state)
        for vectors in wrong:
            content = content_of(".pth", {**state, "vectors": vectors})
            yield Case("vectors", lambda path, content=content: path.write_bytes(content))

    check(outcomes(cases(), tmp_path / "in", ".pth", read, lambda found: found.vectors.ndim == 2))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_weights_of_clip(tmp_path):
    """Archives of another model: those that can be read do not fit, which is one line, too."""
    torch.jit.script(Small()).save(str(tmp_path / "good.pt"))
    content = (tmp_path / "good.pt").read_bytes()
    cases = itertools.chain(damaged(content, flips=20), no_files())
    found = outcomes(cases, tmp_path / "in", ".pt", lambda path: build_clip("tiny", str(path)),
                     lambda _: False)  # fmt: skip
    check(found)


def embedding_cases():
    good = {"names": np.array(["a", "b"]), "embeddings": np.ones((2, 4), np.float32)}
    file = io.BytesIO()
    np.savez(file, **good)
    yield from damaged(file.getvalue())
    yield from no_files()
    wrong = [
        {"names": np.array([["a", "b"]])}, {"names": np.array(["a"])}, {"names": np.array("a")},
        {"names": np.array([{}, []], object)}, {"embeddings": np.ones((2, 4), complex)},
        {"embeddings": np.full((2, 4), np.nan)}, {"embeddings": np.ones(2)},
        {"embeddings": np.array([["a"]] * 2)}, {"embeddings": np.ones((2, 0))},
        {"embeddings": np.array([[None]] * 2, object)}, {"embeddings": np.full((2, 4), 1e300)},
        {"embeddings": np.array(1.0)},
    ]  # fmt: skip
    for changed in wrong:
        yield Case(str(list(changed)), lambda path, c=changed: np.savez(path, **{**good, **c}))
    yield Case("one array", lambda path: np.savez(path, good["embeddings"]))


def test_embeddings(tmp_path):
    check(outcomes(embedding_cases(), tmp_path / "in", ".npz", lambda p: read_embeddings(str(p)),
                   lambda found: len(found[0]) == len(found[1]) == 2))  # fmt: skip


ABOUT = {
    "window_size": "0", "window_stride": "0", "input_size": "{}", "test_sizes": "{}",
    "class_names": '["road", "car", "sky"]', "threshold": "1.5",
}  # fmt: skip


def test_metadata_of_exported_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the example writes
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    shapes = {"windows": [1, 3, None, None], "k": [1, 3, None, None], "s": [1, None, None]}
    windows, *outputs = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    classes = helper.make_node("Identity", ["windows"], ["k"])
    score = helper.make_node("ReduceMean", ["windows"], ["s"], axes=[1], keepdims=0)
    graph = helper.make_graph([classes, score], "g", [windows], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = importlib.util.spec_from_file_location("one", ROOT / "examples/onnx_sliding_window.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))

    def cases():
        yield from damaged(model.SerializeToString(), flips=4)
        texts = ["", "x", "-1", "null", "[]", "[[[", "1e999", '{"size": 3}', '{"size": [0, 0]}',
                 '{"shorter": -5, "longer": 0}', "99999999999", "\x1b[2J"]  # fmt: skip
        for key in ABOUT:
            for text in texts:
                yield Case(f"{key}-{text}", lambda path, a={**ABOUT, key: text}: save_as(path, a))

    def save_as(path, about):
        helper.set_model_props(model, about)
        path.write_bytes(model.SerializeToString())

    def read(path):
        monkeypatch.setattr(sys, "argv", ["x", str(path), str(tmp_path / "a.png")])
        try:
            example.main()
        except SystemExit as end:
            raise UserError(str(end.code)) from end

    check(outcomes(cases(), tmp_path / "in", ".onnx", read, lambda found: found is None))
