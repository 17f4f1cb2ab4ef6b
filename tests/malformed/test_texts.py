"""Malformed configs, KEY VALUE pairs, dataset lists, COCO JSON, WordNet, word lists, thresholds."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from mutations import Case, damaged, json_cases, no_files, outcomes, wrong_values
from PIL import Image
from tiny_wordnet import write_wordnet

from tdos_d2.data import register_from_file
from tdos_d2.data.coco_objects import CocoSource
from tdos_d2.errors import UserError
from tdos_d2.evaluation.calibration import Calibration, calibration_file, load_calibration
from tdos_d2.evaluation.operating_point import (
    OperatingPoint,
    load_operating_point,
    save_operating_point,
)
from tdos_d2.evaluation.threshold_files import write_threshold
from tdos_d2.evaluation.threshold_rules import parse_rule
from tdos_d2.loading.config_files import load_config
from tdos_d2.ood_words import WordGroups, load_groups
from tdos_d2.ood_words.wordnet import open_wordnet, version

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    """A script of ``tools/`` or ``datasets/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"malformed_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(found) -> None:
    assert [o for o in found if o.fault] == []
    assert any(outcome.refused for outcome in found)


def yaml_cases(document, per_key):
    for name, changed in wrong_values(document, per_key):
        content = yaml.safe_dump(changed).encode()
        yield Case(name, lambda path, content=content: path.write_bytes(content))
    content = yaml.safe_dump(document).encode()
    yield from damaged(content, flips=4)
    yield from no_files()
    for i, text in enumerate(
        ["!!python/object/apply:os.system [id]\n", "? [1]\n: 2\n", "a: b: c\n", "[" * 3000,
         "x: &x [*x]\n", "%YAML 9.9\n---\n", "--- 1\n--- 2\n", "a: 2020-99-99\n", "\t- x\n"]
    ):  # fmt: skip
        yield Case(f"text-{i}", lambda path, text=text: path.write_text(text))


def test_configs(tmp_path):
    """What is wrong by itself is said by the reader, what only means nothing by the parts."""
    small = {
        "_BASE_": str(ROOT / "configs" / "demo.yaml"),
        "MODEL": {"TDOS": {"CLASS_NAMES": ["a", "b"], "NUM_NEGATIVE": 3}, "PIXEL_MEAN": [1, 2, 3]},
        "DATASETS": {"TRAIN": ["demo_train"]},
        "INPUT": {"TEST_SIZES": [["demo_ood", 64, 64]], "SCALE_RANGE": [0.5, 2]},
        "SOLVER": {"MULTIPLIERS": [["backbone", 0.1]], "BASE_LR": 0.1, "MAX_ITER": 3},
    }
    fits = lambda cfg: cfg.MODEL.TDOS.NUM_NEGATIVE >= 0  # noqa: E731
    check(outcomes(yaml_cases(small, 3), tmp_path / "in", ".yaml", lambda p: load_config(str(p)),
                   fits, named=r"^(MODEL|SOLVER|INPUT|DATASETS)\b"))  # fmt: skip


