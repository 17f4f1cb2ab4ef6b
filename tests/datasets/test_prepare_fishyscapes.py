"""Fishyscapes Static from overlays and Lost & Found from matched ids."""

from __future__ import annotations

import shutil
import zipfile

import _common
import numpy as np
import prepare_fs_laf
import prepare_fs_static
import pytest
from _common import PrepareError, read_rgb
from layouts import (
    SIZE,
    cityscapes,
    cityscapes_ids,
    fishyscapes_laf,
    fishyscapes_static,
    laf_ids,
    lost_and_found,
    picture,
    write_image,
)

from tdos_d2.data import get_dicts


def test_overlay_arithmetic_by_hand():
    image = np.array([[[10, 250, 128], [0, 255, 7]]], np.uint8)
    overlay = np.array([[[-20, 10, -1], [-255, 255, 0]]], np.int16)
    summed = prepare_fs_static.add_overlay(image, overlay)
    assert summed.tolist() == [[[0, 255, 127], [0, 255, 7]]]
    assert summed.dtype == np.uint8


@pytest.mark.parametrize("version", [1, 2, 3])
def test_static(root, contents, version):
    cityscapes(root)
    source = fishyscapes_static(root, version, prepared=False)
    before = contents(root)
    prepare_fs_static.main(["--version", str(version)])
    output = root / f"fs_static_v{version}"
    for i, frame in enumerate(cityscapes_ids("val")):
        base = picture(i).astype(int)  # as the builder of Cityscapes draws it
        expected = base.copy()
        expected[8:16, 4:20, 0] = np.maximum(base[8:16, 4:20, 0] - 200, 0)
        expected[8:16, 4:20, 1] = np.minimum(base[8:16, 4:20, 1] + 30, 255)
        expected[8:16, 4:20, 2] = np.minimum(base[8:16, 4:20, 2] + 200, 255)
        np.testing.assert_array_equal(read_rgb(output / "images" / f"{i}_{frame}.png"), expected)
        label = (source / f"{i}_{frame}_labels.png").read_bytes()
        assert (output / "labels" / f"{i}_{frame}.png").read_bytes() == label
    assert {k: v for k, v in contents(root).items() if not k.startswith("fs_static")} == before
    assert len(get_dicts(f"fs_static_v{version}_val")) == 3


def test_static_from_the_archive(root, contents, monkeypatch):
    cityscapes(root)
    source = fishyscapes_static(root, prepared=False)
    prepare_fs_static.main(["--output", str(root / "from_folder")])
    shutil.make_archive(str(root / "fs_val_v2"), "zip", source)
    with pytest.raises(PrepareError, match=r"fs_val_v2\.zip is not fs_val_v2\.zip: .*bb11f288"):
        prepare_fs_static.main([])
    monkeypatch.setattr(_common, "check_archive", lambda *args: None)
    prepare_fs_static.main([])
    assert contents(root / "fs_static_v2") == contents(root / "from_folder")
    with zipfile.ZipFile(root / "fs_val_v1.zip", "w") as archive:
        archive.writestr("readme.txt", "no labels")
    with pytest.raises(PrepareError, match=r"nothing to do: no overlays of .*fs_val_v1\.zip"):
        prepare_fs_static.main(["--version", "1"])


def test_static_names_what_is_missing_or_wrong(root):
    base = cityscapes(root)
    source = fishyscapes_static(root, prepared=False)
    first = cityscapes_ids("val")[0]
    overlay = source / f"0_{first}_rgb.npz"
    for arrays, message in (
        ({"img": np.zeros((*SIZE, 3))}, f"cannot read the array 'rgb' of .*0_{first}_rgb.npz"),
        ({"rgb": np.zeros((*SIZE, 4))}, f"0_{first}_rgb.npz has shape .*, 4.* but .*{first}"),
    ):
        np.savez(overlay, **arrays)
        with pytest.raises(PrepareError, match=message):
            prepare_fs_static.main([])
    overlay.write_bytes(overlay.read_bytes()[:50])
    with pytest.raises(PrepareError, match=f"cannot read the array 'rgb' of .*0_{first}_rgb.npz"):
        prepare_fs_static.main([])
    overlay.unlink()
    with pytest.raises(PrepareError, match=f"1 of 3 overlays .* first 0_{first}_rgb.npz"):
        prepare_fs_static.main([])
    overlay.touch()
    (base / "leftImg8bit" / "val" / "frankfurt" / f"{first}_leftImg8bit.png").unlink()
    with pytest.raises(PrepareError, match=f"1 of 3 images .* first {first}_leftImg8bit.png"):
        prepare_fs_static.main([])


