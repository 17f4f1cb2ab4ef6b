"""Images and labels from files of all kinds, and what is said of bad ones."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from detectron2.data.catalog import Metadata
from PIL import Image

from tdos_d2.data import read_image, read_label
from tdos_d2.data.reading import image_size, read_values
from tdos_d2.errors import UserError

CLOSED = Metadata(name="closed", stuff_classes=["a", "b", "c"], ignore_label=255)
OOD = Metadata(name="open", evaluator_type="ood", id_values=(0, 3), ood_values=(2,))


def label_file(folder, values, dtype=np.uint8):
    path = folder / "label.png"
    Image.fromarray(np.array([values], dtype)).save(path)
    return path


@pytest.mark.parametrize("file", ["a.png", "a.jpg", "a.JPEG", "a.webp", "a.bmp"])
def test_image_formats(tmp_path, write, file):
    image = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    path = write(tmp_path / file, image)
    assert np.abs(read_image(path, "RGB").astype(int) - image).max() <= 3  # JPEG loses a little
    assert np.array_equal(read_image(path, "BGR"), read_image(path, "RGB")[..., ::-1])
    assert image_size(path) == (8, 6)


def test_content_counts_not_name(tmp_path, write):
    image = np.full((6, 8, 3), 90, np.uint8)
    assert read_image(write(tmp_path / "a.png", image, "JPEG")).shape == (6, 8, 3)
    assert read_image(write(tmp_path / "b.jpg", image, "PNG")).shape == (6, 8, 3)


def test_grey_palette_and_alpha_images_become_rgb(tmp_path, write):
    grey = write(tmp_path / "grey.png", np.full((2, 3), 77, np.uint8))
    assert np.array_equal(read_image(grey), np.full((2, 3, 3), 77))
    alpha = write(tmp_path / "alpha.png", np.full((2, 3, 4), 9, np.uint8))
    assert np.array_equal(read_image(alpha), np.full((2, 3, 3), 9))
    Image.new("P", (3, 2)).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (2, 3, 3)


def test_exif_orientation_turns_image_and_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name, exif=exif)
        assert read_image(tmp_path / name).shape[:2] == (8, 6)
        assert image_size(tmp_path / name) == (6, 8)


@pytest.mark.parametrize("reader", [read_image, image_size, lambda p: read_label(p, CLOSED)])
def test_bad_files_are_named_in_one_line(tmp_path, reader, write):
    text = tmp_path / "text.png"
    text.write_text("no image")
    cut = write(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 3, (99, 99), np.uint8))
    if reader is not image_size:  # the header is whole
        cut.write_bytes(cut.read_bytes()[:600])
    else:
        cut.write_bytes(cut.read_bytes()[:20])
    for path in (text, cut, tmp_path / "absent.png", tmp_path):
        with pytest.raises(UserError) as error:
            reader(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_closed_set_labels(tmp_path):
    assert read_label(label_file(tmp_path, [0, 1, 2, 255]), CLOSED).tolist() == [[0, 1, 2, 255]]
    assert read_label(label_file(tmp_path, [0]), CLOSED).dtype == np.uint8


@pytest.mark.parametrize("values", [[3], [0, 254]])
def test_closed_set_rejects_undeclared_values(tmp_path, values):
    path = label_file(tmp_path, values)
    with pytest.raises(UserError, match=f"{path}.*'closed'.*{values[-1]}"):
        read_label(path, CLOSED)


def test_ignore_label_of_the_metadata_becomes_255(tmp_path):
    plain = Metadata(name="plain", stuff_classes=["a", "b", "c"], ignore_label=3)
    assert read_label(label_file(tmp_path, [2, 3, 255]), plain).tolist() == [[2, 255, 255]]
    more = Metadata(name="more", stuff_classes=["a"], ignore_label=-1, ignore_values=(7, 9))
    assert read_label(label_file(tmp_path, [0, 7, 9]), more).tolist() == [[0, 255, 255]]
    with pytest.raises(UserError, match="12"):
        read_label(label_file(tmp_path, [2, 3, 12]), plain)


def test_declared_ood_values_of_a_training_set_become_k(tmp_path):
    poc = Metadata(name="poc", stuff_classes=["a", "b"], ignore_label=255, ood_values=(254,))
    assert read_label(label_file(tmp_path, [0, 1, 254, 255]), poc).tolist() == [[0, 1, 2, 255]]


def test_ood_labels(tmp_path):
    path = label_file(tmp_path, [0, 3, 2, 255])
    assert read_label(path, OOD).tolist() == [[0, 0, 1, 255]]


def test_ood_set_rejects_or_ignores_undeclared_values(tmp_path):
    path = label_file(tmp_path, [0, 2, 1, 200])
    with pytest.raises(UserError, match=f"{path}.*'open'.*: 1, 200"):
        read_label(path, OOD)
    lenient = Metadata(**{**OOD.as_dict(), "undeclared": "ignore"})
    assert read_label(path, lenient).tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_labels(tmp_path, bits):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putdata([0, 1, 2])
    palette.save(tmp_path / "p.png", bits=bits)
    assert (tmp_path / "p.png").read_bytes()[24:26] == bytes([bits, 3])
    assert read_label(tmp_path / "p.png", CLOSED).tolist() == [[0, 1, 2]]


def shallow_file(folder, name, bits):
    """A grey file with the values 0 and 1 in these few bits, where the largest value is white."""
    path = folder / name
    if name == "a.pgm":
        path.write_bytes(b"P5 2 1 %d\n\0\1" % (2**bits - 1))
    elif name == "plain.pgm":
        path.write_bytes(b"P2 2 1 %d\n0 1\n" % (2**bits - 1))
    else:  # Pillow writes such files only with a palette
        image = Image.new("P", (2, 1))
        image.putpalette(range(3 * 2**bits))
        image.putdata([0, 1])
        image.save(path, bits=bits)
        data = bytearray(path.read_bytes())
        data[25] = 0  # the type of colour: grey
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "plain.pgm"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_no_label(tmp_path, name, bits):
    """Pillow scales it: the 1 would be True, 85 or 17, and programs store 255 as the 1 of 1 bit."""
    path = shallow_file(tmp_path, name, bits)
    if name == "a.png":
        assert Image.open(path).convert("L").getpixel((1, 0)) == 255 // (2**bits - 1)
    for metadata in (CLOSED, OOD, Metadata(**{**OOD.as_dict(), "undeclared": "ignore"})):
        with pytest.raises(UserError, match=f"label {path}: .*depth of {bits} .*need 8 bits") as e:
            read_label(path, metadata)
        assert "\n" not in str(e.value)
    label = label_file(tmp_path, [0, 0])  # where a mask is not 0 its labels are void
    assert read_label(label, CLOSED, shallow_file(tmp_path, name, bits)).tolist() == [[0, 255]]


def test_16_bit_labels(tmp_path):
    assert read_label(label_file(tmp_path, [0, 2], np.uint16), CLOSED).tolist() == [[0, 2]]
    with pytest.raises(UserError, match="1000"):
        read_label(label_file(tmp_path, [0, 1000], np.uint16), CLOSED)


@pytest.mark.parametrize("values", [[0, 0.9], [1.5, 1], [np.nan, 0], [np.inf, 0], [2**31 + 0.0, 0]])
def test_fractions_are_no_labels(tmp_path, values):
    path = tmp_path / "label.tif"
    Image.fromarray(np.array([values], np.float32)).save(path)
    with pytest.raises(UserError, match=rf"label {path}: it has the value .*whole num") as error:
        read_label(path, OOD)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ">u2", np.uint16])
def test_whole_numbers_are_labels_in_any_type(tmp_path, dtype):
    path = tmp_path / "label.tif"
    Image.fromarray(np.array([[0, 1, 2, 255]]).astype(dtype)).save(path)
    assert read_label(path, CLOSED).tolist() == [[0, 1, 2, 255]]
    Image.fromarray(np.array([[0, 300]]).astype(dtype)).save(path)
    with pytest.raises(UserError, match="300"):
        read_label(path, CLOSED)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_turn_with_exif(tmp_path, name, mode, turn):
    values = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    array = {"1": values.astype(bool), "I;16": values.astype(np.uint16)}.get(mode, values)
    mask = Image.fromarray(array)
    if mode == "P":
        mask.putpalette([0, 0, 0, 255, 0, 0])
    assert mask.mode == mode
    mask.save(tmp_path / name, exif=exif)
    # What the EXIF standard says of each number.
    upright = [values, values[:, ::-1], values[::-1, ::-1], values[::-1], values.T,
               np.rot90(values, -1), values.T[::-1, ::-1], np.rot90(values)]  # fmt: skip
    found = read_values(tmp_path / name, "ego mask" if mode == "1" else "label")
    assert found.astype(int).tolist() == upright[turn - 1].tolist()


def test_colour_labels_are_refused(tmp_path, write):
    path = write(tmp_path / "colour.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="3 channels"):
        read_label(path, CLOSED)


def test_set_without_classes_is_named(tmp_path):
    with pytest.raises(UserError, match="'bare'.*stuff_classes"):
        read_label(label_file(tmp_path, [0]), Metadata(name="bare"))
