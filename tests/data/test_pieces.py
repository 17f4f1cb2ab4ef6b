"""Objects whose textures are pieces of training images."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.catalog import Metadata

from tdos_d2.data.ood_paste import build_ood_paste
from tdos_d2.data.pieces import LabelledFrame, PieceSource
from tdos_d2.data.shapes import ShapeSource
from tdos_d2.errors import UserError

COLOUR = np.array((200, 120, 30))


def frame(path: Path, image: np.ndarray, label: np.ndarray) -> LabelledFrame:
    """A frame of the classes "road" and "sky", written to files."""
    cv2.imwrite(str(path), image[..., ::-1])
    cv2.imwrite(f"{path}.label.png", label)
    metadata = Metadata(stuff_classes=["road", "sky"], ignore_label=255, ood_values=(2,))
    return LabelledFrame(str(path), f"{path}.label.png", metadata)


@pytest.fixture
def plain(tmp_path) -> LabelledFrame:
    """A frame of one colour."""
    image = np.full((90, 160, 3), COLOUR, np.uint8)
    return frame(tmp_path / "street.png", image, np.ones((90, 160), np.uint8))


def colours(source: PieceSource, count: int) -> set[tuple[int, ...]]:
    rng, size = np.random.default_rng(0), (11, 17)
    pieces = [source.texture(rng, size, "plain") for _ in range(count)]
    for piece in pieces:
        assert piece.shape == (*size, 3) and piece.dtype == np.float32
        assert np.ptp(piece, axis=(0, 1)).max() == 0
    return {tuple(piece[0, 0].astype(int)) for piece in pieces}


def test_channels_are_permuted_and_half_of_the_pieces_are_negatives(plain):
    expected = {*permutations(COLOUR), *permutations(255 - COLOUR)}
    assert colours(PieceSource([plain]), 100) == expected
    assert colours(PieceSource([plain], "BGR"), 100) == expected


def test_pieces_are_squares_of_the_image_turned_and_mirrored(tmp_path):
    """A horizontal gradient stays one, or becomes a vertical one, in either direction."""
    gradient = np.repeat(np.arange(160, dtype=np.uint8)[None], 90, 0)
    image = np.stack([gradient] * 3, axis=-1)
    source = PieceSource([frame(tmp_path / "gradient.png", image, np.zeros_like(gradient))])
    rng, seen, spans = np.random.default_rng(0), set(), []
    for _ in range(200):
        piece = source.texture(rng, (30, 30), "plain")[..., 0]
        across, down = np.diff(piece, axis=1).mean(), np.diff(piece, axis=0).mean()
        assert min(abs(across), abs(down)) < 1e-3
        seen.add((round(np.sign(across)), round(np.sign(down))))
        spans.append(np.ptp(piece) + 1)
    assert seen >= {(1, 0), (-1, 0), (0, 1), (0, -1)}
    # From 0.15 to 0.6 of the shorter side.
    assert 10 < min(spans) < 18 and 48 < max(spans) <= 55


def test_outlines_are_those_of_the_drawn_shapes_and_the_seed_decides(plain):
    drawn = ShapeSource().sample(np.random.default_rng(3), 40)[1]
    first, again = (PieceSource([plain]).sample(np.random.default_rng(3), 40) for _ in range(2))
    assert first[0].shape == (*drawn.shape, 3) and first[0].dtype == np.uint8
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [255, 2])
def test_void_and_ood_pixels_are_in_no_piece(tmp_path, value):
    """A frame whose left half is void is cut on the right; one that is all void, not at all."""
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, 60:], label = COLOUR, np.zeros((60, 120), np.uint8)
    label[:, :60] = value
    half = frame(tmp_path / "half.png", image, label)
    found = colours(PieceSource([half]), 60)
    assert found <= {*permutations(COLOUR), *permutations(255 - COLOUR)} and len(found) > 6
    none = PieceSource([frame(tmp_path / "none.png", image, np.full_like(label, value))])
    drawn = none.texture(np.random.default_rng(0), (11, 17), "vivid")
    assert drawn.shape == (11, 17, 3)
    assert tuple(drawn[0, 0]) not in {(0, 0, 0), (255, 255, 255)} | found


@pytest.mark.parametrize("broken", ["street.png", "street.png.label.png"])
def test_a_file_that_cannot_be_read_is_named(plain, tmp_path, broken):
    (tmp_path / broken).write_bytes(b"no image")
    with pytest.raises(UserError, match=broken):
        PieceSource([plain]).sample(np.random.default_rng(0), 20)
    cv2.imwrite(str(tmp_path / broken), np.zeros((30, 30), np.uint8))
    with pytest.raises(UserError, match="its image .*street.png"):
        PieceSource([plain]).sample(np.random.default_rng(0), 20)


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
