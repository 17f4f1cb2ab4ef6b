"""Reading WordNet through NLTK: its own corpus, or a folder with WordNet's dictionary files."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

_NEEDED = ("data.noun", "index.noun")
# NLTK opens all of these files; for nouns they only need to exist.
_OPENED = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in ("adj", "adv", "verb")),
    *(f"{part}.exc" for part in ("adj", "adv", "noun", "verb")), "cntlist.rev", "index.sense",
)


@contextmanager
def open_wordnet(folder: str | Path | None = None) -> Iterator[WordNetCorpusReader]:
    """NLTK's reader of WordNet.

    Args:
        folder: folder of ``data.noun`` and ``index.noun``, for example ``/usr/share/wordnet`` of
            Debian's wordnet-base. Its files are copied to a temporary folder and missing ones
            added, as NLTK reads only below its search path and follows no links out of it.
            None = NLTK's own corpus.

    Raises:
        UserError: the files are missing or not WordNet's.
    """
    if folder is None:
        yield _own_corpus()
        return
    import nltk

    source = Path(folder).expanduser()
    lacking = [name for name in _NEEDED if not (source / name).is_file()]
    if lacking:
        raise UserError(f"WordNet: no {' and '.join(lacking)} in {source}")
    # A private folder, as NLTK requires.
    with tempfile.TemporaryDirectory() as root:
        copy = Path(root, "corpora", "wordnet")
        copy.mkdir(parents=True)
        for name in (*_NEEDED, *_OPENED):
            if (source / name).is_file():
                shutil.copyfile(source / name, copy / name)
            else:
                (copy / name).touch()
        shutil.copyfile(Path(__file__).with_name("lexnames"), copy / "lexnames")
        _check_nouns(copy, source)
        nltk.data.path.insert(0, root)
        try:
            yield _reader(copy, source)
        finally:
            nltk.data.path.remove(root)


def version(reader: WordNetCorpusReader) -> str:
    """The version in the file of nouns, such as "WordNet 3.0"."""
    with reader.open("data.noun") as lines:
        header = "".join(islice(lines, 30))
    found = re.search(r"WordNet [\d.]+", header)
    return found.group() if found else "WordNet (unknown version)"


def _check_nouns(copy: Path, source: Path) -> None:
    """Raise UserError unless offsets are valid as in wndb(5WN), which NLTK does not check."""
    places, named, place = set(), set(), 0
    for line in (copy / "data.noun").read_bytes().splitlines(keepends=True):
        if not line.startswith(b"  "):
            try:
                line.decode("utf-8")
                fields = line.partition(b"|")[0].split()
                pointers = 5 + 2 * int(fields[3], 16)
                count = int(fields[pointers - 1])
                kinds, targets = fields[pointers + 2 :: 4], fields[pointers + 1 :: 4]
                if (int(fields[0]), fields[2], len(kinds)) != (place, b"n", count):
                    raise ValueError
                int(fields[1])
                named |= {int(t) for t, kind in zip(targets, kinds, strict=False) if kind == b"n"}
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"WordNet: {source / 'data.noun'} is damaged, or of another format, "
                    f"at byte {place}"
                ) from error
            places.add(place)
        place += len(line)
    for number, line in enumerate((copy / "index.noun").read_bytes().splitlines(), start=1):
        if not line.startswith(b"  "):
            try:
                line.decode("utf-8")
                fields = line.split()
                senses = {int(field) for field in fields[-int(fields[2]) :]}
                if fields[1] != b"n" or not senses <= places:
                    raise ValueError
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"WordNet: {source / 'index.noun'} is damaged, or of another format, "
                    f"in line {number}"
                ) from error
    if not places or not named <= places:
        raise UserError(f"WordNet: {source / 'data.noun'} lacks synsets that others name")


def _own_corpus() -> WordNetCorpusReader:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UserError(
            'WordNet: NLTK has no corpus "wordnet"; run nltk.download("wordnet"), or give a folder '
            "with WordNet 3.0's dictionary files (Debian's wordnet-base: /usr/share/wordnet)"
        ) from error
    except Exception as error:  # a truncated archive or another file
        raise UserError(f"WordNet: NLTK's corpus \"wordnet\" cannot be read: {error}") from error
    return wordnet


def _reader(copy: Path, source: Path) -> WordNetCorpusReader:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The multilingual functions are not available")
        try:
            return WordNetCorpusReader(str(copy), None)
        except Exception as error:  # a malformed line may raise any type
            raise UserError(f"WordNet: the files in {source} cannot be read: {error}") from error
