"""The search of a memory in blocks of locations and vectors, against all pairs in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdos_d2.modeling import memory as module
from tdos_d2.modeling.memory import FeatureMemory


@pytest.mark.parametrize("k", [1, 3])
def test_more_vectors_than_a_block(k):
    """5,000 vectors: two whole blocks and a part of one."""
    rng = np.random.default_rng(0)
    memory = FeatureMemory(["a"], [6], size=5000, neighbours=k)
    vectors = rng.standard_normal((5000, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    memory.vectors = torch.from_numpy(vectors)
    maps = rng.standard_normal((2, 6, 7, 11)).astype(np.float32)
    cells = maps.transpose(0, 2, 3, 1).reshape(-1, 6)
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    nearest = np.sort(cells.astype(np.float64) @ vectors.T.astype(np.float64))[:, -k:]
    with torch.no_grad():
        score = memory({"a": torch.from_numpy(maps)})
    expected = (1 - nearest.mean(1)).reshape(2, 7, 11)
    np.testing.assert_allclose(score.numpy(), expected, atol=1e-6)


def test_locations_are_compared_in_parts(monkeypatch):
    """A large map needs no more memory for cosines than a part of it, and has the same scores."""
    memory = FeatureMemory(["a"], [4], size=100)
    memory.vectors = torch.nn.functional.normalize(torch.randn(100, 4), dim=1)
    maps = {"a": torch.randn(1, 4, 9, 13)}
    whole = memory(maps)
    compared, real = [], module.linear

    def linear(queries, block):
        compared.append(len(queries) * len(block))
        return real(queries, block)

    monkeypatch.setattr(module, "linear", linear)
    monkeypatch.setattr(module, "_LOCATIONS", 20)
    torch.testing.assert_close(memory(maps), whole)
    assert max(compared) <= 20 * 100 and sum(compared) == 9 * 13 * 100
