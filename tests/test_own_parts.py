"""A pixel decoder and a training set of a user's own, named by a config and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from layouts import write_image
from script_loading import load_script

from tdos_commands import predict, train
from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.loading.config_files import load_config
from tdos_d2.modeling.registry import PIXEL_DECODER_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "architecture.md").read_text()


def listed(kind: str, first: str) -> str:
    """The block of the documentation whose first line begins with ``first``."""
    blocks = [block.split("```", 1)[0] for block in DOCS.split(f"```{kind}")[1:]]
    (found,) = [block.split("\n", 1)[1] for block in blocks if f"\n{first}" in block]
    return found


def forget_my_parts() -> None:
    """As in a process that has not read the config yet."""
    del sys.modules["my_parts"], PIXEL_DECODER_REGISTRY._obj_map["PlainPixelDecoder"]
    DatasetCatalog.remove("my_road_train")
    MetadataCatalog.remove("my_road_train")


def test_the_example_of_the_docs_trains_and_predicts(tmp_path, monkeypatch, forked_processes):
    """In two processes where they can be on a CPU: each has to import the part for itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TDOS_TRUST_IMPORTS", "1")
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
    processes = "1" if torch.cuda.is_available() else "2"
    config = ["--config-file", "my_config.yaml"]
    train.run([*config, "--num-gpus", processes, "--dist-url", "auto", *small])
    forget_my_parts()
    assert "PlainPixelDecoder" in (tmp_path / "output/my_config/log.txt").read_text()
    weights = ["MODEL.WEIGHTS", "output/my_config/model_final.pth"]
    images = ["--input", "my_road/images/0.png", "--output", "found"]
    predict.run([*config, *images, "--opts", *weights])
    forget_my_parts()
    assert list((tmp_path / "found").iterdir())


OWN_PART = """
from tdos_d2.modeling.pixel_decoder import TextPixelDecoder
from tdos_d2.modeling.registry import PIXEL_DECODER_REGISTRY

@PIXEL_DECODER_REGISTRY.register()
class PixelDecoderOfOnesOwn(TextPixelDecoder):
    pass
"""


@pytest.fixture
def own_part_cfg(tiny_cfg, tmp_path, monkeypatch):
    """Made by hand, not by ``load_config``; forgotten again after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parts_by_hand.py").write_text(OWN_PART)
    tiny_cfg.MODEL.IMPORTS = ["parts_by_hand"]
    tiny_cfg.MODEL.PIXEL_DECODER.NAME = "PixelDecoderOfOnesOwn"
    yield tiny_cfg
    del sys.modules["parts_by_hand"], PIXEL_DECODER_REGISTRY._obj_map["PixelDecoderOfOnesOwn"]


def test_the_predictor_imports_parts_for_itself(own_part_cfg):
    predictor = OODPredictor(own_part_cfg)
    assert type(predictor.model.pixel_decoder).__name__ == "PixelDecoderOfOnesOwn"


def test_the_model_to_export_has_the_part(own_part_cfg, tmp_path, monkeypatch):
    """Up to torch.export, which takes a minute."""
    tool = load_script("tools/export_model.py")
    exported = []

    def stop(model, *_) -> None:
        exported.append(model.model.pixel_decoder)
        raise UserError("stopped")

    monkeypatch.setattr("tdos_d2.inference.export.export_program", stop)
    monkeypatch.setenv("TDOS_TRUST_IMPORTS", "1")
    (tmp_path / "config.yaml").write_text(own_part_cfg.dump())
    words = ["--config-file", "config.yaml", "--output", "model.pt2"]
    monkeypatch.setattr(sys, "argv", ["export_model.py", *words])
    with pytest.raises(UserError, match="stopped"):
        tool.run()
    assert [type(part).__name__ for part in exported] == ["PixelDecoderOfOnesOwn"]


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


def test_code_that_a_strangers_config_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_part.py").write_text("open('was_run', 'w')")
    (tmp_path / "base.yaml").write_text("MODEL:\n  IMPORTS: [strange_part]\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(UserError, match=r"own\.yaml: MODEL\.IMPORTS would run .*strange_part"):
        load_config("own.yaml")
    assert not (tmp_path / "was_run").exists()
    load_config("own.yaml", ["MODEL.IMPORTS", "()"])
    assert not (tmp_path / "was_run").exists()
    load_config("own.yaml", ["MODEL.IMPORTS", "['strange_part']"])
    assert (tmp_path / "was_run").exists()
    monkeypatch.setenv("TDOS_TRUST_IMPORTS", "1")
    assert load_config("own.yaml").MODEL.IMPORTS == ["strange_part"]


@pytest.mark.parametrize("part", ["NECK", "TEXT", "CONTEXT_DECODER", "PIXEL_DECODER",
                                  "TRANSFORMER_DECODER"])  # fmt: skip
def test_parts_that_nobody_registered(tiny_cfg, part):
    from detectron2.modeling import build_model

    tiny_cfg.MODEL[part].NAME = "Odd"
    with pytest.raises(UserError, match=f"MODEL.{part}.NAME: 'Odd' is none of [A-Z]"):
        build_model(tiny_cfg)
