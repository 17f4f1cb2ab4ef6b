#!/usr/bin/env python
"""List COCO objects that belong to no Cityscapes class, for pasting into training images.

Reads, below the root,

  coco   train2017/<id>.jpg and annotations/instances_train2017.json (https://cocodataset.org)

and writes coco_outliers.json: image, category, box, area and segmentation of each object that is
large enough, not a crowd, and of a category that Cityscapes does not label. Images are not copied.

Every annotation is checked. Objects without pixels (no segmentation, polygons of two points, boxes
without area or outside their image) are skipped and counted; an annotation that is not in COCO's
format is an error.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import _common as common
from tqdm import tqdm

coco = importlib.import_module("_tdos_d2_alone.coco")  # see _common.py

_MAX_ANNOTATIONS = 2**31  # bytes; the file of train2017 has 450 MB
# COCO's names for objects of Cityscapes' 19 classes.
CITYSCAPES_CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "traffic light", "stop sign",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Write the list, unless it exists."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--split", default="train2017", help="of COCO (default: %(default)s)")
    parser.add_argument("--images", type=common.options.path, help="folder of the images")
    parser.add_argument(
        "--min-area",
        type=common.options.number(0),
        default=4096,
        help="smallest area of an object in pixels (default: %(default)s, as 64x64)",
    )
    parser.add_argument(
        "--exclude", nargs="+", default=[], help="further COCO categories to leave out"
    )
    args = parser.parse_args(argv)
    source = common.find_source(args.root, ["coco"], args.source, "COCO")
    what = f"COCO's {args.split}"
    images = common.find_source(source, [args.split], args.images, what, "--images")
    annotations = source / "annotations" / f"instances_{args.split}.json"
    output = args.output or args.root / "coco_outliers.json"
    common.check_output(output, source, images, folder=False)
    parameters = {
        "annotations": annotations.name,
        "min_area": args.min_area,
        "excluded": sorted({*CITYSCAPES_CATEGORIES, *args.exclude}),
    }
    if output.exists():
        _check_parameters(output, parameters)
        print(f"{output}: is there")
        return
    print(f"Reading {annotations}: some minutes for train2017")
    try:
        found, empty = outliers(_read(annotations), parameters["excluded"], args.min_area)
    except ValueError as error:
        raise common.PrepareError(f"{annotations}: {error}") from error
    if empty:
        print(f"left out: {empty} objects without a pixel")
    files = {instance["file"] for instance in found}
    missing = files - {entry.name for entry in os.scandir(images)}
    common.check_complete(sorted(missing), len(files), f"images of {images}")
    print(f"{len(found)} objects in {len(files)} images")
    root = _relative(images, output.parent)
    content = {"images_root": root, "parameters": parameters, "instances": found}
    job = common.Job(output, lambda path: path.write_text(json.dumps(content, allow_nan=False)))
    common.write_missing([job], output, args)


def outliers(
    annotations: Mapping[str, Any], excluded: Collection[str], min_area: float
) -> tuple[list[dict[str, Any]], int]:
    """Select the objects that can be pasted.

    Args:
        annotations: content of a COCO instances file.
        excluded: names of categories to leave out.
        min_area: smallest area of an object in pixels.

    Returns:
        dicts with file (name of the image), width and height of the image if they are known,
        category (name), bbox (x, y, width, height), area and segmentation (polygons or run
        lengths), as in COCO; and the number of objects left out because they have no pixels.

    Raises:
        ValueError: a category in ``excluded`` does not exist, or something is not in COCO's format.
    """
    categories = _by_id(annotations["categories"], "category", "name")
    images = _by_id(annotations["images"], "image", "file_name")
    unknown = set(excluded) - {category["name"] for category in categories.values()}
    if unknown:
        raise ValueError(f"COCO has no category {', '.join(map(repr, sorted(unknown)))}")
    _by_id(annotations["annotations"], "annotation")
    found, faults, empty = [], [], 0
    for item in tqdm(annotations["annotations"], "Choosing objects", unit="object"):
        try:
            image = _owner(images, item, "image_id")
            category = _owner(categories, item, "category_id")["name"]
            if item.get("iscrowd") or category in excluded:
                continue
            area = item.get("area")
            if type(area) not in (int, float) or not math.isfinite(area):
                raise ValueError(f"area is {'missing or null' if area is None else area}")
            if area < min_area:
                continue
            checked = coco.check_object(item)
            if checked is None or not _has_pixels(checked, image):
                empty += 1
                continue
            file = image["file_name"]
            size = {key: image[key] for key in ("width", "height") if type(image.get(key)) is int}
            found.append({"file": file, "category": category, "area": area, **size, **checked})
        except ValueError as error:
            faults.append(f"annotation {item['id']}: {error}")
    if faults:
        raise ValueError(f"{len(faults)} annotations are not in COCO's format, first {faults[0]}")
    return found, empty


def _by_id(entries: Any, what: str, text: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Entries of a list by their "id"; raise ValueError if one has no id or no ``text``."""
    if not isinstance(entries, list):
        raise ValueError(f"no list of {what} entries")
    found: dict[int | str, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            raise ValueError(f"{what} number {place} (counted from 0) has no id")
        if entry["id"] in found:
            raise ValueError(f"{what} {entry['id']} is there twice")
        if text and not isinstance(entry.get(text), str):
            raise ValueError(f"{what} {entry['id']} has no {text}")
        found[entry["id"]] = entry
    return found


def _owner(owners: Mapping[Any, dict[str, Any]], item: Mapping[str, Any], key: str) -> Any:
    """The image or category of an annotation."""
    number = item.get(key)
    if type(number) not in (int, str) or number not in owners:
        raise ValueError(f"{key} is {'missing or null' if number is None else number}, not known")
    return owners[number]


def _has_pixels(item: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether any part of an object is inside its image, whose size may be missing."""
    x, y, w, h = item["bbox"]
    size = item["segmentation"]["size"] if isinstance(item["segmentation"], dict) else None
    far = size or [math.ceil(y + h), math.ceil(x + w)]
    shape = [image.get(key, least) for key, least in zip(("height", "width"), far, strict=True)]
    if not all(type(side) is int and side <= 100_000 for side in shape):
        raise ValueError(f"image {image['id']} has the height and width {shape}")
    return min(shape) > 0 and bool(coco.object_mask(item, *shape)[0].any())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = common.untrusted.read_json(path, _MAX_ANNOTATIONS)
    except OSError as error:
        raise common.PrepareError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise common.PrepareError(f"{path} is no complete JSON file: {error}") from error
    if not isinstance(content, dict):
        raise common.PrepareError(
            f"{path} is no instances file of COCO: it holds no object of JSON"
        )
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    entries = content.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    for key, kind in (("segments_info", "panoptic"), ("caption", "captions")):
        if isinstance(first, dict) and key in first:
            raise common.PrepareError(f"{path} is no instances file of COCO but a {kind} file")
    if missing:
        raise common.PrepareError(f"{path} is no instances file of COCO: it has no {missing[0]}")
    return content


def _check_parameters(output: Path, parameters: dict[str, Any]) -> None:
    try:
        made_with = common.untrusted.read_json(output, _MAX_ANNOTATIONS)["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise common.PrepareError(
            f"{output} is no list of this script: remove it, or name an --output"
        ) from error
    if made_with != parameters:
        raise common.PrepareError(
            f"{output} was made with other options: remove it, or name an --output"
        )


def _relative(folder: Path, start: Path) -> str:
    """Path relative to ``start``, so that both can be moved together; else the absolute path."""
    try:
        return Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return folder.resolve().as_posix()


if __name__ == "__main__":
    common.run_main(main)
