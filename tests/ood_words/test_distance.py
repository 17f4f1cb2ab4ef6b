"""Distances against hand-worked numbers, NLTK's own similarity and CLIP's real text vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tdos_d2.ood_words.distance import embedding_distances, path_distances, wup_distances

VECTORS = Path(__file__).resolve().parents[3] / "shared/data/clip_text/vitb16.npz"


def senses(wordnet, *names):
    return [wordnet.synset(f"{name}.n.01") for name in names]


def test_wu_palmer_by_hand(wordnet):
    # entity 1 - artifact 2 - vehicle 3 - car 4; artifact 2 - container 3 - box 4 - crate 5;
    # entity 1 - animal 2 - dog 3
    found = wup_distances(senses(wordnet, "box", "crate", "dog", "car"), senses(wordnet, "car"))
    expected = [1 - 2 * 2 / (4 + 4), 1 - 2 * 2 / (4 + 5), 1 - 2 * 1 / (4 + 3), 0]
    np.testing.assert_allclose(found, expected)


def test_path_by_hand(wordnet):
    found = path_distances(senses(wordnet, "box", "crate", "dog", "car"), senses(wordnet, "car"))
    assert found.tolist() == [4, 5, 5, 0]


def test_the_nearest_class_counts(wordnet):
    known = senses(wordnet, "car", "animal")
    assert path_distances(senses(wordnet, "dog", "box"), known).tolist() == [1, 4]
    np.testing.assert_allclose(wup_distances(senses(wordnet, "dog"), known), [1 - 4 / 5])


def test_wu_palmer_is_nltks(wordnet):
    every = sorted(wordnet.all_synsets("n"), key=lambda s: s.name())
    for known in every:
        theirs = [1 - sense.wup_similarity(known) for sense in every]
        np.testing.assert_allclose(wup_distances(every, [known]), theirs)


def test_cosine_and_quantile_by_hand():
    known = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    words = np.array([[1.0, 1.0], [0.0, -5.0]])
    # cosines: (0.707, 0.707, -0.707) and (0, -1, 0)
    np.testing.assert_allclose(embedding_distances(words, known), [1 - 0.5**0.5, 1])
    np.testing.assert_allclose(embedding_distances(words, known, 0.5), [1 - 0.5**0.5, 1])
    np.testing.assert_allclose(embedding_distances(words, known, 0.0), [1 + 0.5**0.5, 2])
    np.testing.assert_allclose(embedding_distances(words, known, 0.25), [1, 1.5])


@pytest.mark.skipif(not VECTORS.is_file(), reason=f"no {VECTORS}")
def test_real_clip_vectors_put_shared_names_first_and_frisbees_last():
    with np.load(VECTORS) as data:
        names, source, vectors = data["names"], data["source"], data["embeddings"]
    cityscapes = source == "cityscapes"
    words = names[~cityscapes]
    order = np.argsort(embedding_distances(vectors[~cityscapes], vectors[cityscapes]))
    shared = {"road", "train", "traffic light", "fence", "bus", "motorcycle", "car", "truck",
              "bicycle", "person", "sky-other", "wall-other", "building-other"}  # fmt: skip
    assert set(words[order[:13]]) == shared
    assert {"frisbee", "giraffe"} <= set(words[order[-5:]])
