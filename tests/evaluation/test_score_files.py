"""Score maps of every kind of file, and every way in which a folder can be wrong."""

from __future__ import annotations

import subprocess
import sys

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tdos_d2.errors import UserError
from tdos_d2.evaluation.score_files import find_score_files, read_score, short_names

FRAMES = ["a/x", "a/y", "b/z_leftImg8bit"]
MAP = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def save(path, array=MAP):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    elif path.suffix == ".png":
        cv2.imwrite(str(path), array)
    else:
        with h5py.File(path, "w") as file:
            file["value"] = array
    return path


def save_scaled(path, values, **texts):
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.fromarray(values).save(path, pnginfo=info)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".hdf5"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_reads_what_was_saved(tmp_path, suffix, kind):
    array = MAP.astype(kind)
    read = read_score(save(tmp_path / f"x{suffix}", array))
    assert read.dtype == kind and np.array_equal(read, array)


def test_reads_16_bit_png(tmp_path):
    array = np.array([[0, 1, 40_000], [65_535, 7, 256]], np.uint16)
    assert np.array_equal(read_score(save(tmp_path / "x.png", array)), array)
    with pytest.raises(UserError, match=r"x.png.*16 bits.*uint8"):
        read_score(save(tmp_path / "x.png", array.astype(np.uint8)))
    with pytest.raises(UserError, match=r"x.png.*16 bits.*\(2, 3, 3\)"):
        read_score(save(tmp_path / "x.png", np.stack([array] * 3, axis=2)))


@pytest.mark.parametrize("after", [False, True])
def test_png_with_offset_and_step(tmp_path, after):
    """score = offset + step * value, wherever in the file its text stands."""
    values = np.array([[0, 1, 65_535]], np.uint16)
    save_scaled(tmp_path / "x.png", values, offset="-2.5", step="0.125")
    if after:  # pixels (IDAT) before the texts
        data = (tmp_path / "x.png").read_bytes()
        start, pixels, end = data.index(b"tEXt") - 4, data.index(b"IDAT") - 4, len(data) - 12
        moved = data[:start] + data[pixels:end] + data[start:pixels] + data[end:]
        (tmp_path / "x.png").write_bytes(moved)
    read = read_score(tmp_path / "x.png")
    assert read.dtype == np.float64 and read.tolist() == [[-2.5, -2.375, 8189.375]]


@pytest.mark.parametrize(
    "texts",
    [{"offset": "1"}, {"step": "1"}, {"offset": "nan", "step": "1"}, {"offset": "0", "step": "x"},
     {"offset": "0", "step": "0"}, {"offset": "0", "step": "-1"}, {"offset": "0", "step": "inf"}],
)  # fmt: skip
def test_png_with_a_wrong_scale_is_named(tmp_path, texts):
    save_scaled(tmp_path / "x.png", np.ones((1, 2), np.uint16), **texts)
    with pytest.raises(UserError, match=r"x\.png: its text has offset .*, step "):
        read_score(tmp_path / "x.png")


def test_npz_with_several_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", value=MAP, other=MAP + 1)
    assert np.array_equal(read_score(tmp_path / "x.npz"), MAP)
    np.savez(tmp_path / "x.npz", one=MAP, other=MAP + 1)
    with pytest.raises(UserError, match=r"x.npz.*'value'.*one"):
        read_score(tmp_path / "x.npz")


def test_the_content_says_what_a_numpy_file_is(tmp_path):
    np.save(tmp_path / "x.npy", MAP)
    np.savez(tmp_path / "y.npz", MAP)
    for name, other in (("x.npy", "x.npz"), ("y.npz", "y.npy")):
        (tmp_path / name).rename(tmp_path / other)
        assert np.array_equal(read_score(tmp_path / other), MAP)


