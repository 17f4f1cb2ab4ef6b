"""Reports on datasets: the content of their files, compared with the publishers' statements."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from tqdm.contrib.concurrent import thread_map

from ...cores import usable_cores
from ...errors import UserError
from ..datasets.builtin import BUILTIN
from ..datasets.folder import MissingDatasetError
from ..reading import (
    IGNORE,
    check_same_size,
    read_image,
    read_instances,
    read_label,
    read_region,
    read_values,
    value_table,
)
from .quick import check_registered, list_frames


class ExpectedContent(NamedTuple):
    """Content of a dataset according to its publishers; None = unknown."""

    frames: int | None = None
    sizes: Sequence[str] | None = None  # "WxH"


# For the datasets that datasets/verify.py checks by default. Label values are in the metadata.
EXPECTED_CONTENT = {
    name: ExpectedContent(**entry["expected"])
    for name, entry in BUILTIN.items()
    if "expected" in entry
}
_ALIASES = {"fs_static_val": "fs_static_v2_val"}


@dataclass
class DatasetReport:
    """Content and problems of the dataset ``name``."""

    name: str
    frames: int = 0
    expected_frames: int | None = None  # None = not known
    sizes: dict[str, int] = field(default_factory=dict)  # number of images of each "WxH"
    # Pixels of each value in the label files, before translation and outside of the region mask.
    values: dict[int, int] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)  # value -> known, OOD, void or undeclared
    masked: int = 0  # pixels under the region mask
    has_labels: bool = True  # False for a hidden test split
    # Number of labels without an OOD pixel; None if the dataset declares no OOD value.
    without_anomaly: int | None = None
    problems: list[str] = field(default_factory=list)  # one line each

    def percent(self, pixels: int) -> float:
        """Percentage of ``pixels`` in all labels."""
        return 100 * pixels / max(1, self.masked + sum(self.values.values()))

    def to_json(self) -> dict[str, Any]:
        """For ``json.dump``: percentages instead of pixels, and ``ok`` = no problems."""
        values = {
            str(value): {"role": self.roles[value], "percent": self.percent(count)}
            for value, count in self.values.items()
        }
        content = asdict(self) | {"values": values, "masked": self.percent(self.masked)}
        del content["roles"]
        return content | {"ok": not self.problems}


class _Frame(NamedTuple):
    """Content of the files of one frame; None = not read, the reason is in ``errors``."""

    size: str | None
    counts: np.ndarray | None  # (256,) pixels per label value outside of the region mask
    masked: int
    errors: list[str]


def verify_dataset(name: str, jobs: int | None = None) -> DatasetReport:
    """Read every file of a registered dataset and compare it with what the publishers state.

    Args:
        name: name of the dataset.
        jobs: number of threads; None = number of CPU cores.

    Raises:
        MissingDatasetError: the dataset is not on disk.
        UserError: no dataset has this name.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    expected = EXPECTED_CONTENT.get(_ALIASES.get(name, name), ExpectedContent())
    has_labels = metadata.get("has_labels", True)
    report = DatasetReport(name, expected_frames=expected.frames, has_labels=has_labels)
    try:
        if metadata.get("folder") is None:
            records = list_frames(name)
        else:
            folder = metadata.folder.locate(name)
            records = folder.frames(name)
            report.problems += [f"label without image: {path}" for path in folder.stray_labels()]
        roles = _roles(metadata) if has_labels else []
    except MissingDatasetError:
        raise
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.frames = len(records)
    if expected.frames not in (None, report.frames):
        report.problems.append(f"{report.frames} frames, {expected.frames} expected")
    bar = {"desc": name, "unit": "frame", "leave": False}
    read = partial(_read_frame, metadata=metadata)
    frames = thread_map(read, records, max_workers=jobs or usable_cores(), **bar)
    report.sizes = dict(Counter(frame.size for frame in frames if frame.size).most_common())
    report.masked = sum(frame.masked for frame in frames)
    report.problems += [error for frame in frames for error in frame.errors]
    wrong = set(report.sizes) - set(expected.sizes or report.sizes)
    if wrong:
        found, sizes = ", ".join(sorted(wrong)), " or ".join(expected.sizes or ())
        report.problems.append(f"images of {found}, {sizes} expected")
    if has_labels:
        _check_values(report, records, frames, roles)
    return report


