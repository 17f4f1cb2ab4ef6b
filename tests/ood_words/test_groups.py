"""Word lists: sorting, grouping, JSON, and the one that ships."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
from tiny_wordnet import ENTRIES, Entry, write_wordnet

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import tokenize
from tdos_d2.ood_words import WordGroups, grouping, load_groups
from tdos_d2.ood_words.wordnet import open_wordnet

build_groups = partial(grouping.build_groups, tokenize=tokenize)


def word_list(num_words: int = 7, bounds=((0, 3), (3, 7))) -> WordGroups:
    return WordGroups(
        known=("car", "traffic sign"),
        words=tuple(f"word {i}" for i in range(num_words)),
        distances=tuple(i / 10 for i in range(num_words)),
        bounds=tuple(bounds),
        source="a test",
        parameters={"distance": "wup"},
        licence='do "as you\nlike"',
    )


def test_a_plain_list_in_the_order_of_its_lines(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("deer\n\n lost cargo \nsofa\ndeer\ntyre\ncow\n", encoding="utf-8")
    assert load_groups(path).groups == [["deer", "lost cargo", "sofa", "tyre", "cow"]]
    assert load_groups(path, 2).groups == [["deer", "lost cargo"], ["sofa", "tyre", "cow"]]
    with pytest.raises(UserError, match="5 OOD words cannot make 6 groups"):
        load_groups(path, 6)
    path.write_text(" \n")
    with pytest.raises(UserError, match=r"mine\.txt' is no word list: it has no words"):
        load_groups(path)


def test_all_words_are_sorted_by_distance(wordnet):
    found = build_groups(wordnet, ["car"], num_groups=2)
    near = dict(zip(found.words, found.distances, strict=True))
    # by hand, as in test_distance.py; those of one distance stand in WordNet's order
    assert near["container"] == pytest.approx(1 - 4 / 7, abs=1e-4)
    assert near["crate"] == pytest.approx(1 - 4 / 9, abs=1e-4)
    assert near["dog"] == pytest.approx(1 - 2 / 7, abs=1e-4)
    assert list(found.distances) == sorted(found.distances)
    # both kinds of artifact before animals, though WordNet's files mix them
    assert set(found.words[-2:]) == {"dog", "crane"}


def test_words_of_two_kinds_have_one_place(tmp_path):
    both = ("container", "furniture")
    twofold = {name: Entry(name, above=both) for name in ("desk", "dish", "disk", "doll", "drum")}
    entries = {**ENTRIES, "bed": Entry("bed", above=("furniture",)), **twofold}
    with open_wordnet(write_wordnet(tmp_path, entries)) as reader:
        order = build_groups(reader, ["car"], num_groups=1).words
    # equally far: containers by name, a kind of crane, furniture
    start = order.index("box")
    assert order[start : start + 9] == (
        "box", "desk", "dish", "disk", "doll", "drum", "derrick", "bed", "couch"
    )  # fmt: skip


@pytest.mark.parametrize("num_groups", [1, 2, 3, 11])
def test_groups_cover_the_list(wordnet, num_groups):
    found = build_groups(wordnet, ["car"], num_groups=num_groups)
    assert len(found.words) == 11
    assert [word for group in found.groups for word in group] == list(found.words)
    sizes = {len(group) for group in found.groups}
    assert len(found.groups) == num_groups and max(sizes) - min(sizes) <= 1


def test_more_groups_than_words_is_an_error(wordnet):
    with pytest.raises(UserError, match="11 OOD words cannot make 12 groups"):
        build_groups(wordnet, ["car"], num_groups=12)


def test_what_was_done_is_in_the_list(wordnet):
    found = build_groups(
        wordnet, ["crane"], num_groups=2, senses={"crane": ["crane.n.02"]}, distance="path"
    )
    assert found.parameters["senses"] == {"crane": ["crane.n.02"]}
    assert found.parameters["distance"] == "path"
    assert found.source == "WordNet 3.0" and "Princeton" in found.licence


def test_a_sense_for_no_class_is_an_error(wordnet):
    with pytest.raises(UserError, match="'bus', which is no known class"):
        build_groups(wordnet, ["car"], senses={"bus": ["car.n.01"]})


def test_no_word_left_is_an_error(wordnet):
    with pytest.raises(UserError, match="no noun is left"):
        build_groups(wordnet, ["car"], drop=["entity.n.01"])


def test_json_round_trip(tmp_path):
    before = word_list()
    before.save(tmp_path / "words.json")
    assert load_groups(tmp_path / "words.json") == before
    data = json.loads((tmp_path / "words.json").read_text())
    assert data["groups"] == [[0, 3], [3, 7]] and data["words"][0] == "word 0"


def test_the_list_is_cut_again_for_another_number_of_groups(tmp_path):
    word_list().save(tmp_path / "words.json")
    same = load_groups(str(tmp_path / "words.json"), 2)
    assert same.bounds == ((0, 3), (3, 7))
    again = load_groups(str(tmp_path / "words.json"), 3)
    assert again.bounds == ((0, 2), (2, 4), (4, 7))
    with pytest.raises(UserError, match="7 OOD words cannot make 8 groups"):
        load_groups(tmp_path / "words.json", 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"words": ["a", "b"]}, "2 words, but 7 distances"),
        ({"words": ["a"] * 6 + [""]}, "'words' must be texts"),
        ({"distances": [7, 6, 5, 4, 3, 2, 1]}, "distances are not sorted"),
        ({"groups": [[0, 3], [4, 7]]}, "cover all words"),
        ({"groups": [[0, 3], [3, 6]]}, "cover all words"),
        ({"groups": [[0, 7], [7, 7]]}, "none empty"),
        ({"groups": []}, "cover all words"),
        ({"groups": 3}, "is no word list"),
        ({"licence": None}, "lacks licence"),
    ],
)
def test_a_malformed_list_is_an_error(tmp_path, change, message):
    path = tmp_path / "words.json"
    word_list().save(path)
    data = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(UserError, match=f"words.json' is no word list.*{message}|{message}"):
        load_groups(path)


def test_no_json_is_an_error(tmp_path):
    (tmp_path / "words.json").write_text("dog\n")
    with pytest.raises(UserError, match="words.json' is no word list"):
        load_groups(tmp_path / "words.json")
    with pytest.raises(UserError, match="no file 'nowhere'.*cityscapes"):
        load_groups("nowhere")


def test_the_shipped_list():
    found = load_groups("cityscapes")
    assert len(found.words) > 4000 and len(found.groups) == 50
    assert len(set(found.words)) == len(found.words)
    assert len(found.known) == 19 and "Princeton University" in found.licence
    on_roads = "deer dog cow sofa ladder mattress crate suitcase ball frisbee giraffe horse sheep"
    assert set(on_roads.split()) <= set(found.words)
    # known classes, their parts, road furniture, plants, people, buildings; and unpleasant words
    belong = """tyre wheel bumper windshield headlight engine lamppost streetlight signpost
        billboard bollard hydrant railing tree bush flower leaf person driver nurse pedestrian house
        roof window door chimney pavement cloud taxi tram scooter van wagonlit corpse condom ass"""
    assert set(belong.split()) & set(found.words) == set()
    class_words = {part for name in found.known for part in name.split()}
    assert [w for w in found.words if class_words & set(w.split())] == []


def test_the_list_is_read_without_wordnet(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert len(load_groups("cityscapes").words) > 4000
