"""Events (tracks that raised an alarm) in videos: an append-only table, and a page of pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ..errors import UserError
from ..files import atomic_write
from ..templates import page_environment
from .tracking import Track

TABLE, PAGE = "events.csv", "events.html"
COLUMNS = (
    "input", "track", "start", "end", "first_frame", "last_frame", "frames", "alarm_frame",
    "peak_score", "peak_time", "peak_frame", "mean_score", "area", "x0", "y0", "x1", "y1",
    "words", "picture",
)  # fmt: skip
_ENVIRONMENT = page_environment(Path(__file__).parent)


class EventLog:
    """Writes each event when it ends, and keeps none in memory: the page is made from the table.

    Rows of earlier runs are kept. If the last one was cut off, as by a full disk, it is ended.

    Args:
        folder: existing folder for ``events.csv``, ``events.html`` and the pictures.

    Raises:
        UserError: an existing ``events.csv`` has other columns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / TABLE
        if self.table.is_file() and self.table.stat().st_size:
            with _open(self.table) as file:
                if tuple(next(csv.reader(file), ())) != COLUMNS:
                    raise UserError(f"{self.table} is not a table of events: name another folder")
            self._end_last_row()
        else:
            self._append(COLUMNS)

    def add(self, name: str, pictures: Path, track: Track) -> bool:
        """Write a track if it raised an alarm; other tracks are not events.

        Args:
            name: name of the input.
            pictures: folder for its picture, below the log's; created if missing.
            track: a track that has ended.

        Returns:
            Whether it is an event.
        """
        if track.alarm_frame is None:
            return False
        pictures.mkdir(parents=True, exist_ok=True)
        picture = pictures / f"{track.number:06d}.jpg"
        with atomic_write(picture) as file:
            file.write(track.picture)
        peak = track.peak
        self._append([
            name, track.number, f"{track.start:.3f}", f"{track.end:.3f}",
            track.first_frame, track.last_frame, track.seen, track.alarm_frame,
            f"{peak['max_score']:.6g}", f"{track.peak_time:.3f}", track.peak_frame,
            f"{peak['mean_score']:.6g}", peak["area"], *peak["box"],
            words_of(peak), picture.relative_to(self.folder).as_posix(),
        ])  # fmt: skip
        return True

    def _end_last_row(self) -> None:
        with _open(self.table) as file:
            quotes, last = 0, ""
            for line in file:
                quotes, last = quotes + line.count('"'), line
        quote = '"' if quotes % 2 else ""
        if quote or not last.endswith("\n"):
            with open(self.table, "a", newline="", encoding="utf-8") as file:
                file.write(f"{quote}\n")

    def _append(self, row: Sequence[Any]) -> None:
        with open(self.table, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


def write_page(folder: Path) -> Path:
    """Write ``events.html`` from all complete rows of ``events.csv``, the highest score first.

    Returns:
        The path of the page.
    """
    with _open(folder / TABLE) as file:
        complete = (row for row in csv.DictReader(file) if None not in (*row, *row.values()))
        rows = sorted(complete, key=lambda row: -float(row["peak_score"]))
    page = folder / PAGE
    text = _ENVIRONMENT.get_template("events_page.html").render(
        events=rows, inputs=len({row["input"] for row in rows}), table=TABLE
    )
    with atomic_write(page) as file:
        file.write(text.encode())
    return page


def _open(table: Path) -> IO[str]:
    """Open it for reading; a letter that was cut off is no error."""
    return open(table, newline="", encoding="utf-8", errors="replace")


def words_of(found: Mapping[str, Any]) -> str:
    """The model's names for an object: the likeliest word and the nearest OOD words."""
    words = [found["word"]] if found.get("word") else []
    words += [word for word, _ in found.get("nearest_words", ())]
    return ", ".join(dict.fromkeys(words))


def clock(seconds: str) -> str:
    """0:01:02.500 for 62.5 seconds."""
    whole, _, rest = f"{float(seconds):.3f}".partition(".")
    minutes, second = divmod(int(whole), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}.{rest}"


_ENVIRONMENT.filters |= {"clock": clock, "link": quote}
