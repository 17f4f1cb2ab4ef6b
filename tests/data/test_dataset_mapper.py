"""What comes out of the mapper: image and label aligned, sizes, labels, randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T

from tdos_d2.data import TDOSDatasetMapper, get_dicts, register_ood_dataset
from tdos_d2.data.augmentation import ResizedCrop, build_train_augmentations
from tdos_d2.errors import UserError


def records(cfg, positions=range(12)):
    dicts = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    return [{**dicts[p % len(dicts)], "position": p} for p in positions]


def plain(cfg):
    """No colours, no outliers: the image tells the label."""
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.OOD_PASTE.SOURCE = "none"
    return cfg


def agreement(sample):
    """Share of the pixels in the image that have the colour of their label."""
    inside = sample["sem_seg"] != 255
    colour = sample["sem_seg"] * 60 + 20
    return ((sample["image"][0] - colour).abs() < 20)[inside].float().mean()


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_image_and_label_stay_aligned(cfg, flip):
    plain(cfg).INPUT.RANDOM_FLIP = flip
    mapper = TDOSDatasetMapper(cfg, is_train=True)
    for record in records(cfg):
        sample = mapper(record)
        assert sample["image"].shape == (3, 32, 48) and sample["image"].dtype == torch.uint8
        assert sample["sem_seg"].shape == (32, 48) and sample["sem_seg"].dtype == torch.int64
        # Between classes the colours blend, and blocks have 2 to 8 pixels after the resizing.
        assert agreement(sample) > 0.6
        assert agreement({**sample, "image": sample["image"].flip(1)}) < 0.6


def test_flip_happens_half_of_the_time_and_only_when_asked_for(cfg):
    plain(cfg).INPUT.CROP.ENABLED = False
    cfg.INPUT.SCALE_RANGE = (1.0, 1.0)

    def images(flip):
        cfg.INPUT.RANDOM_FLIP = flip
        mapper = TDOSDatasetMapper(cfg, is_train=True)
        return [mapper({**records(cfg)[0], "position": p})["image"] for p in range(40)]

    before = images("none")[0]
    assert all(torch.equal(image, before) for image in images("none"))
    for flip, axis in (("horizontal", 2), ("vertical", 1)):
        flipped = [torch.equal(image, before.flip(axis)) for image in images(flip)]
        kept = [torch.equal(image, before) for image in images(flip)]
        assert 8 < sum(flipped) < 32 and sum(flipped) + sum(kept) == 40


def test_small_images_are_padded_with_the_mean_and_255(cfg):
    plain(cfg).INPUT.SCALE_RANGE = (0.5, 0.5)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.MODEL.PIXEL_MEAN = [10.4, 20.0, 30.0]
    sample = TDOSDatasetMapper(cfg, is_train=True)(records(cfg)[0])  # 40x60 becomes 20x30
    assert sample["image"].shape == (3, 32, 48)
    assert (sample["sem_seg"][:20, :30] != 255).all()
    assert (sample["sem_seg"][20:] == 255).all() and (sample["sem_seg"][:, 30:] == 255).all()
    assert sample["image"][:, 31, 0].tolist() == [10, 20, 30] == sample["image"][:, 0, 47].tolist()
    assert (sample["height"], sample["width"]) == (40, 60)


def test_scale_range(cfg):
    plain(cfg).INPUT.CROP.ENABLED = False
    mapper = TDOSDatasetMapper(cfg, is_train=True)
    factors = [mapper(r)["image"].shape[2] / 60 for r in records(cfg, range(0, 200, 5))]
    assert 0.5 <= min(factors) < 0.7 and 1.8 < max(factors) <= 2.0


def test_crops_avoid_single_classes(tmp_path, write):
    """Nine tenths of the frame are one class: only crops at its right edge are mixed enough."""
    label = np.zeros((40, 400), np.uint8)
    label[:, 360:] = 1
    image = np.zeros((40, 400, 3), np.uint8)
    crop = ("absolute", (40, 40))
    shares = {}
    for limit in (0.75, 1.0):
        augmentations = build_train_augmentations(
            scale_range=(1, 1),
            crop=crop,
            single_category_max_area=limit,
            flip="none",
        )
        mapper = TDOSDatasetMapper(
            is_train=True,
            augmentations=augmentations,
            image_format="RGB",
            metadata={"wide": MetadataCatalog.get("wide").set(stuff_classes=["a", "b"])},
        )
        record = {
            "file_name": str(write(tmp_path / "a.png", image)),
            "sem_seg_file_name": str(write(tmp_path / "a_gt.png", label)),
        }
        labels = [mapper({**record, "position": p})["sem_seg"] for p in range(60)]
        shares[limit] = np.mean([0.25 < (x == 0).float().mean() < 0.75 for x in labels])
    assert shares[1.0] < 0.2 and shares[0.75] > 2 * shares[1.0]


@pytest.mark.parametrize("new_size", [(30, 50), (61, 83), (90, 201)])
@pytest.mark.parametrize("place", [(0, 0), (3, 7), "end"])
def test_a_crop_of_a_resized_image_is_made_in_one_step(new_size, place):
    """Pixels are those of Detectron2's two transforms, labels and points too."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)
    label = rng.integers(0, 5, (60, 100), dtype=np.uint8)
    height, width = 20, 31
    y, x = (new_size[0] - height, new_size[1] - width) if place == "end" else place
    both = T.ResizeTransform(60, 100, *new_size), T.CropTransform(x, y, width, height)
    expected = T.TransformList(both)
    ours = ResizedCrop(*both)
    difference = expected.apply_image(image).astype(int) - ours.apply_image(image)
    assert difference.shape == (height, width, 3)
    assert np.abs(difference).max() <= 1  # of noise: half a pixel beside would be 100
    assert np.array_equal(
        expected.apply_segmentation(label.copy()), ours.apply_segmentation(label.copy())
    )
    points = rng.uniform(0, 60, (4, 2))
    assert np.allclose(expected.apply_coords(points.copy()), ours.apply_coords(points.copy()))


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colour_distortion_leaves_the_geometry(cfg, image_format):
    cfg.INPUT.OOD_PASTE.SOURCE = "none"
    cfg.INPUT.FORMAT = image_format
    distorted = [TDOSDatasetMapper(cfg, is_train=True)(r) for r in records(cfg)]
    plain(cfg)
    clean = [TDOSDatasetMapper(cfg, is_train=True)(r) for r in records(cfg)]
    for one, other in zip(distorted, clean, strict=True):
        assert torch.equal(one["sem_seg"], other["sem_seg"])
    pairs = zip(distorted, clean, strict=True)
    assert sum(not torch.equal(a["image"], b["image"]) for a, b in pairs) > 6


