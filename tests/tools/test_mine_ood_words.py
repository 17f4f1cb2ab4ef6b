"""tools/mine_ood_words.py from end to end, on a WordNet that the test writes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from script_loading import load_script
from tiny_wordnet import write_wordnet

from tdos_d2.errors import UserError
from tdos_d2.ood_words import load_groups

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(tmp_path):
    folder = write_wordnet(tmp_path / "wordnet")
    return ["--wordnet", str(folder), "--output", str(tmp_path / "words.json")]


@pytest.fixture
def run(arguments):
    """The tool in this process, without its last resort: errors are raised."""
    tool = load_script("tools/mine_ood_words.py")
    return lambda *args: tool.main(tool._parser().parse_args([*arguments, *map(str, args)]))


def test_a_list_for_ones_own_classes(run, tmp_path, capsys):
    run("--classes", "car", "crane", "--sense", "crane=crane.n.02", "--groups", 3)
    found = load_groups(tmp_path / "words.json")
    assert found.known == ("car", "crane") and len(found.groups) == 3
    assert {"sofa", "dog"} <= set(found.words) and "derrick" not in found.words
    assert f"{len(found.words)} words in 3 groups" in capsys.readouterr().out


def test_distances_from_clip(run, tmp_path, clip_file):
    run("--classes", "car", "--groups", 2, "--distance", "clip", "--clip-name", "tiny",
        "--clip-weights", clip_file, "--template", "the nice {}",
        "--quantile", 0.95)  # fmt: skip
    data = json.loads((tmp_path / "words.json").read_text())
    given = {key: data["parameters"][key] for key in ("distance", "template", "quantile")}
    assert given == {"distance": "clip", "template": "the nice {}", "quantile": 0.95}
    assert len(set(data["distances"])) > 5  # WordNet has only four distances here


@pytest.mark.parametrize(
    "args, message",
    [
        (("--classes", "traffic cone"), "class 'traffic cone': WordNet has no such noun"),
        (("--dataset", "cityscape"), "unknown dataset 'cityscape'"),
        (("--classes", "car", "--sense", "car"), "--sense: 'car' is not of the form"),
        (("--classes", "car", "--distance", "clip"), "needs --clip-weights"),
        (("--classes", "car", "--wordnet", "/nowhere"), "no data.noun and index.noun in /nowhere"),
        (("--classes", "car", "--output", "/nowhere/x.json"), "--output: no folder /nowhere"),
    ],
)
def test_mistakes(run, args, message):
    with pytest.raises(UserError, match=message):
        run(*args)


def test_a_mistake_ends_the_command_with_one_line(arguments, monkeypatch, capsys):
    words = ["mine_ood_words.py", *map(str, arguments), "--classes", "traffic cone"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "mine_ood_words.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: class 'traffic cone': WordNet has no")
