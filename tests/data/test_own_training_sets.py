"""Training sets without code: names, values or colours, lists of frames; OOD masks in colour."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from layouts import picture, write_image
from PIL import Image

from tdos_d2.data import (
    TDOSDatasetMapper,
    check_classes,
    check_dataset,
    class_names,
    read_label,
    register_from_file,
    register_segmentation_dataset,
)
from tdos_d2.data.class_statistics import class_statistics
from tdos_d2.data.verify.report import verify_dataset
from tdos_d2.errors import UserError

ROAD, CAR, SKY, VOID, OUTLIER = (128, 64, 128), (0, 0, 142), (70, 130, 180), (0, 0, 0), (255, 0, 1)


def in_stripes(*values, size=(24, 32)) -> np.ndarray:
    """A mask with a vertical stripe per value or colour."""
    columns = np.arange(size[1]) * len(values) // size[1]
    return np.array(values, np.uint8)[np.broadcast_to(columns, size)]


@pytest.fixture
def register(tmp_path):
    """Writes two frames with the masks given, and a registration file of one set."""

    def call(*masks: np.ndarray, **entry) -> str:
        for i, mask in enumerate(masks):
            write_image(tmp_path / "images" / "town" / f"{i}.jpg", picture(i))
            write_image(tmp_path / "masks" / "town" / f"{i}.png", mask)
        entry = {"name": "my_town", "image_root": "images", "label_root": "masks", **entry}
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump([entry], sort_keys=False))
        return register_from_file(tmp_path / "sets.yaml")[0]

    yield call
    if "my_town" in DatasetCatalog:
        DatasetCatalog.remove("my_town")
        MetadataCatalog.remove("my_town")


def labels(name: str) -> list[np.ndarray]:
    metadata = MetadataCatalog.get(name)
    return [read_label(r["sem_seg_file_name"], metadata) for r in DatasetCatalog.get(name)]


def test_classes_by_name_number_and_several_numbers(register):
    name = register(in_stripes(0, 2, 255), classes=["road", "car", "sky"])
    assert np.array_equal(labels(name)[0], in_stripes(0, 2, 255))
    assert MetadataCatalog.get(name).stuff_classes == ["road", "car", "sky"]
    report = verify_dataset(name, jobs=1)
    assert report.problems == [] and report.roles == {0: "known", 2: "known", 255: "void"}


def test_values_that_are_not_train_ids(register):
    name = register(
        in_stripes(7, 26, 27, 0, 99),
        in_stripes(7, 1, 7),
        classes={"road": 7, "car": [26, 27]}, ignore_values=[0], ood_values=[99],
    )  # fmt: skip
    first, *_ = masks = [r["sem_seg_file_name"] for r in DatasetCatalog.get(name)]
    metadata = MetadataCatalog.get(name)
    assert np.array_equal(read_label(first, metadata), in_stripes(0, 1, 1, 255, 2))
    with pytest.raises(UserError, match=r"1\.png has values .* 'my_town' does not declare: 1$"):
        read_label(masks[1], metadata)  # 1 is no train id here
    report = verify_dataset(name, jobs=1)
    assert report.roles[99] == "OOD" and report.roles[1] == "undeclared" and report.problems


@pytest.mark.parametrize(
    ("entry", "label"),
    [({"classes": {"other": 0, "road": 255}}, 1), ({"classes": ["known"], "ood_values": [255]}, 1)],
)
def test_binary_masks_of_0_and_255(register, entry, label):
    """A declared 255 is no void, neither for training nor for verify."""
    name = register(in_stripes(0, 255), ignore_values=[], **entry)
    assert np.array_equal(labels(name)[0], in_stripes(0, label))
    report = verify_dataset(name, jobs=1)
    assert report.roles[255] == ("OOD" if "ood_values" in entry else "known")
    assert report.problems == []


def test_colours(register, tmp_path, tiny_cfg):
    """In PNG files with and without a palette, and with transparency."""
    name = register(
        in_stripes(ROAD, CAR, SKY, VOID, OUTLIER),
        in_stripes(SKY, ROAD, SKY),
        colours={"road": list(ROAD), "vehicle": ["#00008e", [1, 2, 3]], "sky": "#4682B4"},
        ignore_colours=[list(VOID)], ood_colours=[list(OUTLIER)],
    )  # fmt: skip
    expected = [in_stripes(0, 1, 2, 255, 3), in_stripes(2, 0, 2)]
    assert all(map(np.array_equal, labels(name), expected))
    mask = Image.fromarray(in_stripes(SKY, ROAD, SKY))
    for other in (mask.quantize(8), mask.convert("RGBA")):
        other.save(tmp_path / "masks" / "town" / "1.png")
        assert np.array_equal(labels(name)[1], expected[1])
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_colors == [ROAD, CAR, SKY]
    report = verify_dataset(name, jobs=1)
    assert report.problems == [] and report.without_anomaly == 1
    pixels = {0: np.sum(expected[0] == 0) + np.sum(expected[1] == 0)}
    assert report.values[0] == pixels[0] and report.roles[3] == "OOD"
    assert check_dataset(name, training=True) == 2
    counts = class_statistics(DatasetCatalog.get(name), metadata, 4)
    assert counts.tolist() == [[np.sum(x == i) for i in range(4)] for x in expected]
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.MODEL.TDOS.CLASS_NAMES = (name,), []
    tiny_cfg.INPUT.CROP.ENABLED, tiny_cfg.INPUT.SCALE_RANGE = False, (1.0, 1.0)
    tiny_cfg.INPUT.RANDOM_FLIP, tiny_cfg.INPUT.OOD_PASTE.PROB = "none", 0.0
    check_classes(tiny_cfg)
    assert class_names(tiny_cfg) == ["road", "vehicle", "sky"]
    mapped = TDOSDatasetMapper(tiny_cfg, is_train=True)(DatasetCatalog.get(name)[0])
    assert np.array_equal(mapped["sem_seg"].numpy(), expected[0])


def test_an_unknown_colour_names_file_and_colour(register):
    name = register(
        in_stripes(ROAD, SKY), in_stripes(ROAD, (9, 8, 7)), colours={"road": ROAD, "sky": SKY}
    )
    message = r"label .*town/1\.png has colours .*'my_town' does not declare: \[9, 8, 7\]"
    with pytest.raises(UserError, match=message):
        labels(name)
    with pytest.raises(UserError, match=message):
        check_dataset(name, training=True)
    (problem,) = verify_dataset(name, jobs=1).problems
    assert "town/1.png" in problem and "[9, 8, 7]" in problem


@pytest.mark.parametrize("undeclared", ["error", "ignore"])
def test_ood_masks_in_colour(register, undeclared):
    name = register(
        in_stripes(ROAD, CAR, OUTLIER, (9, 8, 7)),
        id_colours=[list(ROAD), "#00008e"], ood_colours=[list(OUTLIER)], undeclared=undeclared,
    )  # fmt: skip
    assert MetadataCatalog.get(name).evaluator_type == "ood"
    if undeclared == "error":
        with pytest.raises(UserError, match=r"does not declare: \[9, 8, 7\]"):
            labels(name)
        return
    assert np.array_equal(labels(name)[0], in_stripes(0, 0, 1, 255))
    assert verify_dataset(name, jobs=1).roles == {0: "known", 1: "OOD", 255: "void"}


def test_lists_of_frames(register, tmp_path):
    """Train and validation frames may lie in one folder."""
    masks = [in_stripes(0, 1)] * 3
    (tmp_path / "val.txt").write_text("town/2.jpg\n\n town/0 \n")
    name = register(*masks, classes=["road", "car"], image_list="val.txt")
    assert [r["image_id"] for r in DatasetCatalog.get(name)] == ["town/0", "town/2"]
    assert verify_dataset(name, jobs=1).problems == []
    for text, message in (
        ("town/7.jpg\n", "no image town/7.jpg in .*images"),
        ("\n", "it names no image"),
        (None, "No such file"),
    ):
        path = tmp_path / "val.txt"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(UserError, match=rf"dataset 'my_town', list .*val\.txt: {message}"):
            DatasetCatalog.get(name)


def test_lists_may_leave_out_the_extension_of_images_with_a_suffix(register, tmp_path):
    name = register(in_stripes(0, 1), classes=["road", "car"], image_list="val.txt",
                    image_suffix="_rgb")  # fmt: skip
    image = tmp_path / "images" / "town" / "0.jpg"
    image.rename(image.with_name("0_rgb.jpg"))
    for line in ("town/0", "town/0_rgb", "town/0_rgb.jpg"):
        (tmp_path / "val.txt").write_text(f"{line}\n")
        assert [r["image_id"] for r in DatasetCatalog.get(name)] == ["town/0"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"classes": []}, "classes .or colours. must name the known classes"),
        ({"classes": "road"}, "classes must be a list or a mapping, got 'road'"),
        ({"classes": ["road", "road"]}, "a class name is given twice"),
        ({"classes": [1, 2]}, "class names must be texts"),
        ({"classes": {"road": 0, "car": [0]}}, "the label value 0 is declared twice"),
        ({"classes": {"road": 0, "car": []}}, "whole numbers in 0..255, at least one each"),
        ({"classes": {"road": 300}}, "whole numbers in 0..255"),
        ({"classes": {"car": 1, "road": None}}, "class 'road': a whole number .* list .* not None"),
        ({"classes": {"road": True}}, "class 'road': a whole number in 0..255 .* not True"),
        ({"classes": {"road": 0.0}}, "class 'road': a whole number in 0..255 .* not 0.0"),
        ({"classes": {"road": "0"}}, "class 'road': a whole number in 0..255 .* not '0'"),
        ({"classes": {"road": {0: 1}}}, "class 'road': a whole number .* not {0: 1}"),
        ({"classes": ["road"], "ood_values": [0]}, "the label value 0 is declared twice"),
        ({"classes": {"road": 0}, "colours": {"road": [1, 2, 3]}}, "values .* or colours, not"),
        ({"classes": ["road", "sky"], "colours": {"road": [1, 2, 3]}}, "must name the classes"),
        ({"colours": {"road": [1, 2]}}, r"class 'road': a colour is \[r, g, b\]"),
        ({"colours": {"road": "#12345"}}, "a colour is .* not '#12345'"),
        ({"colours": {"road": [1, 2, 256]}}, "a colour is"),
        ({"colours": {"road": [1, 2, 3], "sky": "#010203"}}, r"\[1, 2, 3\] is declared twice"),
        ({"classes": ["road"], "ignore_colours": [[0, 0, 0]]}, "need colours"),
        ({"colours": {"road": [1, 2, 3]}, "ood_values": [3]}, "with colours, .* not values"),
        (
            {"id_colours": [[0, 0, 0]], "ood_colours": [[1, 2, 3]], "ood_values": [3]},
            "values or colours, not both",
        ),
        ({"classes": ["road"], "protocol": "anomaly"}, "unknown key 'protocol'"),
        ({"ood_colours": [[1, 2, 3]]}, "masks in colour need id_colours and ood_colours"),
        ({"ood_colours": [1, 2, 3], "id_colours": [[0, 0, 0], 7]}, "a colour is"),
    ],
)
def test_wrong_entries(register, entry, message):
    with pytest.raises(UserError, match=f"sets.yaml: dataset 'my_town'.*{message}"):
        register(**entry)


@pytest.mark.parametrize("colours", [None, {"road": [1, 2, 3]}])
@pytest.mark.parametrize("classes", ["road", 3])
def test_classes_in_python_are_a_list_or_a_mapping(classes, colours):
    with pytest.raises(UserError, match=f"'my_town': classes must be a list .*, not {classes!r}"):
        register_segmentation_dataset("my_town", "images", "masks", classes, colours=colours)
    assert "my_town" not in DatasetCatalog