def test_a_pasted_object_is_distorted_with_its_surroundings(cfg):
    """Pasted in a colour that the frame has: after the distortion both are equal again."""
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.SCALE_RANGE = (1.0, 1.0)  # resizing would blend the colours of the frame
    mapper = TDOSDatasetMapper(cfg, is_train=True)

    def paste(image, label, rng, rows):
        image, label = image.copy(), label.copy()
        assert set(np.unique(image)) <= {20, 80, 140}  # what is pasted onto is not distorted yet
        image[:8, :8], label[:8, :8] = 80, 3
        return image, label

    mapper.ood_paste = paste
    changed = 0
    for record in records(cfg):
        sample = mapper(record)
        pasted = sample["image"][:, sample["sem_seg"] == 3].unique(dim=1)
        assert torch.equal(pasted, sample["image"][:, sample["sem_seg"] == 1].unique(dim=1))
        changed += pasted.tolist() != [[80]] * 3
    assert changed > 6


def test_pasted_outliers_have_label_k(cfg):
    cfg.INPUT.OOD_PASTE.PROB = 1.0
    labels = [TDOSDatasetMapper(cfg, is_train=True)(r)["sem_seg"] for r in records(cfg)]
    assert set(torch.cat(labels).unique().tolist()) <= {0, 1, 2, 3, 255}
    assert sum((label == 3).any().item() for label in labels) > 8
    cfg.INPUT.OOD_PASTE.SOURCE = "none"
    labels = [TDOSDatasetMapper(cfg, is_train=True)(r)["sem_seg"] for r in records(cfg)]
    assert not (torch.stack(labels) == 3).any()


def test_class_names_of_the_config_decide_k(cfg):
    cfg.INPUT.OOD_PASTE.PROB = 1.0
    cfg.MODEL.TDOS.CLASS_NAMES = ["street", "automobile", "clouds"]
    assert TDOSDatasetMapper(cfg, is_train=True).ood_paste.ood_label == 3
    cfg.MODEL.TDOS.CLASS_NAMES = []
    assert TDOSDatasetMapper(cfg, is_train=True).ood_paste.ood_label == 3


def test_samples_depend_on_seed_and_position_only(cfg):
    def images(positions, seed=7):
        cfg.SEED = seed
        mapper = TDOSDatasetMapper(cfg, is_train=True)
        return {p: mapper({**records(cfg, [0])[0], "position": p})["image"] for p in positions}

    forward = images(range(6))
    np.random.seed(99)
    backward = images(reversed(range(6)))
    assert all(torch.equal(forward[p], backward[p]) for p in range(6))
    assert len({tuple(image.flatten().tolist()) for image in forward.values()}) == 6
    assert not torch.equal(images([0], seed=8)[0], forward[0])


