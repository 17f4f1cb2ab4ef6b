"""Objects as pre-annotations: COCO's instances file, and tasks of Label Studio."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as coco_mask

from ..files import atomic_write

COCO, LABEL_STUDIO = "coco", "label-studio"
# thi.ng's rle-pack, which Label Studio reads: possible bits of a run's length (up to 2**16 bytes).
_LENGTH_BITS, _WORD_BITS = (3, 4, 8, 16), 8


@dataclass(frozen=True)
class LabelledFrame:
    """A picture and the objects found in it.

    Attributes:
        file: path of the picture below the folder of pictures, with "/".
        width, height: pixels.
        objects: dicts with ``category`` (index in the list of categories), ``score``, ``area``,
            ``box`` (x0, y0, x1, y1) and ``rle``, the mask in COCO's packed run lengths.
    """

    file: str
    width: int
    height: int
    objects: Sequence[dict[str, Any]]


def pack_mask(mask: np.ndarray) -> dict[str, Any]:
    """An (H, W) bool mask in COCO's run-length encoding, for JSON: ``{"size", "counts"}``."""
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def write_coco(path: Path, frames: Iterable[LabelledFrame], categories: Sequence[str]) -> None:
    """Write a COCO instances file whose annotations also have a score, as COCO results do.

    Args:
        path: the file.
        frames: iterated over twice.
        categories: their ids count from 1.

    Raises:
        OSError: as from ``open``.
    """
    head = {
        "info": {"description": "OOD objects of tdos_d2, as pre-annotations"},
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for i, name in enumerate(categories, 1)
        ],
    }
    images = (
        {"id": i, "file_name": frame.file, "width": frame.width, "height": frame.height}
        for i, frame in enumerate(frames, 1)
    )
    number = itertools.count(1)
    annotations = (
        {
            "id": next(number),
            "image_id": i,
            "category_id": item["category"] + 1,
            "segmentation": item["rle"],
            "bbox": _xywh(item["box"]),
            "area": item["area"],
            "iscrowd": 0,
            "score": item["score"],
        }
        for i, frame in enumerate(frames, 1)
        for item in frame.objects
    )
    with atomic_write(path) as file:
        file.write(f'{json.dumps(head, allow_nan=False)[:-1]}, "images": ['.encode())
        _write_list(file, images)
        file.write(b'], "annotations": [')
        _write_list(file, annotations)
        file.write(b"]}\n")


def write_label_studio(
    path: Path, frames: Iterable[LabelledFrame], categories: Sequence[str], version: str
) -> None:
    """Write tasks with predictions for Label Studio, and the labelling interface beside them.

    Each region has its score in ``meta``, and as its ``score`` that of
    :func:`score_in_unit_interval`; a prediction's ``score`` is the largest of its regions.

    Args:
        path: the .json file; the interface is the .xml file of the same name.
        frames: the frames; their pictures are in ``data`` beside ``path``, whose folder Label
            Studio serves as local files.
        categories: names of the labels.
        version: name of the model that made the predictions.
    """
    tasks = (_task(frame, categories, version) for frame in frames)
    with atomic_write(path) as file:
        file.write(b"[")
        _write_list(file, tasks)
        file.write(b"]\n")
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in categories)
    interface = (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )
    with atomic_write(path.with_suffix(".xml")) as file:
        file.write(interface.encode())


def score_in_unit_interval(score: float) -> float:
    """``0.5 + score / (2 (1 + |score|))``: in [0, 1] and increasing, as Label Studio needs it.

    Without a parameter, such as the threshold, predictions of several runs can be sorted together.
    It approaches 0 and 1 slowly, so that large scores remain different (15: 0.96875, 16: 0.97059).
    """
    return 0.5 + score / (2 * (1 + abs(score)))


def brush_run_lengths(mask: np.ndarray) -> list[int]:
    """Label Studio's brush format: run lengths of the mask as an RGBA picture, 255 inside.

    The packing is that of thi.ng's rle-pack: the number of bytes (32 bits); the word size minus 1
    (5 bits); the four possible sizes of a length minus 1 (4 bits each); then per run a bit 1, the
    index of the size of its length (2 bits), its length minus 1, and the byte.

    Args:
        mask: (H, W) bool.

    Returns:
        The bytes.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=-1))
    lengths = np.diff(starts, append=flat.size) * 4
    bits = [f"{4 * flat.size:032b}", f"{_WORD_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _LENGTH_BITS]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        byte = f"{255 if flat[start] else 0:08b}"
        for part in _parts(length):
            place = next(i for i, size in enumerate(_LENGTH_BITS) if part <= 2**size)
            bits.append(f"1{place:02b}{part - 1:0{_LENGTH_BITS[place]}b}{byte}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _parts(length: int) -> Iterator[int]:
    most = 2 ** _LENGTH_BITS[-1]
    yield from itertools.repeat(most, length // most)
    if length % most:
        yield length % most


def _task(frame: LabelledFrame, categories: Sequence[str], version: str) -> dict[str, Any]:
    results = [
        {
            "id": f"ood{i}",
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": frame.width,
            "original_height": frame.height,
            "image_rotation": 0,
            "score": score_in_unit_interval(item["score"]),
            "meta": {"ood_score": item["score"]},
            "value": {
                "format": "rle",
                "rle": brush_run_lengths(coco_mask.decode(item["rle"]) != 0),
                "brushlabels": [categories[item["category"]]],
            },
        }
        for i, item in enumerate(frame.objects, 1)
    ]
    prediction: dict[str, Any] = {"model_version": version, "result": results}
    if results:
        prediction["score"] = max(result["score"] for result in results)
    return {
        "data": {"image": f"/data/local-files/?d=data/{quote(frame.file)}"},
        "predictions": [prediction],
    }


def _xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _write_list(file: IO[bytes], items: Iterable[Any]) -> None:
    """Write the items of a JSON list, one per line."""
    for i, item in enumerate(items):
        file.write(f"{',' if i else ''}\n{json.dumps(item, allow_nan=False)}".encode())
