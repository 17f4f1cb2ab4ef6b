"""The checkpoint that ``--resume`` continues from: the last undamaged one."""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..errors import UserError
from ..files import once_per_file

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
_BLOCK = 2**22


def resume_file(cfg: CfgNode) -> Path | None:
    """The checkpoint that ``--resume`` continues from: the last one in ``OUTPUT_DIR``.

    If it is damaged (the machine stopped during writing), the previous one is used. If there is no
    checkpoint, the result is ``SOLVER.RESUME_FROM`` or None, so that the command of a run that
    started from another run's checkpoint can be repeated.

    Raises:
        UserError: ``last_checkpoint`` or the key names a missing file, or all checkpoints are
            damaged.
    """
    named, given = _named(cfg), cfg.SOLVER.RESUME_FROM
    if named is None:
        if given and not Path(given).is_file():
            raise UserError(f"SOLVER.RESUME_FROM: no file {given}")
        return Path(given) if given else None
    whole = next((path for path in [named, *_before(named)] if not damage(path)), None)
    if whole is not None:
        return whole
    if not named.is_file():
        tag = named.with_name("last_checkpoint")
        raise UserError(f"{tag} names {named.name}, which is not in that folder")
    raise UserError(
        f"cannot resume: {named} cannot be read, it may be damaged ({damage(named)}), and there is "
        "no earlier checkpoint"
    )


def check_batch_size(cfg: CfgNode, path: Path, info: Mapping[str, Any]) -> None:
    """Compare the images per step with those of the run that is resumed.

    Iterations, schedule and the order of the data continue at the checkpoint's iteration, which is
    elsewhere in the data if a step takes another number of images.

    Args:
        cfg: scaled to the number of processes.
        path: the checkpoint.
        info: its information; of an earlier version, it has no "batch_size".

    Raises:
        UserError: ``SOLVER.REFERENCE_WORLD_SIZE`` changed the number, as the run had another number
            of processes. (If the config itself changed it, that is only logged.)
    """
    before, now = info.get("batch_size", cfg.SOLVER.IMS_PER_BATCH), cfg.SOLVER.IMS_PER_BATCH
    if before == now:
        return
    said = f"a step takes {now} images, in the run of {path} it took {before}"
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise UserError(
            f"cannot resume: {said}. SOLVER.REFERENCE_WORLD_SIZE scales batch and schedule by the "
            f"number of processes: go on with as many as before, or with REFERENCE_WORLD_SIZE 0, "
            f"IMS_PER_BATCH {before}, and the MAX_ITER, WARMUP_ITERS and BASE_LR of that run"
        )
    logger.warning(f"{said}: the order of the data does not go on where it stopped")


def warn_of_damage(cfg: CfgNode, used: Path | None) -> None:
    """Log that ``used`` is not the last checkpoint, if it is not."""
    named = _named(cfg) if used is not None else None
    if named is not None and used != named:
        logger.warning(f"{named} is damaged ({damage(named)}): going on from {used} instead")


def damage(path: Path) -> str:
    """The damage in a file of ``torch.save``; "" if it is intact.

    The file has a CRC-32 of each record, and its table at the end, which reveal truncated files and
    blocks that never reached the disk. Files of other formats are not checked.
    """
    return _damage(path) if path.is_file() else "it is not there"


def _named(cfg: CfgNode) -> Path | None:
    tag = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if not tag.is_file():
        return None
    # Empty after a crash, it would name the folder, and _before would look beside that.
    name = tag.read_text(errors="replace").strip()
    return tag.parent / (name if name.endswith(".pth") and Path(name).name == name else "no file")


def _before(path: Path) -> list[Path]:
    """Checkpoints of earlier iterations in the folder of ``path``, the latest first.

    Those of later iterations may be from another run.
    """
    own = _NUMBERED.fullmatch(path.name)
    found = {int(m[1]): p for p in path.parent.iterdir() if (m := _NUMBERED.fullmatch(p.name))}
    return [found[i] for i in sorted(found, reverse=True) if own is None or i < int(own[1])]


@once_per_file(8)
def _damage(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                with archive.open(record) as file:  # reading to the end checks the CRC-32
                    while file.read(_BLOCK):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        with open(path, "rb") as file:
            start = file.read(2)
        if start not in (b"PK", b"", b"\0\0"):
            return ""  # from torch before 1.6, or Detectron2's .pkl
        return " ".join(str(error).split()) or type(error).__name__
    return ""