def _roles(metadata: Metadata) -> list[str]:
    """Meaning of each of the 256 values of a label file; for colour masks, of the labels."""
    if metadata.get("label_colours"):
        ood = 1 if metadata.evaluator_type == "ood" else len(metadata.stuff_classes)
        others, declared = {ood: "OOD", IGNORE: "void"}, metadata.label_colours.values()
        # No pixel can be undeclared, as reading a mask with an unknown colour is an error.
        roles = {label: others.get(label, "known") for label in (*declared, IGNORE)}
        return [roles.get(i, "undeclared") for i in range(256)]
    if metadata.get("evaluator_type") == "ood":
        roles = ["undeclared"] * 256
        for role, key in (("known", "id"), ("OOD", "ood"), ("void", "ignore")):
            for value in metadata.get(f"{key}_values", ()):
                roles[value] = role
        return roles
    table = value_table(metadata)
    names = {-1: "undeclared", IGNORE: "void", len(metadata.stuff_classes): "OOD"}
    return [names.get(int(meaning), "known") for meaning in table]


def _read_frame(record: dict[str, Any], metadata: Metadata) -> _Frame:
    """Decode all files of a frame, even if one of them is unreadable."""
    image, label, counts, masked, errors = None, None, None, 0, []

    @contextmanager
    def reported() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            errors.append(str(error))
        except Exception as error:  # an error in one frame must not stop the check of the others
            errors.append(f"frame {record}: {type(error).__name__}: {error}")

    with reported():
        image = read_image(record["file_name"])
    with reported():
        path, mask = record.get("sem_seg_file_name"), record.get("region_mask_file_name")
        if path is not None and not os.path.isfile(path):
            raise UserError(f"image without label: {record['file_name']} (no file {path})")
        if path is not None:
            coloured = metadata.get("label_colours")
            label = read_label(path, metadata) if coloured else read_values(path)
            if image is not None:
                check_same_size(f"label {path}", label, f"its image {record['file_name']}", image)
            inside = None if mask is None else read_region(mask, path, label)
            counted = label if inside is None else label[~inside]
            if counted.size and not 0 <= counted.min() <= counted.max() <= 255:
                raise UserError(f"label {path} has values outside of 0..255")
            counts = np.bincount(counted.astype(np.uint8).ravel(), minlength=256)
            masked = label.size - counted.size
    with reported():
        if label is not None and "instance_file_name" in record:
            read_instances(record["instance_file_name"], path, label)
    size = None if image is None else f"{image.shape[1]}x{image.shape[0]}"
    return _Frame(size, counts, masked, errors)


def _check_values(
    report: DatasetReport, records: Sequence[dict[str, Any]], frames: Sequence[_Frame],
    roles: list[str],
) -> None:
    """Count the label values; report undeclared ones and missing known or OOD pixels."""
    read = [(r, f.counts) for r, f in zip(records, frames, strict=True) if f.counts is not None]
    total = sum((counts for _, counts in read), np.zeros(256, np.int64))
    report.values = {int(value): int(total[value]) for value in np.flatnonzero(total)}
    report.roles = {value: roles[value] for value in report.values}
    undeclared = [value for value, role in report.roles.items() if role == "undeclared"]
    if undeclared:
        paths = [r["sem_seg_file_name"] for r, counts in read if counts[undeclared].any()]
        values = ", ".join(map(str, undeclared))
        report.problems.append(
            f"undeclared label values {values} in {len(paths)} files, first {paths[0]}"
        )
    anomalous = [value for value, role in enumerate(roles) if role == "OOD"]
    if anomalous:
        report.without_anomaly = sum(not counts[anomalous].any() for _, counts in read)
    for role in ("known", "OOD"):
        declared = [value for value, meaning in enumerate(roles) if meaning == role]
        if read and declared and not total[declared].any():
            found = format_ranges(report.values) or "none"
            report.problems.append(
                f"no {role} pixel in any label: declared {role} values are "
                f"{format_ranges(declared)}, found are {found}"
            )


def format_ranges(values: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs = itertools.groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0])
    ends = [[value for _, value in run] for _, run in runs]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends)
