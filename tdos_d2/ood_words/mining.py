"""Mining of OOD words: nouns of WordNet for visible things that are not known classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tqdm import tqdm

from ..errors import UserError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import Lemma, Synset, WordNetCorpusReader

_RULES = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Candidate:
    """A word and its sense."""

    word: str
    sense: Synset


def class_senses(
    reader: WordNetCorpusReader, name: str, override: Sequence[str] = ()
) -> list[Synset]:
    """The senses of the known class ``name`` in WordNet.

    Args:
        reader: WordNet.
        name: a class name, in upper or lower case.
        override: synset names; empty = those of ``rules.yaml``, or else the first sense of
            the noun.

    Raises:
        UserError: WordNet has no such synset or noun.
    """
    if override:
        return [_synset(reader, sense) for sense in override]
    rule = _RULES["classes"].get(_singular(reader, name), {"senses": ()})
    if found := _present(reader, rule["senses"]):
        return found
    first = _first(reader, name.lower().replace(" ", "_"))
    if first is None:
        raise UserError(
            f"class '{name}': WordNet has no such noun; say what it is with "
            f"--sense '{name}=SYNSET' (such as 'dog.n.01')"
        )
    return [first]


def mine(
    reader: WordNetCorpusReader,
    known: Mapping[str, Sequence[Synset]],
    drop: Sequence[str] = (),
    *,
    tokenize: Callable[[str], Sequence[int]],
) -> list[Candidate]:
    """Nouns for visible things that belong to no known class, in the order of WordNet's files.

    Words are used in their first sense. Left out are: synonyms, hyponyms, hypernyms and parts of
    the known classes and related senses; things that are not visible by themselves; words that
    contain a class name; rude words; unfamiliar words (:func:`is_familiar`).

    Args:
        reader: WordNet.
        known: class name -> its senses, from :func:`class_senses`.
        drop: names of further synsets whose subtrees are left out.
        tokenize: CLIP's tokens of a text, see :func:`is_familiar`.

    Raises:
        UserError: ``drop`` names a synset that WordNet lacks.
    """
    seen = _subtrees(_present(reader, _RULES["seen"]))
    left_out = _left_out(reader, known, [_synset(reader, name) for name in drop])
    counted_later = _subtrees(_present(reader, _RULES["keep"]))
    counted_later |= set(_present(reader, _RULES["later_senses"]))
    rude = set(_present(reader, _RULES["rude_usage"]))
    senses = [s for sense in known.values() for s in sense]
    taken = {_text(lemma) for sense in senses for lemma in sense.lemmas()}
    parts = (part for name in known for part in name.lower().replace("_", " ").split())
    banned = {*_RULES["unwanted"], *(x for part in parts for x in (part, _singular(reader, part)))}
    is_token = cache(lambda word: len(tokenize(word)) == 1)
    found: dict[str, Candidate] = {}
    for sense in tqdm(sorted(seen - left_out, key=lambda s: s.offset()), desc="reading WordNet"):
        for lemma in _common_names(sense):
            word = _text(lemma)
            if word in found or word in taken or banned & set(word.split()):
                continue
            if not is_familiar(lemma, is_token) or not (
                sense in counted_later or _first(reader, lemma.name()) == sense
            ):
                continue
            if not _is_rude(reader, lemma.name(), rude) and not _is_rather_a_name(reader, lemma):
                found[word] = Candidate(word, sense)
    return list(found.values())


def is_familiar(lemma: Lemma, is_token: Callable[[str], bool]) -> bool:
    """Whether a word is common enough that CLIP can be expected to know it.

    A single word is familiar if it is one token in CLIP's vocabulary, which means that it was
    frequent on the web, or if it occurs in the texts that WordNet's authors tagged. A compound of
    two tokens, written as one word or two, must be a kind of its last part ("beach ball" is a ball,
    "surfboard" a board, but "sea spider" is not a spider).
    """
    word = _text(lemma)
    if lemma.count() or is_token(word):
        return True
    splits = [(word[:i], word[i:]) for i in range(3, len(word) - 2)]
    if " " in word:
        splits = [tuple(word.split(" ", 1))]
    above = [lemma.synset(), *lemma.synset().closure(lambda sense: sense.hypernyms())]
    heads = {name.lower() for sense in above for name in sense.lemma_names()}
    return any(b in heads and is_token(a) and is_token(b) for a, b in splits)


def _left_out(
    reader: WordNetCorpusReader, known: Mapping[str, Sequence[Synset]], drop: Sequence[Synset]
) -> set[Synset]:
    senses = [sense for of_class in known.values() for sense in of_class]
    own = _subtrees(senses)
    above = _closure(senses, lambda s: s.hypernyms() + s.instance_hypernyms())
    names = [_singular(reader, name) for name in known]
    rules = [_RULES["classes"][name] for name in names if name in _RULES["classes"]]
    near = [name for rule in rules for kind in rule["near"] for name in _RULES["near"][kind]]
    parts = (part for sense in own | above for part in sense.part_meronyms())
    belonging = _subtrees(_closure(parts, lambda s: s.part_meronyms()))  # and parts of parts
    belonging |= _subtrees(_present(reader, (*near, *_RULES["unseen"])))
    keep = _subtrees(_present(reader, _RULES["keep"]))
    belonging |= set(_present(reader, _RULES["seen"]))  # "animal" and "food" are too general
    return own | above | (belonging - keep) | _subtrees(drop)


def _subtrees(roots: Iterable[Synset]) -> set[Synset]:
    return _closure(roots, lambda sense: sense.hyponyms())


def _closure(roots: Iterable[Synset], following: Callable[[Synset], list[Synset]]) -> set[Synset]:
    found: set[Synset] = set()
    left = list(roots)
    while left:
        sense = left.pop()
        if sense not in found:
            found.add(sense)
            left += following(sense)
    return found


def _common_names(sense: Synset) -> list[Lemma]:
    """Names without capitals, or all names if there are no others ("Frisbee")."""
    names = [lemma for lemma in sense.lemmas() if not re.search(r"[\d.]", lemma.name())]
    return [lemma for lemma in names if lemma.name().islower()] or names


def _text(lemma: Lemma) -> str:
    return lemma.name().replace("_", " ").lower()


def _first(reader: WordNetCorpusReader, name: str) -> Synset | None:
    """The most frequent sense that is not an individual being or place ("Crane, Stephen")."""
    senses = reader.synsets(name, "n")
    return next((sense for sense in senses if not sense.instance_hypernyms()), None)


def _singular(reader: WordNetCorpusReader, name: str) -> str:
    """A class name as the rules have it: "Traffic_Lights" is "traffic light"."""
    plain = "_".join(name.lower().replace("_", " ").split())
    known = plain.replace("_", " ") in _RULES["classes"]
    return (plain if known else reader.morphy(plain, "n") or plain).replace("_", " ")


def _is_rude(reader: WordNetCorpusReader, name: str, rude: set[Synset]) -> bool:
    senses = reader.synsets(name, "n")
    own = [m for s in senses for m in s.lemmas() if m.name().lower() == name.lower()]
    return any(mark in rude for marked in (*senses, *own) for mark in marked.usage_domains())


def _is_rather_a_name(reader: WordNetCorpusReader, lemma: Lemma) -> bool:
    """Whether the word is rare as a noun for a thing, but is the name of a being or place."""
    others = [sense for sense in reader.synsets(lemma.name(), "n") if sense != lemma.synset()]
    if not lemma.name().islower() and others:
        return True
    return not lemma.count() and any(sense.instance_hypernyms() for sense in others)


def _synset(reader: WordNetCorpusReader, name: str) -> Synset:
    from nltk.corpus.reader.wordnet import WordNetError

    try:
        return reader.synset(name)
    except (WordNetError, ValueError) as error:
        raise UserError(f"WordNet has no synset '{name}' (such as 'dog.n.01')") from error


def _present(reader: WordNetCorpusReader, names: Iterable[str]) -> list[Synset]:
    """Those synsets of ``rules.yaml`` that this version of WordNet has."""
    found = []
    for name in names:
        with suppress(UserError):
            found.append(_synset(reader, name))
    return found
