#!/usr/bin/env python
"""A list of COCO objects that are no Cityscapes class, to be pasted into training images.

Needs, below the root,

  coco   train2017/<id>.jpg and annotations/instances_train2017.json (https://cocodataset.org)

and writes coco_outliers.json: image, category, box, area and outline of each object that is large
enough, no crowd, and of a category that Cityscapes does not label. Images stay where they are.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _common import (
    Job,
    PrepareError,
    check_complete,
    check_output,
    command_line,
    find,
    folder_path,
    make,
    run,
)
from tqdm import tqdm

# COCO's names of what Cityscapes labels as one of its 19 classes.
CITYSCAPES_CATEGORIES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "train",
    "truck",
    "traffic light",
    "stop sign",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the list, unless it is there."""
    args = _parser().parse_args(argv)
    source = find(args.root, ["coco"], args.source, "COCO", "--source")
    images = find(source, [args.split], args.images, f"COCO's {args.split}", "--images")
    annotations = source / "annotations" / f"instances_{args.split}.json"
    output = args.output or args.root / "coco_outliers.json"
    check_output(output, source, images, folder=False)
    parameters = {
        "annotations": annotations.name,
        "min_area": args.min_area,
        "excluded": sorted({*CITYSCAPES_CATEGORIES, *args.exclude}),
    }
    if output.exists():
        _check_parameters(output, parameters)
        print(f"{output}: is there")
        return
    print(f"Reading {annotations}: half a minute for train2017")
    found = outliers(_read(annotations), parameters["excluded"], args.min_area)
    files = {instance["file"] for instance in found}
    missing = files - {entry.name for entry in os.scandir(images)}
    check_complete(sorted(missing), len(files), f"images of {images}")
    print(f"{len(found)} objects in {len(files)} images")
    content = {
        "images_root": _relative(images, output.parent),
        "parameters": parameters,
        "instances": found,
    }
    make([Job(output, partial(_write, content))], output, args)


def outliers(
    annotations: dict[str, Any], excluded: Collection[str], min_area: float
) -> list[dict[str, Any]]:
    """Instances that can be pasted.

    Args:
        annotations: content of an instances file of COCO.
        excluded: names of categories that do not count.
        min_area: least area of an object in pixels.

    Returns:
        dicts with file (name of the image), category (name), bbox (x, y, width, height), area and
        segmentation (polygons or run lengths), all as in COCO.

    Raises:
        PrepareError: a category in ``excluded`` does not exist.
    """
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    unknown = set(excluded) - set(names.values())
    if unknown:
        raise PrepareError(f"COCO has no category {', '.join(map(repr, sorted(unknown)))}")
    files = {image["id"]: image["file_name"] for image in annotations["images"]}
    return [
        {
            "file": files[item["image_id"]],
            "category": names[item["category_id"]],
            **{key: item[key] for key in ("bbox", "area", "segmentation")},
        }
        for item in tqdm(annotations["annotations"], "Choosing objects", unit="object")
        if not item.get("iscrowd")
        and item["area"] >= min_area
        and names[item["category_id"]] not in excluded
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not {"images", "annotations", "categories"} <= content.keys():
            raise PrepareError(f"{path} is no instances file of COCO")
    except OSError as error:
        raise PrepareError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PrepareError(f"{path} is no complete JSON file: {error}") from error
    return content


def _check_parameters(output: Path, parameters: dict[str, Any]) -> None:
    content = json.loads(output.read_bytes())
    if content["parameters"] != parameters:
        raise PrepareError(f"{output} was made with other options: remove it, or name an --output")


def _relative(folder: Path, start: Path) -> str:
    """Path from ``start``, so that both can be moved together; else the absolute one."""
    try:
        return Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return folder.resolve().as_posix()


def _write(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, allow_nan=False))


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__doc__)
    parser.add_argument("--split", default="train2017", help="of COCO (default: %(default)s)")
    parser.add_argument("--images", type=folder_path, help="the images, if they lie elsewhere")
    parser.add_argument(
        "--min-area",
        type=float,
        default=4096,
        help="least area of an object in pixels (default: %(default)s, as 64x64)",
    )
    parser.add_argument(
        "--exclude", nargs="+", default=[], help="more categories that are not outliers for you"
    )
    return parser


if __name__ == "__main__":
    run(main)
