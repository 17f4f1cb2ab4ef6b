"""Built-in sets in miniature copies of their official layouts: frames, labels, mapper."""

from __future__ import annotations

import layouts
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from layouts import picture, stripes, write_image

from tdos_d2.data import (
    MissingDatasetError,
    TDOSDatasetMapper,
    check_dataset,
    get_dicts,
    read_image,
    read_label,
)
from tdos_d2.data.verify.quick import check_classes
from tdos_d2.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def ids(name: str) -> list[str]:
    return [record["image_id"].rpartition("/")[2] for record in get_dicts(name)]


def first_label(name: str) -> list[int]:
    """Values of the first row of the first frame's label, without repetitions."""
    row = read_label(get_dicts(name)[0]["sem_seg_file_name"], MetadataCatalog.get(name))[0]
    return row[np.r_[True, np.diff(row.astype(int)) != 0]].tolist()


@pytest.mark.parametrize(
    "name, make, protocol, values",
    [
        ("smiyc_anomalytrack_val", layouts.anomalytrack, "anomaly", [0, 1, 255]),
        ("smiyc_obstacletrack_val", layouts.obstacletrack, "obstacle", [0, 1, 255]),
        ("fs_laf_val", layouts.fishyscapes_laf, "obstacle", [0, 1, 255]),
        ("fs_static_v1_val", lambda root: layouts.fishyscapes_static(root, 1), "anomaly",
         [0, 1, 255]),
        ("fs_static_v3_val", lambda root: layouts.fishyscapes_static(root, 3), "anomaly",
         [0, 1, 255]),
        ("laf_test", layouts.lost_and_found, "obstacle", [255, 0, 1]),
        ("road_anomaly", layouts.road_anomaly, "anomaly", [0, 1]),
        ("camvid_ood", layouts.camvid, "anomaly", [0, 255, 1]),
    ],
)  # fmt: skip
def test_ood_sets(root, name, make, protocol, values, cfg):
    make(root)
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.protocol) == ("ood", protocol)
    assert metadata.has_labels
    assert check_dataset(name, training=False) >= 2
    assert first_label(name) == values
    sample = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)(get_dicts(name)[0])
    height, width = layouts.SIZE
    assert sample["image"].shape == (3, height, width)
    assert (sample["height"], sample["width"]) == (height, width)


@pytest.mark.parametrize("track", ["anomalytrack", "obstacletrack"])
def test_hidden_test_splits_have_frames_and_no_labels(root, cfg, track):
    getattr(layouts, track)(root)
    name = f"smiyc_{track}_test"
    assert MetadataCatalog.get(name).has_labels is False
    expected = {
        "anomalytrack": ["airplane0000", "zebra0001"],
        "obstacletrack": [
            "curvy-street_box_1", "darkasphalt2_dog_1", "darkasphalt_bag_3", "paving_ball_2"
        ],
    }[track]  # fmt: skip
    assert ids(name) == expected  # neither validation nor snow nor night
    assert check_dataset(name, training=False) == len(expected)
    record = get_dicts(name)[0]
    assert "sem_seg_file_name" not in record
    mapper = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)
    assert mapper(record)["image"].shape == (3, *layouts.SIZE)


def test_a_download_without_test_frames_lacks_the_test_set_only(root):
    folder = layouts.anomalytrack(root)
    for stem in ("airplane0000", "zebra0001"):
        (folder / "images" / f"{stem}.jpg").unlink()
    assert len(ids("smiyc_anomalytrack_val")) == 3
    with pytest.raises(MissingDatasetError, match="anomalytrack_test.*has none of its images"):
        get_dicts("smiyc_anomalytrack_test")


def test_obstacletrack_leaves_ten_ids_out_by_number_not_by_prefix(root):
    folder = layouts.obstacletrack(root)
    for i in (190, 210):
        write_image(folder / "images" / f"validation_{i}.webp", picture())
        path = folder / "labels_masks" / f"validation_{i}_labels_semantic.png"
        write_image(path, stripes(0))
    kept = {int(i.removeprefix("validation_")) for i in ids("smiyc_obstacletrack_val")}
    assert kept == {*range(1, 41), 190, 210} - {19, *range(21, 30)}


@pytest.mark.parametrize(
    "form, folder",
    [
        ("frames", "RoadAnomaly"),
        ("frames", "RoadAnomaly_jpg"),
        ("frames", "dataset_RoadAnomaly"),
        ("frames", "RoadAnomaly/RoadAnomaly_jpg"),
        ("original", "RoadAnomaly"),
        ("original", "road_anomaly"),
    ],
)
def test_road_anomaly_in_both_forms(root, form, folder):
    path = layouts.road_anomaly(root, folder, form)
    (path / "frame_list.json").unlink(missing_ok=True)
    assert ids("road_anomaly") == ["cow0", "cow1"]
    assert first_label("road_anomaly") == [0, 1]


def test_lost_and_found_without_invalid_frames(root):
    layouts.lost_and_found(root)
    dicts = get_dicts("laf_test")
    assert len(dicts) == 1203 - 17
    invalid = np.array(layouts.laf_ids(1203))[list(layouts.LAF_INVALID)]
    assert not {*ids("laf_test")} & {*invalid}
    metadata = MetadataCatalog.get("laf_test")
    # Only the labels of the invalid frames are all zero in the miniature.
    assert all((read_label(d["sem_seg_file_name"], metadata) != 255).any() for d in dicts[::60])