def test_files_that_cannot_be_read(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scores"] = MAP
    with pytest.raises(UserError, match=r"x.h5: no dataset 'value', only scores"):
        read_score(tmp_path / "x.h5")
    for suffix in (".npy", ".npz", ".hdf5", ".png"):
        (tmp_path / f"y{suffix}").write_bytes(b"something else")
        with pytest.raises(UserError, match=f"y{suffix}"):
            read_score(tmp_path / f"y{suffix}")
    np.save(tmp_path / "z.npy", np.array([{}]), allow_pickle=True)  # would run code
    with pytest.raises(UserError, match=r"z.npy"):
        read_score(tmp_path / "z.npy")


def test_h5py_missing_is_one_clear_line(tmp_path, monkeypatch):
    path = save(tmp_path / "x.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        read_score(path)


def test_finds_each_frame_under_its_id_or_short_name(tmp_path):
    expected = {
        "a/x": save(tmp_path / "a" / "x.npy"),
        "a/y": save(tmp_path / "y.hdf5"),
        "b/z_leftImg8bit": save(tmp_path / "z.png", MAP.astype(np.uint16)),
    }
    (tmp_path / "notes.txt").write_text("left alone")
    for name in ("a/._x.npy", ".ipynb_checkpoints/y.npy"):
        save(tmp_path / name)
    assert find_score_files(tmp_path, FRAMES) == expected
    assert list(find_score_files(tmp_path, FRAMES)) == FRAMES


def test_fishyscapes_pairs(tmp_path):
    paths = [save(tmp_path / f"{name}_anomaly.npy") for name in ("x", "y", "z_leftImg8bit")]
    for name in ("x", "y", "z_leftImg8bit"):
        save(tmp_path / f"{name}_segmentation.npy")
    assert list(find_score_files(tmp_path, FRAMES).values()) == paths


def test_results_of_predict(tmp_path):
    paths = [save(tmp_path / f"{name}_raw.npy") for name in ("a/x", "y")]
    paths.append(save(tmp_path / "b" / "z_leftImg8bit_raw.png", MAP.astype(np.uint16)))
    for name in ("a/x_score", "a/x_segmentation", "y_word1_lost-cargo", "b/z_leftImg8bit_score"):
        save(tmp_path / f"{name}.png", np.zeros((4, 6, 3), np.uint8))
    assert list(find_score_files(tmp_path, FRAMES).values()) == paths
    assert list(find_score_files(tmp_path, ["a/x", "y", "b/z"]).values()) == paths
    save(tmp_path / "w_score.png", np.zeros((4, 6, 3), np.uint8))  # beside no w_raw
    save(tmp_path / "v_raw.npy")
    with pytest.raises(UserError, match="2 files belong to no frame, first .*v_raw.npy"):
        find_score_files(tmp_path, FRAMES)
    save(tmp_path / "a" / "x_raw.png", MAP.astype(np.uint16))
    with pytest.raises(UserError, match="two files for frame a/x: .*x_raw.npy and .*x_raw.png"):
        find_score_files(tmp_path, FRAMES, allow_extra=True)


def test_short_names_are_unique():
    assert short_names(FRAMES) == {"a/x": "x", "a/y": "y", "b/z_leftImg8bit": "z"}
    assert short_names(["a/x", "b/x", "b/y"]) == {"a/x": "a/x", "b/x": "b/x", "b/y": "y"}


def test_what_is_missing_or_too_much_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        find_score_files(tmp_path / "nowhere", FRAMES)
    save(tmp_path / "a" / "x.npy")
    save(tmp_path / "c" / "x.npy")
    save(tmp_path / "c" / "y.npy")
    with pytest.raises(UserError) as caught:
        find_score_files(tmp_path, FRAMES)
    message = str(caught.value)
    assert "2 of 3 frames have no file, first" in message and "a/y (.npy" in message
    assert "2 files belong to no frame, first" in message and "c/x.npy" in message
    assert "\n" not in message

    save(tmp_path / "y.npy"), save(tmp_path / "z.npy")
    with pytest.raises(UserError, match="2 files belong to no frame"):
        find_score_files(tmp_path, FRAMES)
    assert len(find_score_files(tmp_path, FRAMES, allow_extra=True)) == 3
    save(tmp_path / "a" / "x.hdf5")
    with pytest.raises(UserError, match=r"two files for frame a/x: .*x.hdf5 and .*x.npy"):
        find_score_files(tmp_path, FRAMES, allow_extra=True)


WITHOUT = """
import sys
for name in ("torch", "torchvision", "detectron2", "h5py"):
    sys.modules[name] = None
from tdos_d2.evaluation import (
    bootstrap, calibration, curve_points, operating_point, score_files, submission, tables
)
"""


def test_imports_without_torch_detectron2_and_h5py():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
