"""The table of events and its page."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from tdos_d2.errors import UserError
from tdos_d2.inference.events import EventLog, clock, words_of, write_page
from tdos_d2.inference.tracking import Track


def track(number: int, score: float, alarm: int | None = 7) -> Track:
    peak = {"max_score": score, "mean_score": 0.5, "area": 150, "box": (3, 4, 23, 14),
            "nearest_words": [["<elk>", 0.3], ["sea", 0.2]]}  # fmt: skip
    return Track(number, 5, 0.2, (0, 0, 1, 1), 40, 3661.5, 30, alarm, peak, 9, 0.36, b"a picture")


class Page(HTMLParser):
    """What a browser would show: texts, and where pictures are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts, self.pictures, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.pictures += [value for name, value in attrs if (tag, name) == ("img", "src")]

    def handle_data(self, data):
        self.texts.append(data)


def test_table_and_page(tmp_path):
    name = 'a & <script>"1".mp4'
    log = EventLog(tmp_path)
    assert log.add(name, tmp_path / "a#1 %_events", track(1, -2.0))
    assert not log.add(name, tmp_path / "a#1 %_events", track(2, 99.0, alarm=None))
    assert EventLog(tmp_path).add("b.mp4", tmp_path / "b_events", track(3, 1.25))  # another run
    with open(tmp_path / "events.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["input"] == name and second["input"] == "b.mp4"
    expected = {"track": "1", "start": "0.200", "end": "3661.500", "first_frame": "5",
                "last_frame": "40", "frames": "30", "alarm_frame": "7", "peak_score": "-2",
                "peak_frame": "9", "area": "150", "x0": "3", "y1": "14", "words": "<elk>, sea",
                "picture": "a#1 %_events/000001.jpg"}  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    page = Page(write_page(tmp_path).read_text())
    text = " ".join(" ".join(page.texts).split())
    assert "2 events in 2 inputs" in text and "script" not in page.tags and name in text
    assert text.index("b.mp4") < text.index(name)  # by score
    assert "0:00:00.200 \u2013 1:01:01.500" in text and "150 pixels, 20 \xd7 10" in text
    assert [(tmp_path / unquote(p)).read_bytes() for p in page.pictures] == [b"a picture"] * 2


@pytest.mark.parametrize("cut", ["a.mp4,1,0.0", 'a.mp4,1,0.0,"<elk>, s', "a.mp4,1,0.0,\xe9", "\n"])
def test_a_row_that_was_cut_off(tmp_path, cut):
    """It is skipped, also if cut within quotes or a letter, and no other row is joined to it."""
    EventLog(tmp_path).add("first.mp4", tmp_path / "first_events", track(1, 2.0))
    with open(tmp_path / "events.csv", "ab") as file:
        file.write(cut.encode("utf-8")[: -1 if cut.endswith("\xe9") else None])
    write_page(tmp_path)
    for name in ("second.mp4", "third.mp4"):  # each by another run
        assert EventLog(tmp_path).add(name, tmp_path / "other_events", track(2, 1.0))
        text = " ".join(Page(write_page(tmp_path).read_text()).texts)
        assert name in text and "first.mp4" in text and "a.mp4" not in text
    assert "3 events in 3 inputs" in " ".join(text.split())


def test_no_events(tmp_path):
    EventLog(tmp_path)
    page = write_page(tmp_path).read_text()
    assert "0 events" in page and "Nothing raised the alarm" in page


def test_another_table(tmp_path):
    (tmp_path / "events.csv").write_text("when,what\n")
    with pytest.raises(UserError, match="events.csv is not a table of events"):
        EventLog(tmp_path)
    assert (tmp_path / "events.csv").read_text() == "when,what\n"


def test_texts():
    assert words_of({"word": "elk", "nearest_words": [["sea", 0.1], ["elk", 0.1]]}) == "elk, sea"
    assert words_of({"word": None}) == ""
    assert [clock(s) for s in ("62.5", "59.9996", "7200")] == [
        "0:01:02.500", "0:01:00.000", "2:00:00.000"
    ]  # fmt: skip
