"""A pixel decoder and a training set of a user's own, named by a config and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layouts import write_image

from tdos_d2.errors import UserError
from tdos_d2.loading.config_files import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "architecture.md").read_text()


def listed(kind: str, first: str) -> str:
    """The block of the documentation whose first line begins with ``first``."""
    blocks = [block.split("```", 1)[0] for block in DOCS.split(f"```{kind}")[1:]]
    (found,) = [block.split("\n", 1)[1] for block in blocks if f"\n{first}" in block]
    return found


def test_the_example_of_the_docs_trains(tmp_path):
    (tmp_path / "my_parts.py").write_text(listed("python", "# my_parts.py"))
    config = listed("yaml", "# my_config.yaml").replace(
        "configs/demo.yaml", str(ROOT / "configs/demo.yaml")
    )
    (tmp_path / "my_config.yaml").write_text(config)
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = rng.integers(0, 256, (96, 192, 3), np.uint8)
        write_image(tmp_path / f"my_road/images/{i}.png", picture)
        label = np.repeat(np.arange(3, dtype=np.uint8), 64)[None].repeat(96, 0)
        write_image(tmp_path / f"my_road/masks/{i}.png", label)
    small = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()"]
    done = subprocess.run(
        [sys.executable, ROOT / "train_net.py", "--config-file", "my_config.yaml", *small],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "PlainPixelDecoder" in done.stdout + done.stderr
    assert (tmp_path / "output/my_config/model_final.pth").is_file()


@pytest.mark.parametrize(
    ("code", "message"),
    [(None, "cannot import 'no_such_parts'"), ("1 / 0", "no_such_parts': division by zero")],
)
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, code, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if code:
        (tmp_path / "no_such_parts.py").write_text(code)
    with pytest.raises(UserError, match=f"MODEL.IMPORTS: .*{message}"):
        load_config("demo.yaml", ["MODEL.IMPORTS", "['no_such_parts']"])


@pytest.mark.parametrize("part", ["NECK", "TEXT", "CONTEXT_DECODER", "PIXEL_DECODER",
                                  "TRANSFORMER_DECODER"])  # fmt: skip
def test_parts_that_nobody_registered(tiny_cfg, part):
    from detectron2.modeling import build_model

    tiny_cfg.MODEL[part].NAME = "Odd"
    with pytest.raises(UserError, match=f"MODEL.{part}.NAME: 'Odd' is none of [A-Z]"):
        build_model(tiny_cfg)
