"""Files with score maps: assignment to frames, and reading.

The scores of frame ``a/b`` (``image_id`` of its dataset: the path of the image below the dataset's
image folder, without extension) are one (H, W) map of the size of the image, larger = more
anomalous, in ``FOLDER/a/b`` with one of these endings:

- ``.npy``: the array; also ``_anomaly.npy`` of a Fishyscapes pair, whose ``_segmentation.npy`` is
  ignored;
- ``.npz``: the only array, or the one called "value";
- ``.h5``, ``.hdf5``: the dataset "value", as in SegmentMeIfYouCan's tool (needs h5py);
- ``.png``: one channel of 16 bits (8 bits would make different scores equal); if the file has text
  entries "offset" and "step", the score is offset + step * value;
- ``_raw.png``, ``_raw.npy`` of tools/predict.py, whose pictures beside them are ignored.

If only one frame is called ``b``, its file may also be ``FOLDER/b``, also without Cityscapes'
"_leftImg8bit", as in the official ``outputs/anomaly_p/<method>/<dataset>/<frame>.hdf5``. Files of
other kinds are ignored. A map of another size than the image is an error; maps are not resized.
Maps of other values, such as classes, are found by the same names.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import check_regular, find_files, open_image
from ..untrusted import MAX_ARRAYS, load_arrays

KEY = "value"  # name of the dataset in an HDF5 file
CITYSCAPES_END = "_leftImg8bit"
RAW_END = "_raw"
# tools/predict.py writes these beside "_raw".
_PICTURE = re.compile(r"(.+)_(?:score|segmentation|word\d+_[0-9a-zA-Z-]*)", re.DOTALL)


def short_names(frames: Iterable[str], without: str = CITYSCAPES_END) -> dict[str, str]:
    """Frame names of the official tools, by id.

    A name is the id's last part without the ending ``without``; the whole id if that is not unique,
    as a path that stays below the folder that it is joined to.
    """
    short = {frame: PurePosixPath(frame).name.removesuffix(without) for frame in frames}
    times = Counter(short.values())
    return {frame: name if times[name] == 1 else _below(frame) for frame, name in short.items()}


def _below(frame: str) -> str:
    path = PurePosixPath(frame)  # without an image_id it is a file name, which may be absolute
    return "/".join(part for part in path.parts if part not in ("..", path.anchor))


def find_score_files(
    folder: str | os.PathLike, frames: Sequence[str], *, allow_extra: bool = False
) -> dict[str, Path]:
    """The score file of each frame, in the order of ``frames``.

    Args:
        folder: see the module.
        frames: the frames' ids.
        allow_extra: ignore score files that belong to none of the frames.

    Raises:
        UserError: no such folder; a frame has no file or two; a file belongs to no frame.
    """
    return _assign(Path(folder), frames, "scores", _READERS, _frame_of, allow_extra)


def find_map_files(
    folder: str | os.PathLike,
    frames: Sequence[str],
    option: str,
    endings: Sequence[str] = (".png",),
    *,
    allow_extra: bool = False,
) -> dict[str, Path]:
    """As :func:`find_score_files`, for files ``a/b`` or ``b`` with one of ``endings``.

    ``option`` is the origin of the folder, for messages. Other files are ignored.
    """
    return _assign(
        Path(folder), frames, option, endings, lambda stem, _, owners: owners.get(stem), allow_extra
    )


def _assign(
    folder: Path,
    frames: Sequence[str],
    kind: str,
    endings: Collection[str],
    frame_of: Callable[[str, Path, dict[str, str]], str | None],
    allow_extra: bool,
) -> dict[str, Path]:
    """The file of each frame; ``frame_of`` is called as ``_frame_of``."""
    if not folder.is_dir():
        raise UserError(f"{kind}: no folder {folder}")
    owners = {
        name: frame
        for names in (short_names(frames), short_names(frames, ""), {f: f for f in frames})
        for frame, name in names.items()
    }
    found: dict[str, Path] = {}
    extra, problems = [], []
    for path in map(folder.joinpath, find_files(folder)):
        ending = next((e for e in endings if path.name.lower().endswith(e)), None)
        if ending is None:
            continue
        frame = frame_of(path.relative_to(folder).as_posix()[: -len(ending)], path, owners)
        if frame is None:
            extra.append(path)
        elif frame in found:
            raise UserError(f"{kind}: two files for frame {frame}: {found[frame]} and {path}")
        elif frame:
            found[frame] = path
    if missing := [frame for frame in frames if frame not in found]:
        problems.append(
            f"{len(missing)} of {len(frames)} frames have no file, first {folder / missing[0]} "
            f"({', '.join(endings)})"
        )
    if extra and not allow_extra:
        problems.append(f"{len(extra)} files belong to no frame, first {extra[0]}")
    if problems:
        raise UserError(f"{kind}: " + "; ".join(problems))
    return {frame: found[frame] for frame in frames}


def read_score(path: str | os.PathLike) -> np.ndarray:
    """The array in a score file, in the file's type; float64 from a PNG with offset and step.

    Raises:
        UserError: the file cannot be read, or its content is not as described above.
    """
    path = Path(path)
    try:
        return _READERS[path.suffix.lower()](path)
    except UserError:
        raise
    except Exception as error:  # for damaged files, NumPy and h5py raise almost any type
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read scores {path}: {cause}") from error


def import_h5py() -> ModuleType:
    """Import h5py; raises UserError if it is not installed."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError("HDF5 files need h5py: pip install h5py") from error
    return h5py