def test_static_of_another_version_is_not_kept(root):
    """The files of the versions have the same names."""
    cityscapes(root)
    for version in (2, 3):
        fishyscapes_static(root, version, prepared=False)
    output = ["--output", str(root / "static")]
    prepare_fs_static.main(["--version", "2", *output])
    prepare_fs_static.main(["--version", "2", *output])
    with pytest.raises(PrepareError, match="static has files of fs_val_v2, not of fs_val_v3"):
        prepare_fs_static.main(["--version", "3", *output])
    (root / "static" / "made_of.txt").unlink()
    with pytest.raises(PrepareError, match="static has files of an unknown version"):
        prepare_fs_static.main(["--version", "2", *output])


def test_static_of_several_versions_in_a_folder(root):
    cityscapes(root)
    for version in (1, 2):
        folder = fishyscapes_static(root, version, prepared=False)
        (root / "downloads").mkdir(exist_ok=True)
        folder.rename(root / "downloads" / folder.name)
    with pytest.raises(PrepareError, match=r"two files .*fs_val_v1/0_.* and .*fs_val_v2/0_"):
        prepare_fs_static.main(["--source", str(root / "downloads"), "--dry-run"])
    prepare_fs_static.main(["--source", str(root / "downloads" / "fs_val_v2")])


@pytest.mark.parametrize("copy", [False, True])
def test_laf_ids_are_found_in_both_trees(root, contents, copy):
    release = lost_and_found(root, frames=2, split="test")
    source = fishyscapes_laf(root, prepared=False)
    third = laf_ids(20)[2]  # the builder's labels are of the first three
    for frame in laf_ids(20)[:3]:
        for image in release.glob(f"leftImg8bit/*/*/{frame}_leftImg8bit.png"):
            image.unlink()
    for split, frame, seed in zip(("train", "test", "train"), laf_ids(20), (1, 2, 3), strict=False):
        folder = release / "leftImg8bit" / split / frame[: -len("_000000_000000")]
        write_image(folder / f"{frame}_leftImg8bit.png", picture(seed))
    before = contents(root)
    prepare_fs_laf.main(["--copy"] if copy else [])
    for i, frame in enumerate(laf_ids(20)[:3]):
        image = root / "fs_laf" / "images" / f"{i:04d}_{frame}.png"
        np.testing.assert_array_equal(read_rgb(image), picture(i + 1))
        assert image.is_symlink() != copy
        label = (source / f"{i:04d}_{frame}_labels.png").read_bytes()
        assert (root / "fs_laf" / "labels" / f"{i:04d}_{frame}.png").read_bytes() == label
    assert {k: v for k, v in contents(root).items() if not k.startswith("fs_laf")} == before
    assert [d["image_id"][5:] for d in get_dicts("fs_laf_val")] == laf_ids(20)[:3]
    moved = root.rename(root.parent / "moved")  # links are relative
    assert (moved / "fs_laf" / "images" / f"0002_{third}.png").exists()


def test_laf_missing_image_and_wrong_folders(root):
    lost_and_found(root, frames=2)
    fishyscapes_laf(root, prepared=False)
    absent = laf_ids(20)[0]
    for image in root.glob(f"*/leftImg8bit/*/*/{absent}_*"):
        image.unlink()
    with pytest.raises(PrepareError, match=f"of 3 images .* first {absent}_leftImg8bit.png"):
        prepare_fs_laf.main([])
    with pytest.raises(PrepareError, match="lostandfound is not the folder of the rel"):
        prepare_fs_laf.main(["--images", str(root / "fishyscapes_lostandfound")])
    assert not (root / "fs_laf").exists()
