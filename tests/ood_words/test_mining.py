"""Which nouns the miner takes, on a WordNet that the test writes."""

from __future__ import annotations

import nltk
import pytest
from tiny_wordnet import ENTRIES, Entry, write_wordnet

from tdos_d2.errors import UserError
from tdos_d2.modeling.clip import tokenize
from tdos_d2.ood_words.mining import class_senses, mine
from tdos_d2.ood_words.wordnet import open_wordnet, version

# A pole of Cityscapes is also the fourth sense of "post".
WITH_POLES = {
    **ENTRIES,
    "location": Entry("location", above=("entity",)),
    "job": Entry("post", above=("entity",)),
    "stake": Entry("post", above=("artifact",)),
    "n3": Entry("post", above=("entity",)),
    "upright": Entry("post", above=("artifact",)),
    "pole": Entry("pole", above=("artifact",)),
}


def words(wordnet, *classes, senses=None, drop=()):
    known = {name: class_senses(wordnet, name, (senses or {}).get(name, ())) for name in classes}
    return {c.word for c in mine(wordnet, known, drop, tokenize=tokenize)}


def test_a_folder_without_lexnames_is_read(wordnet):
    assert version(wordnet) == "WordNet 3.0"
    assert wordnet.synset("car.n.01").lexname() == "noun.artifact"
    assert [s.name() for s in wordnet.synset("taxi.n.01").hypernyms()] == ["car.n.01"]


def test_the_folder_is_forgotten_afterwards(tmp_path):
    before = list(nltk.data.path)
    with open_wordnet(write_wordnet(tmp_path)):
        assert len(nltk.data.path) == len(before) + 1
    assert nltk.data.path == before


def test_known_classes_and_what_belongs_to_them_are_left_out(wordnet):
    found = words(wordnet, "car")
    assert found == {"container", "box", "crate", "photo box", "furniture", "sofa", "couch", "dog",
                     "crane", "derrick", "frisbee"}  # fmt: skip


@pytest.mark.parametrize(
    "why, word",
    [
        ("the class", "car"),
        ("its synonym", "auto"),
        ("hyponym", "taxi"),
        ("hyponym", "cab"),
        ("hypernym", "vehicle"),
        ("part", "hood"),
        ("hyponym of a part", "chrome hood"),
        ("contains the class name", "car box"),
    ],
)
def test_without_the_class_the_word_is_there(wordnet, why, word):
    assert word not in words(wordnet, "car")
    assert word in words(wordnet, "dog")


def test_class_names_in_the_plural_or_with_underscores(tmp_path):
    """The rules, and the ban on words that contain a class, know them all the same."""
    with open_wordnet(write_wordnet(tmp_path, WITH_POLES)) as reader:
        assert [s.name() for s in class_senses(reader, "Poles")] == ["pole.n.01", "post.n.04"]
        assert words(reader, "cars") == words(reader, "car")
        assert words(reader, "photo_box") == words(reader, "photo box")


def test_a_synonym_is_left_out_whatever_its_first_sense(tmp_path):
    entries = {"auto_animal": Entry("auto", above=("animal",)), **ENTRIES}
    with open_wordnet(write_wordnet(tmp_path, entries)) as reader:
        assert "auto" not in words(reader, "car")
        assert "auto" in words(reader, "sofa")


def test_a_word_counts_in_its_first_sense_only(wordnet):
    taken = words(wordnet, "car")
    assert "chair" not in taken  # first a person
    assert "dog" in taken  # a person only in its second sense
    known = {"car": class_senses(wordnet, "car")}
    found = mine(wordnet, known, tokenize=tokenize)
    senses = {c.word: c.sense.name() for c in found}
    assert senses["dog"] == "dog.n.01"


@pytest.mark.parametrize(
    "word", ["gadget", "xqzvk", "sea horse", "lincoln", "animal", "artifact", "person", "president"]
)
def test_rude_unknown_misleading_and_empty_words_are_left_out(wordnet, word):
    assert word not in words(wordnet, "car")


def test_first_sense_of_a_class_unless_told_otherwise(wordnet):
    assert "derrick" in words(wordnet, "crane")
    assert "derrick" not in words(wordnet, "crane", senses={"crane": ["crane.n.02"]})


def test_subtrees_can_be_dropped(wordnet):
    assert words(wordnet, "car") - words(wordnet, "car", drop=["container.n.01"]) == {
        "container", "box", "crate", "photo box"
    }  # fmt: skip


def test_class_names_of_cityscapes_have_their_senses(tmp_path):
    with open_wordnet(write_wordnet(tmp_path, WITH_POLES)) as reader:
        assert [s.name() for s in class_senses(reader, "Pole")] == ["pole.n.01", "post.n.04"]


@pytest.mark.parametrize("name", ["traffic cone", "Auto-Ordner"])
def test_a_class_that_wordnet_lacks_is_an_error(wordnet, name):
    with pytest.raises(UserError, match=f"class '{name}': WordNet has no such noun.*--sense"):
        class_senses(wordnet, name)


@pytest.mark.parametrize("name", ["car", "car.n.09", "nothing.n.01"])
def test_a_synset_that_wordnet_lacks_is_an_error(wordnet, name):
    with pytest.raises(UserError, match=f"no synset '{name}'"):
        class_senses(wordnet, "car", [name])
    with pytest.raises(UserError, match=f"no synset '{name}'"):
        words(wordnet, "car", drop=[name])


def test_missing_or_broken_files_are_an_error(tmp_path):
    with (
        pytest.raises(UserError, match=f"no data.noun and index.noun in {tmp_path}"),
        open_wordnet(tmp_path),
    ):
        pass
    (tmp_path / "data.noun").write_text("00000000 x\n")
    (tmp_path / "index.noun").write_text("car n one\n")
    with (
        pytest.raises(UserError, match=f"{tmp_path}/data.noun is damaged.* at byte 0"),
        open_wordnet(tmp_path),
    ):
        pass
