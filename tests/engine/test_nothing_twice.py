"""An evaluation encodes its prompts once, and reads no list, header or checkpoint again."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from tdos_d2 import files
from tdos_d2.data import reading
from tdos_d2.data.datasets import registration_file
from tdos_d2.engine import TDOSCheckpointer, check_run
from tdos_d2.engine import train_command as command
from tdos_d2.modeling.clip import loading
from tdos_d2.modeling.text import PromptedText

NAMES = ("twice_a", "twice_b")


@pytest.fixture
def sets(tmp_path):
    """A file that registers two sets of one frame."""
    entries = []
    for name in NAMES:
        for folder in ("images", "labels"):
            (tmp_path / name / folder).mkdir(parents=True)
        label = np.zeros((32, 48), np.uint8)
        label[4:20, 4:20] = 1
        Image.fromarray(label).save(tmp_path / name / "labels" / "0.png")
        Image.fromarray(np.full((32, 48, 3), 50, np.uint8)).save(tmp_path / name / "images/0.png")
        roots = {f"{kind}_root": f"{name}/{kind}s" for kind in ("image", "label")}
        entries.append({"name": name, **roots, "min_pred": 1, "min_gt": 1})
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(entries))
    yield str(tmp_path / "sets.yaml")
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def count_calls(monkeypatch, counts: Counter, owner: object, name: str, key=str) -> None:
    called = getattr(owner, name)

    def counting(*args, **kwargs):
        counts[f"{name} {key(args[0])}"] += 1
        return called(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


def test_evaluation_of_two_sets_with_tta(frozen_cfg, sets, tmp_path, monkeypatch):
    TDOSCheckpointer(build_model(frozen_cfg), str(tmp_path)).save("model")
    cfg = frozen_cfg
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "model.pth"), str(tmp_path / "output")
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = sets, (), NAMES
    cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 0, 0, "RGB"
    cfg.SEED, cfg.MODEL.TDOS.EXTRA_SCORES = 0, ["max_logit"]
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = True, [32], False
    monkeypatch.setattr(command, "setup", lambda *_: None)  # Detectron2's takes seconds
    loading.release_weights()
    counts: Counter = Counter()
    count_calls(monkeypatch, counts, PromptedText, "_encode", lambda _: "")
    count_calls(monkeypatch, counts, torch, "load", lambda path: Path(path).name)
    count_calls(monkeypatch, counts, reading, "size_of_image", lambda file: Path(file.name).name)
    count_calls(monkeypatch, counts, registration_file, "parse_yaml", lambda _: "")
    args = Namespace(config_file="", eval_only=True, resume=False, num_gpus=1, num_machines=1)
    check_run(cfg, args)
    results = command.main(args, cfg, [])
    assert set(results) == set(NAMES) and "ood_max_logit_TTA" in results[NAMES[0]]
    # Of model.pth what it says of itself, mapped into memory, then the weights; of CLIP nothing.
    assert counts == {
        "_encode ": 1, "load model.pth": 2, "parse_yaml ": 1, "size_of_image 0.png": len(NAMES)
    }  # fmt: skip


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    read = []

    @files.once_per_file(2)
    def content(path: str) -> str:
        read.append(path)
        return Path(path).read_text()

    path = tmp_path / "a"
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            content(path)
    path.write_text("first")
    assert [content(path), content(str(path))] == ["first"] * 2 and len(read) == 3
    path.write_text("second")
    assert content(path) == "second" and len(read) == 4
    other = tmp_path / "b"  # of the same size, and put in its place
    other.write_text("SECOND")
    other.replace(path)
    assert content(path) == "SECOND"
