"""Objects in images with a transparent background."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tdos_d2.data.cutouts import CutoutSource
from tdos_d2.data.ood_paste import build_ood_paste
from tdos_d2.errors import UserError

RED, GREEN = (200, 40, 20), (0, 255, 0)


def cutout(colour: tuple[int, int, int], hidden: tuple[int, int, int] = GREEN) -> Image.Image:
    """60x50, transparent but for an L of 20x30 pixels; ``hidden`` is under the transparent ones."""
    pixels = np.zeros((50, 60, 4), np.uint8)
    pixels[..., :3] = hidden
    for rows, columns in ((slice(5, 35), slice(12, 22)), (slice(25, 35), slice(12, 32))):
        pixels[rows, columns] = (*colour, 255)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cutouts" / "animals").mkdir(parents=True)
    cutout(RED).save(tmp_path / "cutouts" / "animals" / "cat.png")
    (tmp_path / "cutouts" / "animals" / "cat.txt").write_text("a cat")
    return tmp_path / "cutouts"


def test_the_object_is_cut_out_and_half_of_the_objects_are_mirrored(folder):
    upright = np.ones((30, 20), np.float32)
    upright[:20, 10:] = 0
    source, rng, mirrored = CutoutSource(folder), np.random.default_rng(0), 0
    for _ in range(200):
        patch, mask = source.sample(rng, 30)
        assert patch.dtype == np.uint8 and mask.dtype == np.float32
        flipped = bool((mask == upright[:, ::-1]).all())
        assert flipped or (mask == upright).all()
        assert (patch[mask == 1] == RED).all()
        mirrored += flipped
    assert 70 < mirrored < 130  # 4 standard deviations


@pytest.mark.parametrize("max_side", [7, 19, 41])
def test_hidden_colours_do_not_reach_the_edges(folder, max_side):
    """Where a resized pixel is covered in part, it has the object's colour all the same."""
    patch, mask = CutoutSource(folder).sample(np.random.default_rng(0), max_side)
    assert max(mask.shape) == max_side and mask.max() == 1 and ((mask > 0) & (mask < 1)).any()
    difference = patch[mask > 0.01].astype(int) - RED
    assert np.abs(difference).max() <= 1


def test_objects_are_enlarged_by_half_at_most(folder):
    assert CutoutSource(folder).sample(np.random.default_rng(0), 300)[1].shape == (45, 30)


def test_channels_are_in_the_order_of_the_config(folder):
    patch, mask = CutoutSource(folder, "BGR").sample(np.random.default_rng(0), 30)
    assert (patch[mask == 1] == RED[::-1]).all()


def test_palettes_and_grey_with_transparency(folder):
    """Transparency of PNG's palettes, and grey with an alpha channel."""
    (folder / "animals" / "cat.png").unlink()
    for name, image in (("grey.png", cutout((70, 70, 70)).convert("LA")),
                        ("palette.png", _palette(cutout((70, 70, 70))))):  # fmt: skip
        image.save(folder / name)
        patch, mask = CutoutSource(folder).sample(np.random.default_rng(0), 30)
        assert mask.mean() == pytest.approx(400 / 600) and (patch[mask == 1] == 70).all()
        (folder / name).unlink()


def _palette(image: Image.Image) -> Image.Image:
    indices = (np.asarray(image)[..., 3] > 0).astype(np.uint8)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([*GREEN, 70, 70, 70])
    palette.info["transparency"] = 0
    return palette


def test_each_image_equally_often(folder):
    for number in range(3):
        cutout((10 * number, 0, 0)).save(folder / f"{number}.png")
    source, rng = CutoutSource(folder), np.random.default_rng(0)
    drawn = [source.sample(rng, 30)[0][-1, 5, 0] for _ in range(400)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 4 and (abs(counts - 100) < 35).all()  # 4 standard deviations


def test_by_the_config(cfg, folder, monkeypatch):
    """The folder is one of the datasets' folder, or absolute."""
    node = cfg.INPUT.OOD_PASTE
    node.SOURCE, node.PROB = "cutouts", 1.0
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    label = np.zeros((90, 120), np.uint8)
    for value in ("cutouts", str(folder)):
        node.CUTOUTS = value
        paste = build_ood_paste(cfg)
        image, changed = paste(np.full((90, 120, 3), 90, np.uint8), label, np.random.default_rng(3))
        pasted = changed == paste.ood_label
        assert pasted.any() and image[pasted][:, 0].mean() > 1.5 * image[pasted][:, 1].mean()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: "no_folder", "INPUT.OOD_PASTE.CUTOUTS: no folder .*no_folder"),
        (lambda folder: _only(folder, None), "INPUT.OOD_PASTE.CUTOUTS: .*cutouts has no images"),
        (lambda folder: _only(folder, cutout(RED).convert("RGB")), "cat.png.*no transparent pixel"),
        (lambda folder: _only(folder, Image.new("RGBA", (9, 9))), "cat.png.*transparent everywh"),
        (lambda folder: _only(folder, b"GIF"), "cannot read cutout .*cat.png"),
    ],
)
def test_wrong_folders(cfg, folder, change, expected):
    cfg.INPUT.OOD_PASTE.SOURCE, cfg.INPUT.OOD_PASTE.CUTOUTS = "cutouts", str(change(folder))
    with pytest.raises(UserError, match=expected):
        build_ood_paste(cfg)


def _only(folder, image: Image.Image | bytes | None):
    path = folder / "animals" / "cat.png"
    if image is None:
        path.unlink()
    elif isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path)
    return folder
