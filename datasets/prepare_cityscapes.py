#!/usr/bin/env python
"""Cityscapes' train ids 0..18, which training and mIoU need, and its class statistics.

Needs, below the root,

  cityscapes   {leftImg8bit,gtFine}/{train,val}/<city>/... as unpacked from leftImg8bit_trainvaltest
               and gtFine_trainvaltest

and makes gtFine/<split>/<city>/*_gtFine_labelTrainIds.png from the labelIds files, or from the
polygons where there are none, and class_statistics_<split>.json: in how many frames and pixels each
class occurs. Detectron2 wants the new labels beside the official ones: --in-place puts them there
and touches no other file; --output builds a second tree, with links (or copies) to the first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from _common import (
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    Job,
    PrepareError,
    check_complete,
    check_output,
    command_line,
    find,
    link_or_copy,
    list_files,
    make,
    make_one,
    read_ids,
    run,
    save_png,
    translate,
)
from PIL import Image, ImageDraw

_IMAGE, _IDS, _TRAIN_IDS, _POLYGONS = (
    "_leftImg8bit.png",
    "_gtFine_labelIds.png",
    "_gtFine_labelTrainIds.png",
    "_gtFine_polygons.json",
)
# In the order of the label ids 0..33; "license plate" has none and is not drawn.
_NAMES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic",
    "ground", "road", "sidewalk", "parking", "rail track", "building", "wall", "fence",
    "guard rail", "bridge", "tunnel", "pole", "polegroup", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan",
    "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
_NOT_DRAWN = "license plate"


def main(argv: Sequence[str] | None = None) -> None:
    """Make label maps that are not there yet, then count them."""
    args = _parser().parse_args(argv)
    source = find(args.root, ["cityscapes"], args.source, "Cityscapes", "--source")
    output = args.output or args.root / "cityscapes"
    if args.in_place:
        output = source
        check_output(output)
    elif output.resolve() == source.resolve():
        raise PrepareError(f"new files would lie in {source}: say --in-place, or name an --output")
    else:
        check_output(output, source)
    splits = [split for split in args.splits if (source / "gtFine" / split).is_dir()]
    check_complete([], len(splits), f"folder {source}/gtFine/{' or '.join(args.splits)}")
    for split in args.splits:
        if split not in splits:
            print(f"left out: no folder {source / 'gtFine' / split}")
    frames = {split: _frames(source, split) for split in splits}
    jobs = [
        Job(output / label, partial(_write_train_ids, source / label))
        for labels in frames.values()
        for label in labels
    ]
    if not args.in_place:
        jobs += _links(source, output, splits, args.copy)
    make(jobs, output, args)
    if not args.no_statistics:
        _count(frames, output, args)


def draw_polygons(annotation: dict) -> np.ndarray:
    """(H, W) uint8 train ids of the content of a polygons file, drawn as cityscapesScripts does.

    Raises:
        PrepareError: a label is none of Cityscapes'.
    """
    image = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), 255)
    draw = ImageDraw.Draw(image)
    for item in annotation["objects"]:
        name = item["label"]
        if name not in _NAMES:
            name = name.removesuffix("group")
        if item.get("deleted") or name == _NOT_DRAWN:
            continue
        if name not in _NAMES:
            raise PrepareError(f"unknown label {item['label']!r}")
        points = [tuple(point) for point in item["polygon"]]
        draw.polygon(points, fill=int(CITYSCAPES_TRAIN_IDS[_NAMES.index(name)]))
    return np.array(image)


def _frames(source: Path, split: str) -> list[Path]:
    """Place below ``source`` of the train ids of each image."""
    images = list_files(source / "leftImg8bit" / split, f"*/*{_IMAGE}")
    check_complete([], len(images), f"images in {source / 'leftImg8bit' / split}")
    cities = source / "gtFine" / split
    stems = [cities / path.parent.name / path.name.removesuffix(_IMAGE) for path in images]
    missing = [
        f"{stem}{_IDS}"
        for stem in stems
        if not Path(f"{stem}{_IDS}").exists() and not Path(f"{stem}{_POLYGONS}").exists()
    ]
    check_complete(missing, len(stems), f"labels of {source}")
    return [Path(f"{stem}{_TRAIN_IDS}").relative_to(source) for stem in stems]


def _write_train_ids(train_ids: Path, path: Path) -> None:
    stem = str(train_ids).removesuffix(_TRAIN_IDS)
    ids, polygons = Path(stem + _IDS), Path(stem + _POLYGONS)
    if ids.exists():
        label = translate(read_ids(ids), CITYSCAPES_TRAIN_IDS, CITYSCAPES_IDS, ids)
    else:
        try:
            label = draw_polygons(json.loads(polygons.read_bytes()))
        except (PrepareError, ValueError, KeyError, TypeError) as error:
            raise PrepareError(f"cannot draw {polygons}: {error}") from error
    save_png(label, path)


def _links(source: Path, output: Path, splits: Sequence[str], copy: bool) -> list[Job]:
    files = [
        path
        for part in ("leftImg8bit", "gtFine")
        for split in splits
        for path in list_files(source / part / split, "*/*")
        if not path.name.endswith(_TRAIN_IDS)
    ]
    return [Job(output / path.relative_to(source), link_or_copy(path, copy)) for path in files]


def _count(frames: dict[str, list[Path]], output: Path, args: argparse.Namespace) -> None:
    """Write the statistics of each split that has none; training finds its counts in the cache."""
    for split, labels in frames.items():
        file = output / f"class_statistics_{split}.json"
        if file.exists():
            print(f"{file}: is there")
        elif args.dry_run:
            print(f"{file}: would be written (dry run)")
        else:
            places = [output / label for label in labels]
            make_one(Job(file, partial(_write_statistics, split, places)))
            print(f"{file}: written")


def _write_statistics(split: str, labels: Sequence[Path], path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout serves, too
    try:
        from detectron2.data import MetadataCatalog

        from tdos_d2.data.class_statistics import class_statistics, statistics_cache
        from tdos_d2.errors import UserError
    except ImportError as error:
        raise PrepareError(f"counting needs Detectron2 ({error}), or --no-statistics") from error
    metadata = MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}")
    names = metadata.stuff_classes
    dicts = [{"sem_seg_file_name": str(label)} for label in labels]
    try:
        counts = class_statistics(dicts, metadata, len(names), statistics_cache())
    except UserError as error:
        raise PrepareError(str(error)) from error
    statistics = {
        "frames": len(labels),
        "frames_with_class": dict(zip(names, (counts > 0).sum(0).tolist(), strict=True)),
        "pixels": dict(zip(names, counts.sum(0).tolist(), strict=True)),
    }
    path.write_text(json.dumps(statistics, indent=2, allow_nan=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__, copy=True)
    parser.add_argument("--in-place", action="store_true", help="add the new files to the download")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--no-statistics", action="store_true", help="do not count classes")
    return parser


if __name__ == "__main__":
    run(main)
