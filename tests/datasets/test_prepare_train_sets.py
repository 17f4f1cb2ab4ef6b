"""Training sets from other formats: POC, GTA, SYNTHIA."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import prepare_gta
import prepare_poc
import prepare_synthia
import pytest
from _common import PrepareError, read_ids, read_rgb
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from layouts import SIZE, cityscapes, picture, stripes, write_image
from PIL import Image

from tdos_d2.data import get_dicts, read_label

PATTERN = stripes(*range(19))


def write_png16(path: Path, channels: np.ndarray) -> None:
    """Write (H, W, C) as PNG of 16 bits, by the format's specification."""
    height, width, depth = channels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    kind = {1: 0, 3: 2}[depth]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts
        )
    )


def test_poc_difference_wraps_around():
    original = np.array([[[10, 250, 128]]], np.uint8)
    painted = np.array([[[250, 10, 128]]], np.uint8)
    difference = np.array([[[240, 16, 0]]], np.uint8)  # 250 - 10, 10 - 250 + 256, 0
    np.testing.assert_array_equal(prepare_poc.add_difference(original, difference), painted)


def test_poc_labels_by_hand():
    given = np.array([[0, 16, 18, 19, 85, 90, 254, 255]], np.uint8)
    expected = [[0, 16, 18, 19, 16, 19, 19, 255]]
    assert prepare_poc.relabel(given, Path("x")).tolist() == expected


@pytest.mark.parametrize("name", ["POC_CS_COCO_FT", "POC_CS_ALT_FT"])
def test_poc(root, name):
    cityscapes(root)
    painted = picture(77)
    stem = "aachen_000001_000019_leftImg8bit_A-good-photo-of-a-cow_1"  # the builder's second image
    folder = root / name
    (folder / "leftImg8bit" / "train" / "aachen").mkdir(parents=True)
    # As the release was made: with uint8, without a thought of signs.
    np.savez(folder / "leftImg8bit/train/aachen" / f"{stem}.npz", img=painted - picture(1))
    write_image(folder / "gtFine" / "train" / "aachen" / f"{stem}.png", stripes(0, 85, 42, 255))
    prepare_poc.main(["--source", str(folder)])
    output = root / f"{name[:-3]}_RECONSTRUCTED"
    image = read_rgb(output / "leftImg8bit" / "train" / "aachen" / f"{stem}.png")
    np.testing.assert_array_equal(image, painted)
    label = output / "gtFine" / "train" / "aachen" / f"{stem}.png"
    np.testing.assert_array_equal(read_ids(label), stripes(0, 16, 19, 255))
    if name == "POC_CS_COCO_FT":
        (record,) = get_dicts("poc_cityscapes_coco_train")
        metadata = MetadataCatalog.get("poc_cityscapes_coco_train")
        read = read_label(record["sem_seg_file_name"], metadata)
        np.testing.assert_array_equal(read, stripes(0, 16, 19, 255))


def test_poc_wrong_differences_and_missing_labels(root):
    cityscapes(root)
    folder = root / "POC_CS_COCO_FT"
    stem = "aachen_000001_000019_leftImg8bit_cow_1"
    change = folder / "leftImg8bit" / "train" / "aachen" / f"{stem}.npz"
    change.parent.mkdir(parents=True)
    np.savez(change, img=picture(1).astype(np.int16))
    with pytest.raises(PrepareError, match=f"1 of 1 labels .* first .*gtFine/.*{stem}.png"):
        prepare_poc.main([])
    write_image(folder / "gtFine" / "train" / "aachen" / f"{stem}.png", stripes(0))
    with pytest.raises(PrepareError, match=f"{stem}.npz is int16 of shape"):
        prepare_poc.main([])


def gta_frame(root: Path, number: int, label: Image.Image) -> None:
    write_image(root / "gta" / "images" / f"{number:05d}.png", picture(number))
    path = root / "gta" / "labels" / f"{number:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    label.save(path)


