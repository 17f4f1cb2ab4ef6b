"""What tests of several tools use."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from tdos_d2.loading.checkpoint import TDOSCheckpointer


@pytest.fixture
def model(tiny_cfg, tmp_path):
    """Words of the command line that name a config and its checkpoint."""
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    (tmp_path / "model.yaml").write_text(tiny_cfg.dump())
    torch.manual_seed(0)
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    return ["--config-file", str(tmp_path / "model.yaml")]
