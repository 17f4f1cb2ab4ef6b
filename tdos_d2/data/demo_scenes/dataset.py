"""The demo's datasets: drawn street scenes, made on first use and kept in a cache folder.

================  ======  =====================================================================
name              frames  what is in them
================  ======  =====================================================================
demo_train        960     known classes only
demo_val          40      known classes only
demo_ood          60      20 each with animals, a sofa, barrels
demo_ood_hard     24      12 each with a ladder (thin), tyres (dark): shown, counted in no goal
demo_ood_dev      40      8 each with suitcases, a tent, boulders, a boat, parasols: for settings
================  ======  =====================================================================

Sizes and shares of the objects: ``ood_objects.py``. Images are 192x96. Labels are train ids 0..9,
and 10 for OOD. The scenes are in :func:`~tdos_d2.cache.cache_root`, in a folder named after a hash
of the code that draws them.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from ...cache import cache_root
from ...cores import usable_cores
from ...errors import UserError
from ..datasets.cityscapes import CITYSCAPES_CLASSES
from ..datasets.folder import register_dataset
from ..datasets.ood import ood_metadata
from ..reading import IGNORE
from . import street
from .scenes import render_scene

SIZE = (96, 192)  # H, W
# Fewer are drawn faster than another process starts.
_SCENES_PER_WORKER = 50


@dataclass(frozen=True)
class _Split:
    seed: int
    frames: int  # per kind
    kinds: tuple[str | None, ...] = (None,)

    def scenes(self) -> list[tuple[str, str | None]]:
        """File stem and OOD kind of each frame."""
        return [
            (f"{kind or 'street'}_{i:02d}", kind) for kind in self.kinds for i in range(self.frames)
        ]


_SPLITS = {
    "train": _Split(1, 960),
    "val": _Split(2, 40),
    "ood": _Split(3, 20, ("animal", "sofa", "barrel")),
    "ood_hard": _Split(4, 12, ("ladder", "tyre")),
    "ood_dev": _Split(5, 8, ("suitcase", "tent", "boulder", "boat", "umbrella")),
}


def register_demo() -> None:
    """Register demo_train, demo_val, demo_ood, demo_ood_hard and demo_ood_dev."""
    colours = [tuple(CITYSCAPES_CLASSES[name]) for name in street.CLASSES]
    classes = {"stuff_classes": list(street.CLASSES), "stuff_colors": colours}
    # The protocol's sizes are meant for 1280x720: scaled by area.
    area = SIZE[0] * SIZE[1] / (1280 * 720)
    ood = ood_metadata(
        "demo_ood", id_values=range(street.OOD), ood_values=(street.OOD,),
        min_pred=max(1, round(500 * area)), min_gt=max(1, round(100 * area)),
    )
    for split in _SPLITS:
        known = {"evaluator_type": "sem_seg", "ignore_label": IGNORE}
        special = ood if split.startswith("ood") else known
        read = functools.partial(_load, split)
        register_dataset(f"demo_{split}", read, **classes, **special)


def _load(split: str) -> list[dict[str, Any]]:
    """Dataset dicts of a split, whose files are made if they are not there yet."""
    folder = _cache_folder() / split
    if not folder.is_dir():
        _generate(split, folder)
    dicts = []
    for stem, kind in _SPLITS[split].scenes():
        record = {
            "file_name": str(folder / "images" / f"{stem}.png"),
            "sem_seg_file_name": str(folder / "labels" / f"{stem}.png"),
            "image_id": f"{split}/{stem}",
            "height": SIZE[0],
            "width": SIZE[1],
        }
        dicts.append(record if kind is None else {**record, "kind": kind})
    return dicts


def _cache_folder() -> Path:
    """Named after the code that the scenes depend on."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    code = b"".join(file.read_bytes() for file in files)
    return cache_root() / f"demo-{hashlib.sha256(code).hexdigest()[:10]}"


def _generate(split: str, folder: Path) -> None:
    """Draw a split next to its place and move it there, whole: other processes may do the same."""
    scenes = _SPLITS[split].scenes()
    logging.getLogger(__name__).info("Drawing %d scenes into %s", len(scenes), folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=folder.parent) as temporary:
            made = Path(temporary) / split
            _write_scenes(split, made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster: same seed, same scenes
                    raise
    except OSError as error:
        raise UserError(
            f"dataset 'demo_{split}': cannot write its scenes to {folder.parent} "
            f"({error.strerror}); TDOS_CACHE may name another folder"
        ) from error


def _write_scenes(split: str, folder: Path) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    write = functools.partial(_write_scene, split, folder)
    numbers = range(len(_SPLITS[split].scenes()))
    workers = min(usable_cores(), len(numbers) // _SCENES_PER_WORKER)
    bar = {"desc": f"demo_{split}", "unit": "scene", "mininterval": 1}
    if workers > 1:
        process_map(write, numbers, max_workers=workers, chunksize=4, **bar)
    else:
        for number in tqdm(numbers, **bar):
            write(number)


def _write_scene(split: str, folder: Path, number: int) -> None:
    stem, kind = _SPLITS[split].scenes()[number]
    rng = np.random.default_rng([_SPLITS[split].seed, number])
    for part, array in zip(("images", "labels"), render_scene(rng, SIZE, kind), strict=True):
        Image.fromarray(array).save(folder / part / f"{stem}.png")
