#!/usr/bin/env python
"""Write Cityscapes label maps with train ids 0..18, for training and mIoU, and class statistics.

Reads the unpacked leftImg8bit_trainvaltest and gtFine_trainvaltest below the root,

  cityscapes   {leftImg8bit,gtFine}/{train,val}/<city>/...

and writes gtFine/<split>/<city>/*_gtFine_labelTrainIds.png, from the labelIds files or, if there
are none, from the polygons, and class_statistics_<split>.json: the number of frames and pixels of
each class. Detectron2 reads the new labels from the same folders as the official ones: --in-place
adds them there and changes no other file; --output creates a second tree with links to the first
one (or copies).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import _common as common
import numpy as np
from PIL import Image, ImageDraw

_IMAGE, _POLYGONS = "_leftImg8bit.png", "_gtFine_polygons.json"
_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
# In the order of the label ids 0..33.
_NAMES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic",
    "ground", "road", "sidewalk", "parking", "rail track", "building", "wall", "fence",
    "guard rail", "bridge", "tunnel", "pole", "polegroup", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan",
    "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Write the label maps that do not exist yet, then the statistics."""
    parser = common.argument_parser(__doc__, copy=True)
    parser.add_argument("--in-place", action="store_true", help="add the new files to the download")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--no-statistics", action="store_true", help="do not count classes")
    args = parser.parse_args(argv)
    source = common.find_source(args.root, ["cityscapes"], args.source, "Cityscapes")
    output = source if args.in_place else args.output or args.root / "cityscapes"
    if args.in_place:
        common.check_output(output)
    elif output.resolve() == source.resolve():
        raise common.PrepareError(
            f"new files would lie in {source}: say --in-place, or name an --output"
        )
    else:
        common.check_output(output, source)
    splits = [split for split in args.splits if (source / "gtFine" / split).is_dir()]
    common.check_complete([], len(splits), f"folder {source}/gtFine/{' or '.join(args.splits)}")
    for split in args.splits:
        if split not in splits:
            print(f"left out: no folder {source / 'gtFine' / split}")
    frames = {split: _frames(source, split) for split in splits}
    jobs = [
        common.Job(output / label, partial(_write_train_ids, source / label))
        for labels in frames.values()
        for label in labels
    ]
    if not args.in_place:
        for split in splits:
            files = [
                *common.list_files(source / "leftImg8bit" / split, "*/*"),
                *common.list_files(source / "gtFine" / split, "*/*"),
            ]
            jobs += [
                common.Job(output / path.relative_to(source), common.link_or_copy(path, args.copy))
                for path in files
                if not path.name.endswith(_TRAIN_IDS)
            ]
    common.write_missing(jobs, output, args)
    if not args.no_statistics:
        _count(frames, output, args)


def draw_polygons(annotation: dict) -> np.ndarray:
    """(H, W) uint8 train ids of the content of a polygons file, drawn as cityscapesScripts does.

    Raises:
        PrepareError: a label is not one of Cityscapes'.
    """
    common.files.check_size(annotation["imgWidth"], annotation["imgHeight"])
    image = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), 255)
    draw = ImageDraw.Draw(image)
    for item in annotation["objects"]:
        name = item["label"]
        if name not in _NAMES:
            name = name.removesuffix("group")
        if item.get("deleted") or name == "license plate":  # the latter has no id
            continue
        if name not in _NAMES:
            raise common.PrepareError(f"unknown label {item['label']!r}")
        points = [tuple(point) for point in item["polygon"]]
        draw.polygon(points, fill=int(common.CITYSCAPES_TRAIN_IDS[_NAMES.index(name)]))
    return np.array(image)


def _frames(source: Path, split: str) -> list[Path]:
    """Path of each image's train ids, relative to ``source``."""
    images = common.list_files(source / "leftImg8bit" / split, f"*/*{_IMAGE}")
    common.check_complete([], len(images), f"images in {source / 'leftImg8bit' / split}")
    cities = source / "gtFine" / split
    stems = [cities / path.parent.name / path.name.removesuffix(_IMAGE) for path in images]
    missing = [
        f"{stem}{_IDS}"
        for stem in stems
        if not Path(f"{stem}{_IDS}").exists() and not Path(f"{stem}{_POLYGONS}").exists()
    ]
    common.check_complete(missing, len(stems), f"labels of {source}")
    return [Path(f"{stem}{_TRAIN_IDS}").relative_to(source) for stem in stems]


def _write_train_ids(train_ids: Path, path: Path) -> None:
    stem = str(train_ids).removesuffix(_TRAIN_IDS)
    ids, polygons = Path(stem + _IDS), Path(stem + _POLYGONS)
    if ids.exists():
        known = common.CITYSCAPES_IDS
        label = common.translate(common.read_ids(ids), common.CITYSCAPES_TRAIN_IDS, known, ids)
    else:
        try:
            label = draw_polygons(common.untrusted.read_json(polygons))
        except (common.PrepareError, ValueError, KeyError, TypeError) as error:
            raise common.PrepareError(f"cannot draw {polygons}: {error}") from error
    common.save_png(label, path)


def _count(frames: dict[str, list[Path]], output: Path, args: argparse.Namespace) -> None:
    """Write the statistics of the labels that are there now; counts are cached for training."""
    for split, labels in frames.items():
        file = output / f"class_statistics_{split}.json"
        if args.dry_run:
            print(f"{file}: would be written (dry run)")
        else:
            places = [output / label for label in labels]
            common.write_file(common.Job(file, partial(_write_statistics, split, places)))
            print(f"{file}: written")


def _write_statistics(split: str, labels: Sequence[Path], path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also works in a checkout
    try:
        from detectron2.data import MetadataCatalog

        from tdos_d2.data.class_statistics import class_statistics, statistics_cache
        from tdos_d2.errors import UserError
    except ImportError as error:
        raise common.PrepareError(
            f"counting needs Detectron2 ({error}), or --no-statistics"
        ) from error
    metadata = MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}")
    names = metadata.stuff_classes
    dicts = [{"sem_seg_file_name": str(label)} for label in labels]
    try:
        counts = class_statistics(dicts, metadata, len(names), statistics_cache())
    except UserError as error:
        raise common.PrepareError(str(error)) from error
    statistics = {
        "frames": len(labels),
        "frames_with_class": dict(zip(names, (counts > 0).sum(0).tolist(), strict=True)),
        "pixels": dict(zip(names, counts.sum(0).tolist(), strict=True)),
    }
    path.write_text(json.dumps(statistics, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    common.run_main(main)
