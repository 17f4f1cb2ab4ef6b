"""What all tools' options take, and the one line about what they do not."""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from script_loading import load_script

from tdos_commands import exit_with_one_line, options
from tdos_commands.predict import parser as predict_parser
from tdos_commands.train import parser as train_parser
from tdos_d2.errors import UserError
from tdos_d2.inference.media import read_names
from tdos_d2.loading.config_files import find_config
from tdos_d2.modeling.text import read_embeddings
from tdos_d2.ood_words.wordnet import open_wordnet

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "demo.yaml")
SCRIPTS = [
    *(p for p in (ROOT / "tools").glob("*.py") if p.stem not in ("install_detectron2",
                                                                 "make_config_docs", "mutants",
                                                                 "predict")),
    *(ROOT / "datasets").glob("[!_]*.py"),
]  # fmt: skip


def all_parsers(path: Path, monkeypatch):
    """The parser of a script and those of its commands."""
    sys.path.insert(0, str(path.parent))
    module = load_script(path)
    sys.path.remove(str(path.parent))
    if hasattr(module, "_parser"):
        parsers = [module._parser()]
    else:
        parsers = []
        # The scripts of datasets/ have a copy of options.Parser: what both inherit is patched.
        monkeypatch.setattr(
            argparse.ArgumentParser, "parse_args", lambda self, *_: sys.exit(parsers.append(self))
        )
        with pytest.raises(SystemExit):
            (module.main if hasattr(module, "main") else module.run)()
        assert parsers
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parsers.extend(action.choices.values())
    return parsers


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_no_number_is_taken_as_it_is(path, monkeypatch):
    for parser in all_parsers(path, monkeypatch):
        assert type(parser).__name__ == "Parser"
        for action in parser._actions:
            assert action.type not in (float, Path), action.dest
            assert action.type is not int or action.choices, action.dest
            # A type that is a function of options: numbers below 0 are refused, but for scores.
            of_scores = action.dest == "threshold"
            if "convert" in getattr(action.type, "__qualname__", "") and not of_scores:
                with pytest.raises(Exception, match="is needed, not '-5'"):
                    action.type("-5")


@pytest.mark.parametrize(
    "words", ["--threshold nan", "--score-range 0 inf", "--min-area 0", "--nearest-words -1"]
)
def test_what_predict_refuses(capsys, words):
    given = ["--config-file", CONFIG, "--input", "y", "--output", "z", *words.split()]
    with pytest.raises(SystemExit) as caught:
        predict_parser().parse_args(given)
    assert caught.value.code == 2 and f"argument {words.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["-1e-3", "-1E+2", "-.5", "-1.", "-3", "-2.5e3", "1e-3"])
def test_negative_numbers_are_no_options(word):
    base = ["--config-file", CONFIG, "--input", "y", "--output", "z", "--threshold"]
    assert predict_parser().parse_args([*base, word]).threshold == float(word)
    made = options.Parser()
    made.add_argument("opts", nargs="*")
    assert made.parse_args(["SOLVER.BASE_LR", word]).opts == ["SOLVER.BASE_LR", word]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "-1"], "argument --seed: a whole number from 0 to 4294967295 is needed"),
        (["--seed", "4294967296"], "argument --seed"),
        (["--jobs", "0"], "argument --jobs: a whole number from 1 is needed, not '0'"),
        (["--jobs", "many"], "not 'many'"),
        (["--share", "nan"], "argument --share: a number from 0 to 1 is needed, not 'nan'"),
        (["--share", "1e999"], "not '1e999'"),
        (["--foo"], "unrecognized arguments: --foo"),
    ],
)
def test_one_line(capsys, words, expected):
    made = options.Parser()
    made.add_argument("--seed", type=options.seed)
    made.add_argument("--jobs", type=options.whole(1))
    made.add_argument("--share", type=options.number(0, 1))
    with pytest.raises(SystemExit) as caught:
        made.parse_args(words)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert expected in error


def test_config_files_are_looked_for_before_anything_is_loaded(capsys, tmp_path):
    own = tmp_path / "own.yaml"
    own.touch()
    for name in (str(own), "configs/memory_lite2.yaml", "camvid/tdos_lite2.yaml"):
        assert train_parser().parse_args(["--config-file", name]).config_file == name
    with pytest.raises(SystemExit) as caught:
        train_parser().parse_args(["--config-file", "configs/memory_lit2.yaml"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert (
        "configs/memory_lit2.yaml does not exist, did you mean configs/memory_lite2.yaml?" in error
    )
    # What is found here is what the config is read from.
    assert find_config("camvid/tdos_lite2.yaml") == str(ROOT / "configs/camvid/tdos_lite2.yaml")


def test_opts_may_stand_before_the_pairs():
    words = ["--eval-only", "--opts", "MODEL.WEIGHTS", "a.pth"]
    assert train_parser().parse_args(words).opts == ["MODEL.WEIGHTS", "a.pth"]
    made = options.Parser()
    made.add_argument("--flag", action="store_true")
    made.add_argument("opts", nargs="*")
    assert made.parse_args(["--flag", "--opts", "SEED", "1"]).opts == ["SEED", "1"]


def test_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert options.path("~/a") == Path("/home/x/a") and options.path_text("~/a") == "/home/x/a"
    words = ["--config-file", CONFIG, "--input", "~/i", "--output", "~/o", "--ego-mask", "~/e"]
    args = predict_parser().parse_args(words)
    assert (args.input, args.output, args.ego_mask) == (
        ["/home/x/i"], "/home/x/o", "/home/x/e",
    )  # fmt: skip


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_names_on_standard_input(errors):
    given = io.TextIOWrapper(io.BytesIO(b"a.png\n\xff.png\n"), "utf-8", errors=errors)
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        list(read_names(given))
    assert list(read_names(io.StringIO("a\nb\n"))) == ["a\n", "b\n"]


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"names": ["a"]},
        {"names": ["a"], "embeddings": np.zeros(3)},
        {"names": ["a", "b"], "embeddings": np.ones((1, 3))},
        {"names": [["a"]], "embeddings": np.ones((1, 3))},
        {"names": ["a"], "embeddings": np.array([["x", "y"]])},
        {"names": ["a"], "embeddings": np.ones((1, 0))},
        {"names": ["a"], "embeddings": np.ones((1, 3), np.complex64)},
        None,
        b"",
        b"PK\x03\x04 cut",
    ],
)
def test_wrong_kinds_of_embeddings(tmp_path, arrays):
    path = tmp_path / "text.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is None:  # a .npy
        with path.open("wb") as file:
            np.save(file, np.ones((2, 3)))
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=re.escape("MODEL.TEXT.EMBEDDINGS")) as caught:
        read_embeddings(str(path))
    assert "\n" not in str(caught.value)


def test_broken_wordnet_archive(tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"PK\x03\x04 cut off")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr("nltk.corpus.wordnet", fresh)
    with pytest.raises(UserError, match="WordNet: ") as caught, open_wordnet():
        pass
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_no_traceback(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        exit_with_one_line(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