def test_gta_ids_palettes_and_colours(root, capsys):
    ids = np.array([c["id"] for c in CITYSCAPES_CATEGORIES], np.uint8)[PATTERN]
    ids[0] = stripes(*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34)[0]  # void ones
    expected = PATTERN.copy()
    expected[0] = 255
    palette = Image.fromarray(ids)
    palette.putpalette([i for j in range(256) for i in (j, 255 - j, 7)])
    colours = np.array([c["color"] for c in CITYSCAPES_CATEGORIES], np.uint8)[PATTERN]
    colours[0] = (111, 74, 0)  # dynamic
    gta_frame(root, 1, palette)
    gta_frame(root, 2, Image.fromarray(ids))
    gta_frame(root, 3, Image.fromarray(colours))
    gta_frame(root, 4, Image.fromarray(ids[:-2]))  # as 15188 and 17705
    prepare_gta.main([])
    assert f"left out: {root}/gta/images/00004.png" in capsys.readouterr().out
    dicts = get_dicts("gta_train")
    assert [d["image_id"] for d in dicts] == ["00001", "00002", "00003"]
    for i, record in enumerate(dicts):
        label = read_label(record["sem_seg_file_name"], MetadataCatalog.get("gta_train"))
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(read_rgb(Path(record["file_name"])), picture(i + 1))


@pytest.mark.parametrize(
    "label, message",
    [
        (stripes(7, 35), r"00001\.png has values that the release has not: \[35\]"),
        (np.full((*SIZE, 3), 9, np.uint8), r"00001\.png has the colour \(9, 9, 9\)"),
        (np.full((*SIZE, 2), 9, np.uint8), r"00001\.png has 2 channels, not 1, 3 or 4"),
    ],
)
def test_gta_unknown_values(root, label, message):
    gta_frame(root, 1, Image.fromarray(label))
    with pytest.raises(PrepareError, match=message):
        prepare_gta.main([])


def test_gta_missing_labels_and_folders(root):
    (root / "GTA5").mkdir()
    with pytest.raises(PrepareError, match=f"no folder {root}/GTA5/images"):
        prepare_gta.main([])
    gta_frame(root, 1, Image.fromarray(stripes(7)))
    write_image(root / "gta" / "images" / "00002.png", picture())
    with pytest.raises(PrepareError, match="1 of 2 labels .* first .*/labels/00002.png"):
        prepare_gta.main([])


# In the order of SYNTHIA-RAND-CITYSCAPES' own list, from 0.
SYNTHIA_CLASSES = [
    *("void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car"),
    *("traffic sign", "person", "bicycle", "motorcycle", "parking-slot", "road-work"),
    *("traffic light", "terrain", "rider", "truck", "bus", "train", "wall", "lanemarking"),
]


def test_synthia_formats(root):
    folder = root / "RAND_CITYSCAPES"
    classes = stripes(*range(23), size=(6, 23))
    instances = np.arange(6 * 23).reshape(6, 23)
    both = np.stack([classes.astype(int), instances * 300, instances * 0], -1)
    write_png16(folder / "GT" / "LABELS" / "0000000.png", both)
    write_png16(folder / "GT" / "LABELS" / "0000001.png", both[..., :1])
    write_image(folder / "GT" / "LABELS" / "0000002.png", classes)
    write_image(folder / "GT" / "LABELS" / "0000003.png", both.astype(np.uint8))
    for i in range(4):
        write_image(folder / "RGB" / f"000000{i}.png", picture(i, (6, 23)))
    prepare_synthia.main([])
    metadata = MetadataCatalog.get("synthia_train")
    names = np.array([*metadata.stuff_classes, *["void"] * 237], object)
    void = {"parking-slot", "road-work", "lanemarking"}
    expected = ["void" if name in void else name for name in SYNTHIA_CLASSES]
    dicts = get_dicts("synthia_train")
    assert len(dicts) == 4
    for record in dicts:
        label = read_label(record["sem_seg_file_name"], metadata)
        assert all(names[row].tolist() == expected for row in label)


def test_synthia_unknown_class(root):
    write_image(root / "RAND_CITYSCAPES" / "RGB" / "0000000.png", picture())
    write_image(root / "RAND_CITYSCAPES" / "GT" / "LABELS" / "0000000.png", stripes(3, 23))
    with pytest.raises(PrepareError, match=r"0000000\.png has values .*: \[23\]"):
        prepare_synthia.main([])