def test_lost_and_found_without_known_objects(root):
    layouts.lost_and_found(root)
    known = (
        "15_Rechbergstr_Deckenpfronn",
        "01_Hanns_Klemm_Str_45_000006",
        "01_Hanns_Klemm_Str_45_000007",
        "10_Schlossberg_9_000004",
    )
    expected = [frame for frame in ids("laf_test") if not frame.startswith(known)]
    assert ids("laf_test_noknown") == expected
    assert 0 < len(expected) < 1186
    assert any(f.startswith("01_Hanns_Klemm_Str_45_000008") for f in expected)


def test_lost_and_found_needs_all_frames(root):
    layouts.lost_and_found(root, frames=1202)
    with pytest.raises(UserError, match="'laf_test'.*has 1202 images, not 1203"):
        get_dicts("laf_test")


def test_unlisted_values_are_void_where_the_official_tools_say_so(root):
    folder = layouts.anomalytrack(root)
    write_image(folder / "labels_masks/validation0000_labels_semantic.png", stripes(0, 7, 1))
    assert first_label("smiyc_anomalytrack_val") == [0, 255, 1]
    folder = layouts.camvid(root)
    write_image(folder / "testannot_ood/0001TP_0.png", stripes(0, 13))
    with pytest.raises(UserError, match=r"0001TP_0\.png.*'camvid_ood'.*13"):
        check_dataset("camvid_ood", training=False)


def test_content_of_files_counts_not_their_names(root, cfg):
    folder = layouts.fishyscapes_laf(root)
    record = get_dicts("fs_laf_val")[0]
    write_image(folder / "images" / f"{record['image_id']}.png", picture(5), "JPEG")
    record = get_dicts("fs_laf_val")[0]
    image = TDOSDatasetMapper(cfg, is_train=False)(record)["image"]
    assert np.array_equal(image.numpy().transpose(1, 2, 0), read_image(record["file_name"]))


def test_missing_label_and_missing_preparation_are_named(root):
    folder = layouts.obstacletrack(root)
    (folder / "labels_masks/validation_12_labels_semantic.png").unlink()
    with pytest.raises(UserError, match="1 of 30 images have no label.*validation_12.webp"):
        get_dicts("smiyc_obstacletrack_val")
    layouts.fishyscapes_static(root, prepared=False)
    with pytest.raises(MissingDatasetError, match=r"fs_static_v2.*prepare_fs_static\.py"):
        get_dicts("fs_static_val")
    layouts.fishyscapes_static(root)
    assert ids("fs_static_val") == ids("fs_static_v2_val")


@pytest.mark.parametrize("folder", ["POC_CS_COCO_RECONSTRUCTED", "NEW_POC_CS_COCO_RECONSTRUCTED"])
def test_poc_objects_are_ood_and_trains_are_trains(root, cfg, folder):
    layouts.poc(root, folder)
    name = "poc_cityscapes_coco_train"
    metadata = MetadataCatalog.get(name)
    labels = [read_label(d["sem_seg_file_name"], metadata) for d in get_dicts(name)]
    rows = [np.unique(label).tolist() for label in labels]
    assert rows == [[0, 10, 19, 255], [0, 10, 16, 255], [0, 10, 13, 255]]
    assert check_dataset(name, training=True) == 3
    cfg.DATASETS.TRAIN = (name,)
    check_classes(cfg)
    cfg.INPUT.OOD_PASTE.SOURCE = "none"
    cfg.INPUT.CROP.SIZE = [16, 16]
    sample = TDOSDatasetMapper(cfg, is_train=True)({**get_dicts(name)[0], "position": 0})
    assert sample["sem_seg"].shape == (16, 16)
    assert {*sample["sem_seg"].unique().tolist()} <= {0, 10, 19, 255}


def test_poc_has_the_classes_of_cityscapes_and_colours(root):
    cityscapes = MetadataCatalog.get("cityscapes_fine_sem_seg_train")
    poc = MetadataCatalog.get("poc_cityscapes_coco_train")
    assert poc.stuff_classes == cityscapes.stuff_classes
    assert poc.stuff_classes[16] == "train" and tuple(poc.stuff_colors[16]) == (0, 80, 100)


def test_cityscapes_and_camvid(root):
    folder = layouts.cityscapes(root)
    dicts = load_cityscapes_semantic(
        str(folder / "leftImg8bit/train"), str(folder / "gtFine/train")
    )
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_train")
    label = read_label(dicts[0]["sem_seg_file_name"], metadata)
    assert len(dicts) == 3 and np.unique(label).tolist() == [0, 1, 13, 255]
    layouts.camvid(root)
    for split in ("train", "val", "test"):
        assert check_dataset(f"camvid_{split}", training=True) == 2
    # A closed set has no label K unless its metadata say so.
    write_image(root / "CamVid/trainannot/0001TP_0.png", stripes(0, 12))
    with pytest.raises(UserError, match="'camvid_train'.*12"):
        check_dataset("camvid_train", training=True)
