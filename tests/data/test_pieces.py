"""Objects whose textures are pieces of training images."""

from __future__ import annotations

from itertools import permutations

import cv2
import numpy as np
import pytest

from tdos_d2.data.ood_paste import build_ood_paste
from tdos_d2.data.pieces import PieceSource
from tdos_d2.data.shapes import ShapeSource
from tdos_d2.errors import UserError

COLOUR = np.array((200, 120, 30))


@pytest.fixture
def file(tmp_path) -> str:
    """An image of one colour."""
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), np.full((90, 160, 3), COLOUR[::-1], np.uint8))
    return str(path)


def colours(source: PieceSource, count: int) -> set[tuple[int, ...]]:
    rng, size = np.random.default_rng(0), (11, 17)
    pieces = [source.texture(rng, size, "plain") for _ in range(count)]
    for piece in pieces:
        assert piece.shape == (*size, 3) and piece.dtype == np.float32
        assert np.ptp(piece, axis=(0, 1)).max() == 0
    return {tuple(piece[0, 0].astype(int)) for piece in pieces}


def test_channels_are_permuted_and_half_of_the_pieces_are_negatives(file):
    expected = {*permutations(COLOUR), *permutations(255 - COLOUR)}
    assert colours(PieceSource([file]), 100) == expected
    assert colours(PieceSource([file], "BGR"), 100) == expected


def test_pieces_are_squares_of_the_image_turned_and_mirrored(tmp_path):
    """A horizontal gradient stays one, or becomes a vertical one, in either direction."""
    path = tmp_path / "gradient.png"
    gradient = np.repeat(np.arange(160, dtype=np.uint8)[None], 90, 0)
    cv2.imwrite(str(path), cv2.merge([gradient] * 3))
    rng, source, seen, spans = np.random.default_rng(0), PieceSource([str(path)]), set(), []
    for _ in range(200):
        piece = source.texture(rng, (30, 30), "plain")[..., 0]
        across, down = np.diff(piece, axis=1).mean(), np.diff(piece, axis=0).mean()
        assert min(abs(across), abs(down)) < 1e-3
        seen.add((round(np.sign(across)), round(np.sign(down))))
        spans.append(np.ptp(piece) + 1)
    assert seen >= {(1, 0), (-1, 0), (0, 1), (0, -1)}
    # From 0.15 to 0.6 of the shorter side.
    assert 10 < min(spans) < 18 and 48 < max(spans) <= 55


def test_outlines_are_those_of_the_drawn_shapes_and_the_seed_decides(file):
    drawn = ShapeSource().sample(np.random.default_rng(3), 40)[1]
    first, again = (PieceSource([file]).sample(np.random.default_rng(3), 40) for _ in range(2))
    assert first[0].shape == (*drawn.shape, 3) and first[0].dtype == np.uint8
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png"):
        PieceSource([str(tmp_path / "broken.png")]).sample(np.random.default_rng(0), 20)


def test_pieces_are_of_the_training_sets(cfg):
    cfg.INPUT.OOD_PASTE.SOURCE, cfg.INPUT.OOD_PASTE.PROB = "mix", 1.0
    cfg.INPUT.OOD_PASTE.MIX = [["shapes", 0.5], ["pieces", 1.5]]
    paste = build_ood_paste(cfg)
    assert [type(source) for source in paste.sources] == [ShapeSource, PieceSource]
    assert paste.shares.tolist() == [0.25, 0.75]
    image, label = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
    assert (paste(image, label, np.random.default_rng(0))[1] == paste.ood_label).any()
    cfg.INPUT.OOD_PASTE.SOURCE, cfg.DATASETS.TRAIN = "pieces", ("no_such_set",)
    with pytest.raises(UserError, match="no_such_set"):
        build_ood_paste(cfg)
