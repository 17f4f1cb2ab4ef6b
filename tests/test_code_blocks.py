"""Code in the documentation: it is tagged, its commands exist, and it runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import layouts
import numpy as np
import pytest
from code_blocks import (
    INSTALLED,
    PAGES,
    ROOT,
    TAGS,
    Block,
    Command,
    parse,
    read_blocks,
    script_commands,
    shell_lines,
)
from detectron2.config import CfgNode, get_cfg

from tdos_d2 import add_tdos_config

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
CODE = [block for block in BLOCKS if block.language in ("bash", "python")]
SHELL = [block for block in CODE if block.language == "bash"]
# A translation has the code of its original.
WALKED = [block for block in CODE if block.page != "README.ko.md"]
# Programs that blocks may call besides python and make.
PROGRAMS = {"cd", "export", "git", "pip", "pip-audit", ".", "cvat-cli", "fiftyone", "label-studio"}
PROGRAMS |= {"sbatch", "srun", "torchrun", "apt-get", "dpkg", "mkdir", "cp"}
# Trained first, because no block does: the demo is made by hand, and one block has an RN50.
PREPARED = [
    ["--config-file", "configs/demo.yaml", "DATASETS.TEST", "()"],
    ["--config-file", "configs/tdos_rn50.yaml"],
]
# Two small steps in place of what takes hours, and a small model in place of CLIP's.
SHORT = shlex.split("""
    SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.REFERENCE_WORLD_SIZE 0 INPUT.CROP.SIZE (32,32)
    INPUT.MIN_SIZE_TEST 0 MODEL.TDOS.NUM_POINTS 16 DATALOADER.NUM_WORKERS 0 TEST.WINDOW.SIZE 0
    TEST.NUM_PICTURES 0
""")
SMALL = shlex.split("""
    MODEL.CLIP.WEIGHTS "" MODEL.PROMPTS.GROUPS "" MODEL.REG.LANGUAGE_WEIGHT 0.0
    MODEL.TDOS.NUM_NEGATIVE 2 MODEL.TDOS.CONTEXT_LENGTH 2 MODEL.TDOS.NEGATIVE_LENGTH 2
    MODEL.NECK.CHANNELS 32 MODEL.CONTEXT_DECODER.HIDDEN_DIM 32 MODEL.CONTEXT_DECODER.NUM_LAYERS 1
    MODEL.PIXEL_DECODER.HIDDEN_DIM 32 MODEL.PIXEL_DECODER.NUM_LAYERS 1
    MODEL.PIXEL_DECODER.FFN_DIM 32 MODEL.TRANSFORMER_DECODER.NUM_LAYERS 1
    MODEL.TRANSFORMER_DECODER.FFN_DIM 32
""")
# Runs scripts and Python code, one after the other, in one process.
DRIVER = """
import glob, json, os, runpy, sys
from dataclasses import replace
import detectron2.engine.defaults as defaults, numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tdos_d2.data.demo_scenes import dataset
from tdos_d2.engine import load_config
defaults.collect_env_info = str  # it asks compilers and GPUs for half a second
label = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
for name, split in dataset._SPLITS.items():  # few scenes
    dataset._SPLITS[name] = replace(split, frames=8 if split.kinds == (None,) else 1)
given = {
    "my_frames": [(label + 0.5, label)],
    "bgr_image": np.zeros((24, 32, 3), np.uint8),
    "cfg": load_config("demo.yaml", ["MODEL.WEIGHTS", "output/demo/model_final.pth"]),
}
for kind, name, words in json.load(sys.stdin):
    print("##", name, *words, flush=True)
    for own in [known for known in DatasetCatalog if known.startswith("my_")]:
        DatasetCatalog.remove(own)
        MetadataCatalog.remove(own)
    sys.argv = [name]
    for word in words:
        sys.argv += glob.glob(word.replace("~", "home")) if "*" in word else [word]
    try:
        if kind == "script":
            sys.path.insert(0, os.path.dirname(os.path.realpath(name)))
            runpy.run_path(name, run_name="__main__")
        else:
            exec(compile(words[0], name, "exec"), dict(given))
    except SystemExit as end:
        # 1 from verify.py: miniature sets have fewer frames than they should have
        if end.code and not (end.code == 1 and name.endswith("datasets/verify.py")):
            sys.exit(f"{name} ended with {end.code}")
"""


def by_place(block: Block) -> str:
    return str(block)


def config_of(command: Command) -> CfgNode:
    """The config that a command asks for, without the datasets that it may list."""
    args = parse(command)
    cfg = get_cfg()
    add_tdos_config(cfg)
    if path := getattr(args, "config_file", ""):
        cfg.merge_from_file(str(ROOT / path))
    cfg.merge_from_list(getattr(args, "opts", []))
    return cfg


def shrunk(command: Command) -> Command:
    """The same command with a model and data that make it cheap."""
    text = re.sub(r"--num-gpus \d+", "--num-gpus 1", shlex.join(command.words))
    words = shlex.split(text)
    if not hasattr(parse(command), "opts"):
        return Command(command.script, words)
    words += SHORT
    model = config_of(command).MODEL
    if not model.CLIP.NAME.startswith("tiny"):
        resnet = model.BACKBONE.NAME == "CLIPModifiedResNet"
        words += ["MODEL.CLIP.NAME", "tiny-rn" if resnet else "tiny", *SMALL]
    return Command(command.script, words)


def steps() -> list[tuple[str, str, list[str]]]:
    """What the driver runs: the training that comes first, then the blocks of all pages."""
    found = [("script", *shrunk(Command("train_net.py", words))) for words in PREPARED]
    for block in WALKED:
        if block.tag != "by-hand" and block.language == "python":
            found.append(("python", str(block), [block.text]))
        elif block.tag != "by-hand":
            change = shrunk if block.tag != "run" else Command._make
            found += [("script", *change(c)) for c in script_commands(block.text)]
    return found


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like the repository, but for what runs leave in it."""
    for name in ("train_net.py", "tools", "datasets", "configs", "examples", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    for make in (layouts.camvid, layouts.cityscapes, layouts.anomalytrack, layouts.road_anomaly):
        make(tmp_path / "data")
    for i, name in enumerate("ab"):
        for images in ("my_images", "home/.cache/tdos_d2/demo-0/ood_hard/images"):  # home is ~
            layouts.write_image(tmp_path / images / f"{name}.jpg", layouts.picture(i))
        layouts.write_image(tmp_path / "my_masks" / f"{name}.png", layouts.stripes(0, 1, 255))
    rng = np.random.default_rng(0)
    for frame in (tmp_path / "data" / "RoadAnomaly_jpg" / "frames").glob("*.*"):
        if frame.is_file():
            (tmp_path / "my_scores").mkdir(exist_ok=True)
            np.save(tmp_path / "my_scores" / f"{frame.stem}.npy", rng.random(layouts.SIZE))
    (tmp_path / "camvid_scores").mkdir()
    for frame in (tmp_path / "data" / "CamVid" / "test_ood").iterdir():
        np.save(tmp_path / "camvid_scores" / f"{frame.stem}.npy", rng.random(layouts.SIZE))
        known = np.zeros(layouts.SIZE, np.uint8)
        layouts.write_image(tmp_path / "camvid_classes" / f"{frame.stem}.png", known)
    (listed,) = [b.text for b in BLOCKS if b.page.startswith("docs/") and "# my_sets" in b.text]
    (tmp_path / "my_sets.yaml").write_text(listed)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=by_place)
def test_code_has_one_tag(block):
    tags = {block.tag} if block.tag else set()
    assert block.language not in ("sh", "shell", "console", "py"), "use bash and python"
    assert (tags <= TAGS and len(tags) == 1) if block in CODE else not tags


def test_the_translation_has_the_code_and_the_numbers_of_the_original():
    def essence(block: Block) -> tuple[str, object]:
        shell = block.language == "bash"
        return block.tag, shell_lines(block.text) if shell else ast.dump(ast.parse(block.text))

    def numbers(page: str) -> list[tuple[str, list[str]]]:
        lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
        found = [(line, re.findall(r"\d+(?:\.\d+)?", line)) for line in lines]
        return [(line, of_line) for line, of_line in found if of_line]

    pages = "README.md", "README.ko.md"
    blocks = [[block for block in CODE if block.page == page] for page in pages]
    for original, translated in zip(*blocks, strict=False):
        assert essence(original) == essence(translated), (
            f"edit {translated}: its code or tag is not that of {original}:\n{original.text}"
        )
    counts = [len(of_page) for of_page in blocks]
    assert counts[0] == counts[1], f"edit README.ko.md: {counts[1]} code blocks, not {counts[0]}"
    rows = [numbers(page) for page in pages]
    for (line, given), (translated_line, found) in zip(*rows, strict=False):
        assert given == found, (
            f"edit README.ko.md: the numbers of '{translated_line}' are not those of '{line}'"
        )
    assert len(rows[0]) == len(rows[1]), (
        f"edit README.ko.md: {len(rows[1])} rows of tables with numbers, not {len(rows[0])}"
    )


@pytest.mark.parametrize("block", SHELL, ids=by_place)
def test_commands_exist_and_take_their_arguments(block):
    for first, *words in shell_lines(block.text):
        if first == "make":
            assert re.search(f"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif first == "python" and words[0] == "-c":
            compile(words[1], str(block), "exec")
        elif first == "python" and words[0] == "-m":
            assert importlib.util.find_spec(words[1])
        elif first == "python":
            assert (ROOT / words[0]).is_file()
        else:
            assert first in PROGRAMS or first in INSTALLED, "not a program that readers have"
    for command in script_commands(block.text):
        config_of(command)


@pytest.mark.parametrize(
    "text",
    [
        "python train_net.py --config-file configs/nothing.yaml",
        "python train_net.py --config-file configs/demo.yaml SOLVER.NOTHING 1",
        "X=1 tdos-predict --config-file configs/demo.yaml --input - --output a --nothing",
        "find . | python tools/nothing.py --input -  # --output",
    ],
)
def test_the_checks_find_what_they_look_for(text):
    with pytest.raises((AssertionError, OSError, SystemExit)):
        for command in script_commands(text):
            config_of(command)


def test_code_runs_on_miniature_data(folder):
    given = {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": "data", "PYTHONPATH": str(ROOT)}
    given["TDOS_CACHE"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**os.environ, **given},
        input=json.dumps(steps()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
