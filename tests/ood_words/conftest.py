"""A tiny WordNet, and one place for what is kept between runs."""

from __future__ import annotations

import pytest
from tiny_wordnet import write_wordnet

from tdos_d2.ood_words.wordnet import open_wordnet


@pytest.fixture(scope="session")
def wordnet_folder(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="session")
def wordnet(wordnet_folder):
    with open_wordnet(wordnet_folder) as reader:
        yield reader


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
