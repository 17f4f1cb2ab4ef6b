"""A small WordNet in the format of WordNet's dictionary files (wndb(5WN)), written by the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LICENCE = "  1 WordNet 3.0 Copyright 2006 by nobody: this is a test.  \n"


@dataclass
class Entry:
    """One synset: ``names``, in the order in which WordNet would list them."""

    names: str
    above: tuple[str, ...] = ()
    instance_of: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    usage: tuple[str, ...] = ()


# key -> synset. A name's first synset here is its first sense.
ENTRIES = {
    "entity": Entry("entity"),
    "artifact": Entry("artifact", above=("entity",)),
    "vehicle": Entry("vehicle", above=("artifact",)),
    "car": Entry("car auto", above=("vehicle",), parts=("hood",)),
    "taxi": Entry("taxi cab", above=("car",)),
    "hood": Entry("hood", above=("artifact",)),
    "chrome_hood": Entry("chrome_hood", above=("hood",)),
    "container": Entry("container", above=("artifact",)),
    "box": Entry("box", above=("container",)),
    "crate": Entry("crate", above=("box",)),
    "car_box": Entry("car_box", above=("box",)),
    "photo_box": Entry("photo_box", above=("box",)),
    "gadget": Entry("gadget", above=("artifact",), usage=("slur",)),
    "xqzvk": Entry("xqzvk", above=("artifact",)),
    "furniture": Entry("furniture", above=("artifact",)),
    "sofa": Entry("sofa couch", above=("furniture",)),
    "animal": Entry("animal", above=("entity",)),
    "dog": Entry("dog", above=("animal",)),
    "crane_bird": Entry("crane", above=("animal",)),
    "sea_horse": Entry("sea_horse", above=("animal",)),
    "frisbee": Entry("Frisbee", above=("artifact",)),
    "lincoln": Entry("Lincoln", above=("animal",)),
    "person": Entry("person", above=("entity",)),
    "dull_person": Entry("dog chair", above=("person",)),
    "chair": Entry("chair", above=("furniture",)),
    "president": Entry("Lincoln", instance_of=("person",)),
    "crane_machine": Entry("crane", above=("artifact",)),
    "derrick": Entry("derrick", above=("crane_machine",)),
    "slur": Entry("ethnic_slur", above=("entity",)),
}
_BACK = {"@": "~", "@i": "~i", "%p": "#p"}


def write_wordnet(folder: Path, entries: Mapping[str, Entry] = ENTRIES) -> Path:
    """Write ``data.noun`` and ``index.noun`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pointers: dict[str, list[tuple[str, str]]] = {key: [] for key in entries}
    for key, entry in entries.items():
        for symbol, targets in (
            ("@", entry.above),
            ("@i", entry.instance_of),
            ("%p", entry.parts),
            (";u", entry.usage),
        ):
            for target in targets:
                pointers[key].append((symbol, target))
                if symbol in _BACK:
                    pointers[target].append((_BACK[symbol], key))
    offsets: dict[str, int] = {}
    place = len(LICENCE)
    for key, entry in entries.items():
        offsets[key] = place
        place += len(_line(entry, pointers[key], dict.fromkeys(entries, 0), 0))
    lines = [_line(e, pointers[key], offsets, offsets[key]) for key, e in entries.items()]
    (folder / "data.noun").write_text(LICENCE + "".join(lines))
    senses: dict[str, list[int]] = {}
    for key, entry in entries.items():
        for name in entry.names.lower().split():
            senses.setdefault(name, []).append(offsets[key])
    index = [
        f"{name} n {len(found)} 0 {len(found)} 0 {' '.join(f'{o:08d}' for o in found)}  \n"
        for name, found in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(index))
    return folder


def _line(
    entry: Entry, pointers: list[tuple[str, str]], offsets: Mapping[str, int], offset: int
) -> str:
    names = entry.names.split()
    words = " ".join(f"{name} 0" for name in names)
    links = "".join(f" {symbol} {offsets[target]:08d} n 0000" for symbol, target in pointers)
    return f"{offset:08d} 06 n {len(names):02x} {words} {len(pointers):03d}{links} | a test  \n"
