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

Sizes and shares of the objects: ``objects.py``. Images are 192x96. Labels are train
ids 0..9, and 10 for OOD. The scenes lie in ``$TDOS_CACHE``, or else in ``$XDG_CACHE_HOME/tdos_d2``
or ``~/.cache/tdos_d2``, in a folder named after the code that draws them: other code, other folder.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...cache import cache_root
from ...errors import UserError
from ..datasets.cityscapes import CITYSCAPES_CLASSES
from ..datasets.folder import register
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
        register(f"demo_{split}", functools.partial(_load, split), **classes, **special)


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
    return cache_root() / f"demo-{_code_version()}"


@functools.cache
def _code_version() -> str:
    """Short hash of the code that the scenes depend on."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:10]


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
    stems = [stem for stem, _ in _SPLITS[split].scenes()]
    # A generator of its own: the loader must not draw from torch's, or the first run with a split
    # would differ from the next.
    scenes = DataLoader(
        _Scenes(split),
        batch_size=None,
        num_workers=min(os.cpu_count() or 1, len(stems) // _SCENES_PER_WORKER),
        generator=torch.Generator(),
    )
    pairs = zip(stems, scenes, strict=True)
    for stem, (image, label) in tqdm(
        pairs, f"demo_{split}", len(stems), unit="scene", mininterval=1
    ):
        Image.fromarray(np.asarray(image)).save(folder / "images" / f"{stem}.png")
        Image.fromarray(np.asarray(label)).save(folder / "labels" / f"{stem}.png")


class _Scenes(Dataset):
    """The scenes of a split, drawn when asked for."""

    def __init__(self, split: str) -> None:
        self.seed, self.scenes = _SPLITS[split].seed, _SPLITS[split].scenes()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, index])
        return render_scene(rng, SIZE, self.scenes[index][1])