def _frame_of(stem: str, path: Path, owners: dict[str, str]) -> str | None:
    """The frame that a file belongs to; "" for a file to ignore, None if it belongs to none."""
    suffix = path.suffix.lower()
    if stem in owners:
        return owners[stem]
    if stem.endswith(RAW_END) and suffix in (".npy", ".png"):
        image = stem.removesuffix(RAW_END)
        return owners.get(image, owners.get(image.removesuffix(CITYSCAPES_END)))
    if suffix == ".npy" and stem.endswith("_anomaly"):
        return owners.get(stem.removesuffix("_anomaly"))
    if suffix == ".npy" and stem.endswith("_segmentation"):
        return "" if stem.removesuffix("_segmentation") in owners else None
    if suffix == ".png" and (picture := _PICTURE.fullmatch(path.stem)):
        raw = (path.with_name(f"{picture[1]}{RAW_END}{end}") for end in (".npy", ".png"))
        return "" if any(file.exists() for file in raw) else None
    return None


def _read_arrays(path: Path) -> np.ndarray:
    loaded = load_arrays(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as arrays:
        keys = arrays.files
        if KEY not in keys and len(keys) != 1:
            expected = f"one array, or one called '{KEY}', expected"
            raise UserError(f"scores {path}: {expected}, not {keys}")
        return arrays[KEY if KEY in keys else keys[0]]


def _read_hdf5(path: Path) -> np.ndarray:
    h5py = import_h5py()
    check_regular(path)
    with h5py.File(path, "r") as file:
        if KEY not in file:
            raise UserError(f"scores {path}: no dataset '{KEY}', only {', '.join(file)}")
        found = file[KEY]
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub":
            raise UserError(f"scores {path}: '{KEY}' is no array of numbers")
        # An external link could read any file that the author of this one named.
        link = file.get(KEY, getlink=True)
        if isinstance(link, h5py.ExternalLink) or found.external or found.is_virtual:
            raise UserError(f"scores {path}: '{KEY}' is in another file, which is not followed")
        if found.nbytes > MAX_ARRAYS:
            raise UserError(f"scores {path}: '{KEY}' has more than {MAX_ARRAYS} bytes")
        return found[()]


def _read_png(path: Path) -> np.ndarray:
    check_regular(path)
    with open_image(path, ["PNG"]) as image:
        image.load()  # text entries may follow the pixels
        values, texts = np.asarray(image), image.text
        is_16_bit = image.mode.startswith("I") and values.ndim == 2
    if not is_16_bit:
        raise UserError(
            f"scores {path}: a PNG must have one channel of 16 bits, not {values.shape} of "
            f"{values.dtype}"
        )
    scale = {key: texts.get(key) for key in ("offset", "step")}
    if not scale.keys() & texts.keys():
        return values.astype(np.uint16)
    try:
        offset, step = map(float, scale.values())
    except (TypeError, ValueError):
        offset = step = math.nan
    if not (math.isfinite(offset) and math.isfinite(step) and step > 0):
        shown = ", ".join(f"{key} {text!r}" for key, text in scale.items())
        raise UserError(f"scores {path}: its text has {shown}: two numbers, step above 0, expected")
    return offset + step * values.astype(np.float64)


_READERS: dict[str, Any] = {
    ".npy": _read_arrays,  # by the content, whatever the name
    ".npz": _read_arrays,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".png": _read_png,
}
