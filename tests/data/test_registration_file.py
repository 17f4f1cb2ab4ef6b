"""Sets of one's own: from a YAML file, and with region masks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from layouts import picture, stripes, write_image

from tdos_d2.data import (
    MissingDatasetError,
    check_dataset,
    read_label,
    register_from_file,
    register_ood_dataset,
)
from tdos_d2.engine import launch_job, load_config
from tdos_d2.errors import UserError


@pytest.fixture
def folders(tmp_path):
    for stem in ("a", "deep/b"):
        write_image(tmp_path / "images" / f"{stem}_rgb.jpg", picture())
        write_image(tmp_path / "masks" / f"{stem}_gt.png", stripes(0, 5, 255))
    return tmp_path


def write_yaml(folder, content) -> str:
    path = folder / "my_sets.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


SET = {
    "name": "my_road",
    "image_root": "images",
    "label_root": "masks",
    "image_suffix": "_rgb",
    "label_suffix": "_gt.png",
    "ood_values": [5],
    "protocol": "obstacle",
    "min_gt": 3,
    "test_size": [64, 32],
}


def test_sets_of_a_file_are_like_those_registered_in_python(folders):
    path = write_yaml(folders, [SET])
    assert register_from_file(path) == ["my_road"]
    dicts, metadata = DatasetCatalog.get("my_road"), MetadataCatalog.get("my_road")
    assert [d["image_id"] for d in dicts] == ["a", "deep/b"]
    assert (metadata.protocol, metadata.min_gt, metadata.test_size) == ("obstacle", 3, (64, 32))
    label = read_label(dicts[0]["sem_seg_file_name"], metadata)
    assert np.unique(label).tolist() == [0, 1, 255]
    assert register_from_file(path) == ["my_road"]  # processes read it again
    write_yaml(folders, [{**SET, "min_gt": 4}])
    with pytest.raises(UserError, match=r"my_sets\.yaml.*'my_road' is already registered"):
        register_from_file(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ([{**SET, "ood_value": [1]}], "'my_road': unknown key 'ood_value', did you mean ood_value"),
        ([{**SET, "zebra": 1}], "unknown key 'zebra', there are name, image_root"),
        ([{"name": "x", "label_root": "y"}], "'x': 'image_root' is missing"),
        ([{**SET, "ood_values": 1}], r"ood_values must be a list of integers, got 1"),
        ([{**SET, "ood_values": [True]}], r"ood_values must be a list of integers"),
        ([{**SET, "min_pred": "9"}], "min_pred must be an integer, got '9'"),
        ([{**SET, "class_values": [0]}], r"class_values must be a mapping, got \[0\]"),
        ([{**SET, "class_values": {77: 0}}], "class_values has a value that is not in id_values"),
        ([{**SET, "class_values": {0: 255}}], "class_values must give classes in 0..254"),
        ([{**SET, "protocol": "pixels"}], "'my_road': protocol must be one of"),
        ([{**SET, "name": 3}], "name must be a text, got 3"),
        ([{**SET, "name": "<script>x</script>"}], "the name may have letters"),
        ([{**SET, "name": "../x"}], "the name may have letters"),
        ("- !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constr"),
        ("- &a [*a]", "not valid YAML: its aliases repeat"),
        ("- {ood_values: [1], ood_values: [2]}", "the key 'ood_values' of line 1 is repeated"),
        (["my_road"], "dataset 1 is not a mapping"),
        ({"name": "x"}, "a list of datasets is expected"),
        ("[unclosed", "not valid YAML"),
    ],
)
def test_wrong_files_are_said_in_one_line(tmp_path, content, message):
    path = write_yaml(tmp_path, content)
    with pytest.raises(UserError, match=rf"my_sets\.yaml: .*{message}") as error:
        register_from_file(path)
    assert "\n" not in str(error.value)
    assert "my_road" not in DatasetCatalog


def test_config_key(folders):
    path = write_yaml(folders, [SET])
    load_config(opts=["DATASETS.REGISTER", path])
    assert len(DatasetCatalog.get("my_road")) == 2
    with pytest.raises(UserError, match=r"DATASETS\.REGISTER: cannot read .*no\.yaml"):
        load_config(opts=["DATASETS.REGISTER", str(folders / "no.yaml")])


def test_every_process_registers(folders):
    cfg = load_config(opts=["DATASETS.REGISTER", write_yaml(folders, [SET])])
    DatasetCatalog.remove("my_road")  # as in a process that has just been started
    MetadataCatalog.remove("my_road")
    seen = []
    args = default_argument_parser().parse_args([])
    launch_job(lambda args, cfg: seen.extend(DatasetCatalog.get("my_road")), args, cfg)
    assert len(seen) == 2


def test_examples_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    listed, training = re.findall(r"```yaml[^\n]*\n(.*?)```", text, re.DOTALL)
    assert register_from_file(write_yaml(tmp_path, listed)) == ["my_road"]
    towns = register_from_file(write_yaml(tmp_path, training))
    classes = [MetadataCatalog.get(name).stuff_classes for name in towns]
    assert classes == [["road", "car", "sky"]] * 3
    for name in ("my_road", *towns):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    in_python, closed = re.findall(r"```python[^\n]*\n(.*?)```", text, re.DOTALL)
    exec(in_python, {})
    assert MetadataCatalog.get("my_road").protocol == "obstacle"
    exec(closed, {})
    assert len(DatasetCatalog.get("my_town_train")) == 1


@pytest.mark.parametrize("per_frame", [False, True])
def test_region_masks_are_void(folders, per_frame):
    mask = stripes(0, 0, 0, 0, 0, 1)  # the right sixth: half of the label's 255
    mask[:2] = 200
    place = "ego" if per_frame else "ego.png"
    for file in ("ego/a.png", "ego/deep/b.png") if per_frame else ("ego.png",):
        write_image(folders / file, mask)
    register_from_file(write_yaml(folders, [{**SET, "region_mask": place}]))
    metadata = MetadataCatalog.get("my_road")
    for record in DatasetCatalog.get("my_road"):
        path = record["sem_seg_file_name"]
        plain = read_label(path, metadata)
        label = read_label(path, metadata, record["region_mask_file_name"])
        assert (label[:2] == 255).all()
        assert np.array_equal(label[2:], plain[2:])
        assert (plain[0] == 1).any()


def test_wrong_region_masks_are_named(folders, write):
    options = {"image_suffix": "_rgb", "label_suffix": "_gt.png", "ood_values": (5,)}
    places = folders / "images", folders / "masks"
    register_ood_dataset("nowhere", *places, region_mask=folders / "sky.png", **options)
    with pytest.raises(MissingDatasetError, match=r"'nowhere': no region mask .*sky\.png"):
        DatasetCatalog.get("nowhere")
    write(folders / "sky/a.png", stripes(0))
    register_ood_dataset("half", *places, region_mask=folders / "sky", **options)
    with pytest.raises(UserError, match=r"'half': no region mask .*deep/b\.png"):
        DatasetCatalog.get("half")
    write(folders / "small.png", stripes(0, size=(2, 3)))
    register_ood_dataset("small", *places, region_mask=folders / "small.png", **options)
    with pytest.raises(UserError, match=r"region mask .*small\.png is 3x2, but label .* is 32x24"):
        check_dataset("small", training=False)


def test_instance_masks(folders):
    for stem in ("a", "deep/b"):
        write_image(folders / f"ids/{stem}_ids.png", stripes(0, 7, 0))
    places = {"instance_root": "ids", "instance_suffix": "_ids.png"}
    register_from_file(write_yaml(folders, [{**SET, **places}]))
    found = [record["instance_file_name"] for record in DatasetCatalog.get("my_road")]
    assert found == [str(folders / f"ids/{stem}_ids.png") for stem in ("a", "deep/b")]
    assert check_dataset("my_road", training=False) == 2
    write_image(folders / "ids/a_ids.png", stripes(0, 7, size=(2, 3)))
    message = r"instance mask .*a_ids\.png is 3x2, but label .*a_gt\.png is 32x24"
    with pytest.raises(UserError, match=message):
        check_dataset("my_road", training=False)
    (folders / "ids/deep/b_ids.png").unlink()
    with pytest.raises(UserError, match=r"'my_road': no instance mask .*deep/b_ids\.png"):
        DatasetCatalog.get("my_road")
    (folders / "ids").rename(folders / "elsewhere")
    with pytest.raises(UserError, match="'my_road': no folder .*ids with instance masks"):
        DatasetCatalog.get("my_road")
