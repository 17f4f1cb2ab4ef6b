"""The checkpoint that ``--resume`` continues from: the last undamaged one."""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from pathlib import Path

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
    return tag.parent / tag.read_text().strip() if tag.is_file() else None


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