PAIRS = [
    ["SOLVER.MAX_ITER"], ["SOLVER", "3"], ["SOLVER.", "3"], [".", "3"], ["", ""], ["--x", "3"],
    ["SOLVER.MAX_ITER", "[" * 500], ["SOLVER.MAX_ITER", "9" * 5000], ["SOLVER.MAX_ITER", "1e999"],
    ["SOLVER.MAX_ITER", "None"], ["SOLVER.BASE_LR", "nan"], ["SOLVER.BASE_LR", "float('nan')"],
    ["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR", "-1"], ["SOLVER.BASE_LR", "__import__('os')"],
    ["SOLVER.MAX_ITER.X", "3"], ["MODEL.TDOS", "{}"], ["MODEL.TDOS", "3"], ["DATASETS.TEST", "x"],
    ["DATASETS.TEST", "[[1]]"], ["MODEL.PIXEL_MEAN", "[1, 2]"], ["SOLVER.MAX_ITER", "\x1b[2J"],
    ["OUTPUT_DIR", "a\x1b[2Jb"], ["OUTPUT_DIR", "{'a': 1}"], ["SEED", str(2**40)],
    ["INPUT.TEST_SIZES", "[['a', 1]]"], ["SOLVER.MULTIPLIERS", "[['a', 'b']]"],
    ["MODEL.IMPORTS", "['no_such_module_anywhere']"], ["DATASETS.REGISTER", "/dev/zero"],
    ["DATASETS.REGISTER", "nowhere.yaml"], ["VERSION", "x"], ["MODEL.TDOS.CLASS_NAMES", "3"],
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_pairs_of_key_and_value(pair):
    with pytest.raises(UserError) as caught:
        load_config("demo.yaml", pair)
    text = str(caught.value)
    assert text.isprintable() and (pair[0][:4] in text or pair[-1] in text)


def test_lists_of_datasets(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    entry = {
        "name": "malformed_set", "image_root": "../images", "label_root": "../masks",
        "image_glob": "*.png", "label_suffix": ".png", "id_values": [0], "ood_values": [1],
        "ignore_values": [255], "undeclared": "error", "protocol": "anomaly", "min_pred": 5,
        "min_gt": 5, "test_size": [64, 32],
    }  # fmt: skip

    def read(path):
        names = register_from_file(path)
        for name in names:  # not to be taken in the next case
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        return names

    check(outcomes(yaml_cases([entry], 3), tmp_path / "in", ".yaml", read,
                   lambda names: names in ([], ["malformed_set"], ["x"])))  # fmt: skip


COCO = {
    "images_root": "..",
    "instances": [{"file": "a.png", "category": "cat", "bbox": [0, 0, 5, 5], "area": 12.5,
                   "segmentation": [[0, 0, 5, 0, 5, 5]]}],
    "parameters": {},
}  # fmt: skip
RUNS = {"file": "a.png", "category": "cat", "bbox": [0, 0, 5, 5], "area": 12.5,
        "segmentation": {"size": [8, 8], "counts": [0, 5, 59]}}  # fmt: skip


def coco_cases():
    yield from json_cases(COCO)
    yield from json_cases({**COCO, "instances": [RUNS]})
    yield from no_files()
    for name in ("/etc/passwd", "../../a.png", "C:\\a.png", "/dev/zero"):
        changed = {**COCO, "instances": [{**COCO["instances"][0], "file": name}]}
        text = json.dumps(changed)
        yield Case(name, lambda path, text=text: path.write_text(text))


def test_lists_of_coco_objects(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    rng = np.random.default_rng(0)

    def read(path):
        return CocoSource(path).sample(rng, 20)

    check(outcomes(coco_cases(), tmp_path / "in", ".json", read,
                   lambda found: found[0].shape[:2] == found[1].shape))  # fmt: skip


def test_annotations_of_coco(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    monkeypatch.setattr(sys, "argv", ["x"])
    module = script("datasets/prepare_coco_outliers.py")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 12.5, "iscrowd": 0,
                         "bbox": [0, 0, 5, 5], "segmentation": [[0, 0, 5, 0, 5, 5]]}],
    }  # fmt: skip
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").touch()
    refused = module.common.PrepareError

    def read(path):
        output, source = path.with_suffix(".out"), path.with_suffix(".coco")
        (source / "annotations").mkdir(parents=True)
        if os.path.lexists(path):
            path.rename(source / "annotations" / "instances_train2017.json")
        words = ["--source", str(source), "--images", str(images), "--output", str(output)]
        try:
            module.main([*words, "--min-area", "1"])
        except refused as error:
            raise UserError(str(error)) from error
        return json.loads(output.read_text())["instances"]

    cases = itertools.chain(json_cases(document, 3), no_files())
    check(outcomes(cases, tmp_path / "in", ".json", read, lambda found: len(found) <= 1,
                   named=r"instances_train2017\.json"))  # fmt: skip


def wordnet_cases(folder):
    for name in ("data.noun", "index.noun"):
        for case in itertools.chain(damaged((folder / name).read_bytes(), flips=4), no_files()):
            def write(path, name=name, case=case):
                write_wordnet(path)
                (path / name).unlink()
                case.write(path / name)

            yield Case(f"{name}-{case.name}", write)


def test_folders_of_wordnet(tmp_path):
    def read(path):
        from tdos_d2.ood_words import grouping

        with open_wordnet(path) as reader:
            version(reader)
            return grouping.build_groups(
                reader, ["car"], num_groups=2, tokenize=lambda text: text.split()
            )

    good = write_wordnet(tmp_path / "good")
    check(outcomes(wordnet_cases(good), tmp_path / "in", "", read,
                   lambda found: len(found.words) > 1, named="WordNet"))  # fmt: skip


WORDS = WordGroups(("car",), ("dog", "sofa", "deer"), (0.1, 0.2, 0.3), ((0, 1), (1, 3)), "a test",
                   {"distance": "wup"}, "none")  # fmt: skip


def test_lists_of_words(tmp_path):
    WORDS.save(tmp_path / "good.json")
    document = json.loads((tmp_path / "good.json").read_text())
    cases = itertools.chain(json_cases(document), no_files())
    check(outcomes(cases, tmp_path / "in", ".json", load_groups, lambda found: found.words))


def test_files_of_words(tmp_path):
    read_words = script("tools/encode_text.py").read_words
    cases = itertools.chain(damaged("dog\nsofa\nmäuse\n".encode()), no_files())
    check(outcomes(cases, tmp_path / "in", ".txt", read_words,
                   lambda words: all(isinstance(word, str) for word in words)))  # fmt: skip


@pytest.mark.parametrize("kind", ["best F1", "calibrated", "rule"])
def test_thresholds(tmp_path, kind):
    checkpoint = tmp_path / "model.pth"
    checkpoint.write_text("weights")
    if kind == "calibrated":
        good = calibration_file(checkpoint)
        write_threshold(good, checkpoint, Calibration(1.5, 0.1, 9, 20), {})
        read = lambda path: load_calibration(checkpoint, path)  # noqa: E731
    elif kind == "best F1":
        good = save_operating_point(checkpoint, OperatingPoint("energy", 1.5, "set", 90.0))

        def read(path):
            good.unlink(missing_ok=True)
            if path.exists() or path.is_symlink():
                path.rename(good)
            try:
                return load_operating_point(checkpoint)
            except UserError as error:
                raise UserError(str(error).replace(good.name, path.name)) from error
            finally:
                if good.is_dir():
                    good.rmdir()
    else:
        good = tmp_path / "rule.json"
        good.write_text('{"threshold": 1.5}')
        read = lambda path: parse_rule(str(path))  # noqa: E731
    document = json.loads(good.read_text())

    def fits(found) -> bool:
        if found is None:
            return kind != "rule"
        value = found.value if kind == "rule" else found.threshold
        return isinstance(value, float) and isinstance(getattr(found, "score", ""), str)

    cases = itertools.chain(json_cases(document), no_files())
    check(outcomes(cases, tmp_path / "in", ".json", read, fits))
