"""From class names to a word list: mine, measure, sort, group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .distance import embedding_distances, path_distances, wup_distances
from .groups import WordGroups, cut_evenly
from .mining import class_senses, mine
from .prototypes import Encode, embed_words
from .wordnet import version

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader


def build_groups(
    reader: WordNetCorpusReader,
    names: Sequence[str],
    *,
    num_groups: int = 50,
    distance: str = "wup",
    senses: Mapping[str, Sequence[str]] | None = None,
    drop: Sequence[str] = (),
    tokenize: Callable[[str], Sequence[int]],
    encode: Encode | None = None,
    template: str = "a photo of a {}",
    quantile: float = 1.0,
) -> WordGroups:
    """Mine OOD words for the known classes ``names`` and group them by distance.

    Words are sorted by distance, those with equal distance by their position in WordNet (which
    keeps related words together), and divided into groups of equal size.

    Args:
        reader: WordNet.
        names: the known classes.
        num_groups: M.
        distance: "wup" or "path" (in WordNet), or "clip" (1 - cosine of text embeddings).
        senses: class name -> synset names, for classes with other than the usual senses.
        drop: synset names whose subtrees are left out.
        tokenize: CLIP's tokens of a text.
        encode: texts -> (n, D) embeddings, for "clip".
        template: text in which the word replaces ``{}``, for "clip".
        quantile: quantile of the cosines to the classes, for "clip" (1.0 = the nearest class).

    Raises:
        UserError: WordNet lacks a class or synset, or there are too few words.
    """
    senses = senses or {}
    for name in senses:
        if name not in names:
            raise UserError(f"a sense is given for '{name}', which is no known class")
    known = {name: class_senses(reader, name, senses.get(name, ())) for name in names}
    found = mine(reader, known, drop, tokenize=tokenize)
    if not found:
        raise UserError("no noun is left: every one is a known class or belongs to one")
    parameters: dict[str, Any] = {"distance": distance}
    if distance == "clip":
        if encode is None:
            raise ValueError("distance 'clip' needs encode")
        words, classes = (
            embed_words(w, encode, template) for w in ([c.word for c in found], names)
        )
        distances = embedding_distances(words, classes, quantile)
        parameters |= {"template": template, "quantile": quantile}
    else:
        measure = {"wup": wup_distances, "path": path_distances}[distance]
        distances = measure([c.sense for c in found], [s for ss in known.values() for s in ss])
    parameters["senses"] = {name: [s.name() for s in ss] for name, ss in known.items()}
    if drop:
        parameters["drop"] = list(drop)
    # NLTK returns the paths to the root in an order that differs between runs.
    places = [min(tuple(s.name() for s in way) for way in c.sense.hypernym_paths()) for c in found]
    rounded = [round(float(distance), 4) for distance in distances]
    order = sorted(range(len(found)), key=lambda i: (rounded[i], places[i], found[i].word))
    return WordGroups(
        known=tuple(names), words=tuple(found[i].word for i in order),
        distances=tuple(rounded[i] for i in order),
        bounds=cut_evenly(len(order), num_groups), source=version(reader), parameters=parameters,
        licence=Path(__file__).with_name("WORDNET_LICENSE").read_text(encoding="utf-8"),
    )
