"""Miniature copies of the official layouts of datasets, a few tiny frames each.

Every builder takes the folder that ``$DETECTRON2_DATASETS`` would name and returns that of the set.
Where a set has OOD labels, the first frame has all its values and the second is void only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # H, W

# Frames of Lost and Found's test split without a valid label, by their place in the sorted list,
# as in the benchmark's tool.
LAF_INVALID = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
LAF_SCENES = {  # number of sequences of each
    "02_Hanns_Klemm_Str_44": 2,
    "01_Hanns_Klemm_Str_45": 9,
    "10_Schlossberg_9": 5,
    "15_Rechbergstr_Deckenpfronn": 2,
}


def write_image(path: Path, array: np.ndarray, format: str | None = None) -> Path:
    """Write an array as image file, of another format than the name says on demand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(array).save(path, format=format, **options)
    return path


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 of random colours."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def stripes(*values: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8 label map: one vertical stripe per value, all equally wide."""
    columns = np.arange(size[1]) * len(values) // size[1]
    return np.tile(np.array(values, np.uint8)[columns], (size[0], 1))


def _labels(values: Sequence[int], void: int) -> list[np.ndarray]:
    """A frame with all values, one that is void only, one that is known only."""
    return [stripes(*values), stripes(void), stripes(values[0])]


