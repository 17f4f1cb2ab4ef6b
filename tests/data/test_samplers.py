"""The data order as a function of (seed, position)."""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch

from tdos_d2.data.samplers import PositionalDataset, PositionSampler, sample_randomness

DICTS = [{"file_name": str(i), "list": [i]} for i in range(7)]


def order(dataset, start, stop):
    return [int(dataset[p]["file_name"]) for p in range(start, stop)]


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def test_each_epoch_has_every_frame_once_in_an_order_of_its_own():
    dataset = PositionalDataset(DICTS, seed=3)
    epochs = [order(dataset, 7 * e, 7 * e + 7) for e in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 5
    assert order(PositionalDataset(DICTS, seed=4), 0, 7) != epochs[0]


def test_order_does_not_depend_on_the_way_it_is_asked_for():
    dataset = PositionalDataset(DICTS, seed=3)
    forward = order(dataset, 0, 30)
    fresh = PositionalDataset(DICTS, seed=3)
    assert [order(fresh, p, p + 1)[0] for p in reversed(range(30))] == forward[::-1]


def test_unshuffled_repeats_the_list():
    assert order(PositionalDataset(DICTS, 0, shuffle=False), 0, 15) == [*range(7), *range(7), 0]


def test_items_are_copies_with_their_position():
    dataset = PositionalDataset(DICTS, seed=3)
    item = dataset[20]
    assert item["position"] == 20
    item["list"].append("changed")
    assert "changed" not in dataset[20]["list"]
    assert "position" not in DICTS[0]


def test_ranks_share_each_batch():
    ranks = [take(PositionSampler(100, rank, 3, batch_size=2), 10) for rank in range(3)]
    for i in range(5):
        batch = sorted(p for rank in ranks for p in rank[2 * i : 2 * i + 2])
        assert batch == list(range(100 + 6 * i, 106 + 6 * i))


def test_sampler_restarts_where_it_is_told():
    assert take(PositionSampler(6, 1, 2), 5) == take(PositionSampler(0, 1, 2), 8)[3:]


def draw(rng=None):
    own = rng.random() if rng else None
    return random.random(), np.random.rand(), torch.rand(1).item(), own


def test_sample_randomness_depends_on_seed_and_position_only():
    with sample_randomness(1, 5) as rng:
        first = draw(rng)
    draw()
    with sample_randomness(1, 5) as rng:
        assert draw(rng) == first
    for other in ((1, 6), (2, 5)):
        with sample_randomness(*other) as rng:
            assert all(a != b for a, b in zip(draw(rng), first, strict=True))


def test_sample_randomness_leaves_no_trace():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    try:
        with sample_randomness(1, 5):
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected
