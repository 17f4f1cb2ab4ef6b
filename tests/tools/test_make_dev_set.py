"""Development sets of labelled ones: what is pasted, what is held out, and nothing else."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from script_loading import load_script

from tdos_d2.data import register_ood_dataset, register_segmentation_dataset
from tdos_d2.errors import UserError

ROAD, SKY, CAR, OOD, VOID = 0, 1, 2, 7, 255


@pytest.fixture
def dataset(tmp_path):
    """Three frames; the last has a pixel that its label calls OOD."""
    rng = np.random.default_rng(0)
    for i in range(3):
        label = np.full((90, 160), ROAD, np.uint8)
        label[:20], label[30:50, 40:60], label[-5:] = SKY, CAR, VOID
        label[70, 7] = OOD if i == 2 else ROAD
        image = rng.integers(0, 255, (90, 160, 3), np.uint8)
        for folder, array in (("images", image), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"frame{i}.png")
    register_segmentation_dataset(
        "own_val", tmp_path / "images", tmp_path / "labels", classes=["road", "sky", "car"],
        ood_values=[OOD],
    )  # fmt: skip
    yield tmp_path
    DatasetCatalog.remove("own_val")
    MetadataCatalog.remove("own_val")


@pytest.fixture
def run(dataset, monkeypatch):
    tool = load_script("tools/make_dev_set.py")

    def run(name: str, *words: str) -> list[tuple[np.ndarray, np.ndarray]]:
        output = dataset / name
        words = ["make_dev_set.py", "--dataset", "own_val", "--output", str(output), *words]
        monkeypatch.setattr(sys, "argv", words)
        tool.run()
        folders = (sorted((output / folder).iterdir()) for folder in ("images", "labels"))
        return [tuple(np.array(Image.open(p)) for p in pair) for pair in zip(*folders, strict=True)]

    return run


def originals(folder) -> list[tuple[np.ndarray, np.ndarray]]:
    names = [f"frame{i}.png" for i in range(3)]
    return [
        tuple(np.array(Image.open(folder / part / name)) for part in ("images", "labels"))
        for name in names
    ]


def test_pixels_change_only_around_pasted_objects(run, dataset, capsys):
    frames = run("a", "--stand-on", "road", "--num", "2", "2")
    total = 0
    for (image, label), (before, known) in zip(frames, originals(dataset), strict=True):
        assert image.shape == before.shape and label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 1, 255}
        changed = (image != before).any(-1)
        # A seam of one pixel lies around an object.
        rows, columns = np.nonzero(changed & (label != 1))
        near = np.pad(label == 1, 1)
        assert all(near[y : y + 3, x : x + 3].any() for y, x in zip(rows, columns, strict=True))
        assert (changed[label == 1]).mean() > 0.9
        assert np.array_equal(label == 255, (known == VOID) & (label != 1))
        assert (label[known == OOD] == 1).all()
        total += (label == 1).sum()
    share = 100 * total / (3 * 90 * 160)
    assert share > 1 and f"{share:.1f} % of the pixels OOD" in capsys.readouterr().out


def test_photographs_with_transparent_background(run, dataset):
    """Red squares; each pasted pixel is redder than anything else would be."""
    with pytest.raises(UserError, match="--cutouts: no folder .*things"):
        run("a", "--cutouts", str(dataset / "things"))
    (dataset / "things").mkdir()
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[8:32, 8:32] = 230, 10, 10, 255
    Image.fromarray(pixels).save(dataset / "things" / "square.png")
    frames = run("a", "--cutouts", str(dataset / "things"), "--stand-on", "road")
    for (image, label), (_, known) in zip(frames, originals(dataset), strict=True):
        pasted = (label == 1) & (known != OOD)
        assert pasted.any()
        red, green, _ = image[pasted].astype(int).mean(0)
        assert red > 2 * green


def test_the_seed_decides(run):
    first, again, other = run("a"), run("b"), run("c", "--seed", "2")
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0][1], first[1][1]), "each frame has objects of its own"


def test_held_out_classes_are_ood_and_nothing_is_pasted(run, dataset):
    frames = run("a", "--held-out", "car", "sky")
    for (image, label), (before, known) in zip(frames, originals(dataset), strict=True):
        assert np.array_equal(image, before)
        assert np.array_equal(label == 1, np.isin(known, [CAR, SKY, OOD]))
        assert np.array_equal(label == 255, known == VOID)


@pytest.mark.parametrize("option", ["--held-out", "--stand-on"])
def test_unknown_classes(run, option):
    with pytest.raises(UserError, match=rf"{option}: 'cart' is none of the classes road, sky, car"):
        run("a", option, "cart")


def test_frames_of_an_earlier_run_are_not_mixed_with(run):
    run("a")
    with pytest.raises(UserError, match="--output: .*earlier run"):
        run("a", "--seed", "2")


def test_what_cannot_be_made_is_one_line(run, dataset):
    folders = (dataset / "images", dataset / "labels")
    register_ood_dataset("own_ood", *folders, undeclared="ignore")
    try:
        with pytest.raises(UserError, match="'own_ood' has no classes, it is no training set"):
            run("a", "--dataset", "own_ood")
    finally:
        DatasetCatalog.remove("own_ood")
        MetadataCatalog.remove("own_ood")
    with pytest.raises(UserError, match="--num: 3 is more than 1"):
        run("a", "--num", "3", "1")
    with pytest.raises(UserError, match="--stand-on: with --held-out nothing is pasted"):
        run("a", "--held-out", "car", "--stand-on", "road")
    with pytest.raises(UserError, match="--cutouts: with --held-out nothing is pasted"):
        run("a", "--held-out", "car", "--cutouts", ".")
