"""Images of every kind of pixels, read alike by the package, the scripts in datasets/ and the
example; folders with links and hidden files; outputs that cannot be written."""

from __future__ import annotations

import glob
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from script_loading import load_script

from tdos_d2.data import read_image
from tdos_d2.data.reading import image_size
from tdos_d2.errors import UserError
from tdos_d2.files import find_files

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 65536, (6, 9), np.uint16)
COLOUR16 = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
SMALL = RNG.integers(0, 256, (6, 9, 4), np.uint8)
HIGH = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, 2)


def save_tiff(path: Path, values: np.ndarray, order: str, turn: int = 1) -> None:
    """(H, W) uint16 as TIFF, byte by byte as the format says; ``order`` is "<" or ">"."""
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 274: turn, 277: 1, 278: height}
    tags |= {279: len(data), 273: 8 + 2 + 12 * 10 + 4}
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    content += struct.pack(f"{order}H", len(tags))
    for tag, value in sorted(tags.items()):
        content += struct.pack(f"{order}HHII", tag, 4, 1, value)
    path.write_bytes(content + bytes(4) + data)


def save_with_pillow(image: Image.Image, **options: object):
    return lambda path: image.save(path, **options)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RGBA = Image.fromarray(SMALL)
RGB = RGBA.convert("RGB")
GREY = Image.fromarray(SMALL[..., 0])
IMAGES = {
    "grey16.png": (save_with_pillow(Image.fromarray(GREY16)), HIGH),
    "turned16.png": (save_with_pillow(Image.fromarray(GREY16), exif=turned(6)), np.rot90(HIGH, -1)),
    "little.tif": (lambda path: save_tiff(path, GREY16, "<"), HIGH),
    "big.tif": (lambda path: save_tiff(path, GREY16, ">"), HIGH),
    "big_turned.tif": (lambda path: save_tiff(path, GREY16, ">", 6), np.rot90(HIGH, -1)),
    "packed.tif": (save_with_pillow(Image.fromarray(GREY16), compression="tiff_lzw"), HIGH),
    "grey16.pgm": (
        lambda path: path.write_bytes(b"P5 9 6 65535\n" + GREY16.astype(">u2").tobytes()), HIGH,
    ),
    "colour16.png": (
        lambda path: cv2.imwrite(str(path), COLOUR16[..., ::-1]), (COLOUR16 >> 8).astype(np.uint8),
    ),
    "colour16.tif": (
        lambda path: cv2.imwrite(str(path), COLOUR16[..., ::-1]), (COLOUR16 >> 8).astype(np.uint8),
    ),
    "grey8.png": (save_with_pillow(GREY), np.repeat(SMALL[..., :1], 3, 2)),
    "bits.png": (
        save_with_pillow(Image.fromarray(SMALL[..., 0] > 99)),
        np.repeat(255 * (SMALL[..., :1] > 99), 3, 2),
    ),
    "palette.png": (
        save_with_pillow(RGB.quantize(54)),
        np.array(RGB.quantize(54).getpalette()).reshape(-1, 3)[np.array(RGB.quantize(54))],
    ),
    "grey_alpha.png": (
        save_with_pillow(Image.merge("LA", (GREY, RGBA.getchannel("A")))),
        np.repeat(SMALL[..., :1], 3, 2),
    ),
    "alpha.png": (save_with_pillow(RGBA), SMALL[..., :3]),
    "alpha_turned.webp": (
        save_with_pillow(RGBA, exif=turned(3), lossless=True, exact=True),
        SMALL[::-1, ::-1, :3],
    ),
    "cmyk.tif": (save_with_pillow(RGB.convert("CMYK")), SMALL[..., :3]),
}  # fmt: skip
REFUSED = {
    "integers.tif": (GREY16.astype(np.int32), "integers of 32 bits"),
    "real.tif": (GREY16 / np.float32(65535), "real numbers"),
}


@pytest.fixture
def example():
    """examples/onnx_sliding_window.py as a module."""
    pytest.importorskip("onnxruntime")
    return load_script("examples/onnx_sliding_window.py")


@pytest.fixture
def scripts(monkeypatch):
    """datasets/_common.py."""
    monkeypatch.syspath_prepend(str(ROOT / "datasets"))
    import _common

    return _common


@pytest.mark.parametrize("name", IMAGES)
def test_every_reader_gives_the_same_pixels(tmp_path, example, scripts, name):
    save, expected = IMAGES[name]
    path = tmp_path / name
    save(path)
    for reader in (read_image, scripts.read_rgb, lambda path: example.read_image(path)[..., ::-1]):
        image = reader(path)
        assert image.dtype == np.uint8 and image.shape == expected.shape
        np.testing.assert_array_equal(image, expected)
    assert image_size(path) == scripts.read_size(path) == expected.shape[1::-1]


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_16_bits_are_refused_in_one_line(tmp_path, example, scripts, name, capfd):
    values, reason = REFUSED[name]
    Image.fromarray(values).save(tmp_path / name)
    for reader, error in ((read_image, UserError), (scripts.read_rgb, scripts.PrepareError)):
        with pytest.raises(error, match=f"^cannot read image .*{name}: its pixels are {reason}"):
            reader(tmp_path / name)
    with pytest.raises(SystemExit, match=f"^error: cannot read image .*{name}: pixels are .*32"):
        example.read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_what_the_example_cannot_read_is_one_line(tmp_path, example):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    RGBA.save(tmp_path / "alpha.tif")  # OpenCV multiplies colours with alpha there
    for name in ("empty.png", "text.png", "absent.png", "alpha.tif"):
        with pytest.raises(SystemExit, match=f"^error: .*{name}: "):
            example.read_image(tmp_path / name)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize(
    "pattern", ["**/*", "*", "*/*", "**/*.jpg", "a/**/*", "a*/*.png", "**/c/*", "?/[1-2].*"]
)
def test_files_fit_a_pattern_as_in_glob(tmp_path, pattern):
    make_files(tmp_path, "1.jpg", "a/2.jpg", "a/2.png", "a/c/1.jpg", "a-b/1.png", "B/c/d/3.png")
    expected = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    expected = [path for path in expected if (tmp_path / path).is_file()]
    assert find_files(tmp_path, pattern) == sorted(expected) != []


def test_links_are_followed_once_and_hidden_files_left_out(tmp_path):
    real, top = tmp_path / "real", tmp_path / "top"
    make_files(real, "x/1.png", "._1.png", "x/.ipynb_checkpoints/1.png", ".DS_Store")
    make_files(top, "b.png", "a.png", ".a.png", "sub/c.png")
    (top / "linked").symlink_to(real)
    (top / "l.png").symlink_to(real / "x" / "1.png")
    (top / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (top / "self").symlink_to(top)
    (top / "sub" / "up").symlink_to("..")
    (real / "back").symlink_to(top)
    expected = ["a.png", "b.png", "gone.png", "l.png", "linked/x/1.png", "sub/c.png"]
    assert find_files(top) == expected
    (tmp_path / ".hidden").symlink_to(top)  # named by the user, so it counts
    assert find_files(tmp_path / ".hidden") == expected
    without = [tmp_path / ".hidden" / "sub", real]
    assert find_files(top, without=without) == ["a.png", "b.png", "gone.png", "l.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make_files(tmp_path, "closed/1.png")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read folder .*closed: Permission denied"):
        find_files(tmp_path)