def _link(source: Path, target: Path) -> None:
    """A further frame at no cost."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(source)


def anomalytrack(root: Path) -> Path:
    """SMIYC RoadAnomaly21: three validation frames, two test frames without labels."""
    folder = root / "dataset_AnomalyTrack"
    for i, label in enumerate(_labels((0, 1, 255), 255)):
        write_image(folder / "images" / f"validation000{i}.jpg", picture(i))
        masks = folder / "labels_masks"
        write_image(masks / f"validation000{i}_labels_semantic.png", label)
        write_image(masks / f"validation000{i}_labels_semantic_color.png", picture(i))
    for stem in ("airplane0000", "zebra0001"):
        write_image(folder / "images" / f"{stem}.jpg", picture(9))
    return folder


def obstacletrack(root: Path) -> Path:
    """SMIYC RoadObstacle21: validation_1 to _40, frames of four test and three further scenes."""
    folder = root / "dataset_ObstacleTrack"
    images, masks = folder / "images", folder / "labels_masks"
    labels = _labels((0, 1, 255), 255)
    for i in range(1, 41):
        label = masks / f"validation_{i}_labels_semantic.png"
        if i <= 3:
            image = write_image(images / f"validation_{i}.webp", picture(i))
            write_image(label, labels[i - 1])
        else:
            _link(image, images / f"validation_{i}.webp")
            _link(masks / "validation_3_labels_semantic.png", label)
    for stem in ("curvy-street_box_1", "darkasphalt_bag_3", "darkasphalt2_dog_1", "paving_ball_2"):
        _link(image, images / f"{stem}.webp")
    for stem in ("snowstorm1_00_1", "snowstorm2_00_2", "driveway_132_r_14"):
        _link(image, images / f"{stem}.webp")
    return folder


def road_anomaly(root: Path, folder: str = "RoadAnomaly_jpg", form: str = "frames") -> Path:
    """Road Anomaly as EPFL has it ("frames") or as folders of images and 0/1 masks ("original")."""
    if form == "original":
        for i, label in enumerate((stripes(0, 1), stripes(0))):
            write_image(root / folder / "original" / f"cow{i}.png", picture(i), "JPEG")
            write_image(root / folder / "labels" / f"cow{i}.png", label)
        return root / folder
    frames = root / folder / "frames"
    for i, label in enumerate((stripes(0, 2, 7), stripes(0))):
        write_image(frames / f"cow{i}.jpg", picture(i))
        write_image(frames / f"cow{i}.labels" / "labels_semantic.png", label)
        write_image(frames / f"cow{i}.labels" / "labels_semantic_color.png", picture(i))
    listed = [f"cow{i}.jpg" for i in range(2)]
    (root / folder / "frame_list.json").write_text(json.dumps(listed))
    return root / folder


def lost_and_found(root: Path, frames: int = 1203, split: str = "test") -> Path:
    """Lost and Found: ``frames`` frames, dealt to the sequences of LAF_SCENES in turn.

    The first has all kinds of label values, those of LAF_INVALID are all zero, the others are free
    road and void.
    """
    folder = root / "dataset_LostAndFound"
    kinds = {"objects": stripes(0, 1, 2, 43, 200), "zero": stripes(0), "road": stripes(1, 0)}
    first: dict[str, Path] = {}
    for i, frame in enumerate(laf_ids(frames)):
        kind = "objects" if i == 0 else "zero" if i in LAF_INVALID else "road"
        for part, end, array in (
            ("leftImg8bit", "leftImg8bit", picture()),
            ("gtCoarse", "gtCoarse_labelIds", kinds[kind]),
        ):
            path = folder / part / split / frame[: -len("_000000_000000")] / f"{frame}_{end}.png"
            key = end if part == "leftImg8bit" else kind
            if key in first:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(first[key])
            else:
                first[key] = write_image(path, array)
    return folder


def laf_ids(frames: int) -> list[str]:
    """Frame ids of :func:`lost_and_found`, sorted."""
    sequences = [f"{scene}_{i:06d}" for scene, n in LAF_SCENES.items() for i in range(n)]
    return sorted(
        f"{sequences[i % len(sequences)]}_{10 * (i // len(sequences)):06d}" for i in range(frames)
    )


def fishyscapes_laf(root: Path, *, prepared: bool = True) -> Path:
    """Fishyscapes Lost & Found as datasets/prepare_fs_laf.py makes it, or what its archive has."""
    folder = root / ("fs_laf" if prepared else "fishyscapes_lostandfound")
    for i, label in enumerate(_labels((0, 1, 255), 255)):
        _fishyscapes_frame(folder, f"{i:04d}_{laf_ids(20)[i]}", label, prepared)
    return folder


def fishyscapes_static(root: Path, version: int = 2, *, prepared: bool = True) -> Path:
    """Fishyscapes Static as datasets/prepare_fs_static.py makes it, or what its archive has."""
    folder = root / (f"fs_static_v{version}" if prepared else f"fs_val_v{version}")
    for i, label in enumerate(_labels((0, 1, 255), 255)):
        stem = f"{i}_{cityscapes_ids('val')[i]}"
        _fishyscapes_frame(folder, stem, label, prepared)
        if not prepared:
            overlay = np.zeros((*SIZE, 3), np.int16)
            overlay[8:16, 4:20] = (-200, 30, 200)
            np.savez(folder / f"{stem}_rgb.npz", rgb=overlay)
    return folder


def _fishyscapes_frame(folder: Path, stem: str, label: np.ndarray, prepared: bool) -> None:
    if prepared:
        write_image(folder / "images" / f"{stem}.png", picture())
        write_image(folder / "labels" / f"{stem}.png", label)
    else:
        write_image(folder / f"{stem}_labels.png", label)


def cityscapes_ids(split: str) -> list[str]:
    """Frame ids of :func:`cityscapes`."""
    first, second = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau")}[split]
    return [f"{first}_000000_000019", f"{first}_000001_000019", f"{second}_000000_000019"]


def cityscapes(root: Path, splits: Sequence[str] = ("train", "val")) -> Path:
    """Cityscapes fine with train ids: three frames per split."""
    folder = root / "cityscapes"
    for split in splits:
        for i, frame in enumerate(cityscapes_ids(split)):
            city = frame.split("_")[0]
            images = folder / "leftImg8bit" / split / city
            write_image(images / f"{frame}_leftImg8bit.png", picture(i))
            start = folder / "gtFine" / split / city / f"{frame}_gtFine_"
            ids = stripes(7, 8, 26, 0)  # road, sidewalk, car, unlabeled
            for kind, label in (
                ("labelIds", ids),
                ("instanceIds", ids),
                ("labelTrainIds", stripes(0, 1, 13, 255)),
            ):
                write_image(Path(f"{start}{kind}.png"), label)
            polygons = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": []}
            Path(f"{start}polygons.json").write_text(json.dumps(polygons))
    return folder


def camvid(root: Path) -> Path:
    """CamVid with 11 classes, two frames per split, and the test frames with animals."""
    folder = root / "CamVid"
    for split, end in (("train", ".png"), ("val", ".jpg"), ("test", ".png"), ("test_ood", ".png")):
        kind, _, ood = split.partition("_")
        for i in range(2):
            values = (*range(12), 12) if ood else range(12)
            write_image(folder / split / f"0001TP_{i}{end}", picture(i))
            annotations = folder / (f"{kind}annot" + (f"_{ood}" if ood else ""))
            write_image(annotations / f"0001TP_{i}.png", stripes(*values))
    return folder


def poc(root: Path, folder: str = "POC_CS_COCO_RECONSTRUCTED") -> Path:
    """POC's Cityscapes with COCO objects, rebuilt: an object, an inserted train, a known class."""
    for i, (prompt, value) in enumerate((("giraffe", 42), ("train", 85), ("car", 13))):
        stem = f"aachen_00000{i}_000019_leftImg8bit_A-good-photo-of-a-{prompt}_{i}"
        for part, array in (
            ("leftImg8bit", picture(i)),
            ("gtFine", stripes(0, 10, 255, value)),
        ):
            write_image(root / folder / part / "train" / "aachen" / f"{stem}.png", array)
    return root / folder