def test_labels_are_read_as_their_own_set_says(cfg, closed_set):
    other = closed_set("mini_other", ignore_values=(2,))
    cfg.DATASETS.TRAIN = (cfg.DATASETS.TRAIN[0], other)
    mapper = TDOSDatasetMapper(plain(cfg), is_train=True)
    record = DatasetCatalog.get(other)[0]
    labels = mapper({**record, "position": 0, "dataset_name": other})["sem_seg"]
    assert 2 not in labels and 255 in labels
    first = {"position": 0, "dataset_name": cfg.DATASETS.TRAIN[0]}
    assert 2 in mapper({**record, **first})["sem_seg"]
    with pytest.raises(UserError, match="has no dataset_name, .* DATASETS.TRAIN has several sets"):
        mapper({**record, "position": 0})  # from Detectron2's build_detection_train_loader


def test_test_mapper_reads_no_label_and_keeps_the_size(cfg, tmp_path, write):
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    mapper = TDOSDatasetMapper(cfg, is_train=False)
    sample = mapper({"file_name": str(write(tmp_path / "a.png", image)), "image_id": "a"})
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
    assert (sample["height"], sample["width"], sample["image_id"]) == (30, 50, "a")
    assert "sem_seg" not in sample
    cfg.INPUT.FORMAT = "BGR"
    sample = TDOSDatasetMapper(cfg, is_train=False)({"file_name": str(tmp_path / "a.png")})
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image[..., ::-1])


def test_test_sizes(cfg, tmp_path, write):
    write(tmp_path / "images" / "a.png", np.zeros((30, 50, 3), np.uint8))
    write(tmp_path / "labels" / "a.png", np.zeros((30, 50), np.uint8))
    register_ood_dataset("sized", tmp_path / "images", tmp_path / "labels", test_size=(64, 32))
    register_ood_dataset("free", tmp_path / "images", tmp_path / "labels")
    cfg.INPUT.MIN_SIZE_TEST = 60

    def shape(name):
        sample = TDOSDatasetMapper(cfg, is_train=False, dataset_name=name)(get_dicts(name)[0])
        assert (sample["height"], sample["width"]) == (30, 50)
        return tuple(sample["image"].shape[1:])

    assert shape("sized") == (32, 64)
    assert shape("free") == (60, 100)
    cfg.INPUT.MAX_SIZE_TEST = 80
    line = write(tmp_path / "line.png", np.zeros((1, 500, 3), np.uint8))
    with pytest.raises(UserError, match="500x1 is too narrow.*INPUT.MAX_SIZE_TEST"):
        TDOSDatasetMapper(cfg, is_train=False)({"file_name": str(line)})


def test_files_that_do_not_fit_are_named(cfg, tmp_path, write):
    mapper = TDOSDatasetMapper(cfg, is_train=True)
    record = records(cfg)[0]
    with pytest.raises(UserError, match=r"0\.png"):
        mapper({**record, "height": 7, "width": 7})
    small = write(tmp_path / "small.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(UserError, match=r"small\.png is 6x5, but .*0\.png is 60x40"):
        mapper({**record, "sem_seg_file_name": str(small)})
    wrong = write(tmp_path / "wrong.png", np.full((40, 60), 3, np.uint8))
    with pytest.raises(UserError, match=r"wrong\.png.*mini_train.*3"):
        mapper({**record, "sem_seg_file_name": str(wrong)})


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.FORMAT", "L"),
        ("INPUT.RANDOM_FLIP", "both"),
        ("INPUT.OOD_PASTE.SOURCE", "unicorns"),
        ("INPUT.OOD_PASTE.PROB", 1.5),
        ("INPUT.OOD_PASTE.SHADOW", 1.5),
    ],
)
def test_wrong_config_keys_are_named(cfg, key, value):
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=key.rsplit(".", 1)[0]):
        TDOSDatasetMapper(cfg, is_train=True)


@pytest.mark.parametrize("kind", ["absolute_range", "absolute", "relative", "relative_range"])
def test_sizes_of_crops_ascend_where_they_are_a_range(cfg, kind):
    plain(cfg).INPUT.CROP.TYPE = kind
    for size in ([0.5, 0.25], [0.25, 0.5]) if "relative" in kind else ([24, 16], [16, 24]):
        cfg.INPUT.CROP.SIZE = size
        if kind == "absolute_range" and size == [24, 16]:
            with pytest.raises(UserError, match=r"CROP.SIZE must be \(smallest, largest\)"):
                TDOSDatasetMapper(cfg, is_train=True)
            continue
        height, width = TDOSDatasetMapper(cfg, is_train=True)(records(cfg)[0])["sem_seg"].shape
        if kind == "absolute_range":
            assert 16 <= min(height, width) <= max(height, width) <= 24
