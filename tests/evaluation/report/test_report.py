"""The page: complete in itself, and what it says."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from report_sets import fill, section_of

from tdos_d2.errors import UserError
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.report.page import write_report

VOID_TAGS = {"meta", "link", "img", "br"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ROWS = [{"dataset": "tiny", "AP": 81.234, "sIoU": math.nan}]


class Page(HTMLParser):
    """Text, attributes and pictures of a page; every tag has to be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.links, self.ids = [], [], [], []
        self.pictures: list[bytes] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID_TAGS:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "src":
                self.pictures.append(base64.b64decode(value.split(",", 1)[1], validate=True))
        assert tag != "img" or dict(attrs)["alt"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Folder, section and text of a report on the hand-made set, once more under another name."""
    folder = tmp_path_factory.mktemp("report")
    section = section_of(fill(folder), folder)
    other = dataclasses.replace(section, dataset="<b>odd & name</b>")
    path = write_report(folder / "out", "model <x>", [ROWS], [section, other], {"hidden_test": 7})
    return path.parent, section, path.read_text("utf-8")


def test_page_needs_nothing_else(reported):
    text = reported[2]
    page = Page(text)
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} == set(page.ids)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"//|@import|url\(|<script", bare)


def test_figures_are_in_the_page_and_in_files(reported):
    folder, section, text = reported
    pictures = Page(text).pictures
    for kind in ("pr", "roc", "histogram"):
        png = (folder / f"tiny_{kind}.png").read_bytes()
        assert png in pictures
        figure = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert figure.shape[1] > 700 and len(np.unique(figure[..., 0])) > 50
    # Per set three figures, a scale, and two pictures of each of four frames.
    assert len(pictures) == 2 * (3 + 1 + 2 * 4)
    order = [pictures.index(frame.score) for frame in (*section.worst, *section.best)]
    assert order == sorted(order)
    assert all(cv2.imdecode(np.frombuffer(x, np.uint8), 1) is not None for x in pictures)


def test_captions_say_what_was_measured(reported):
    text = Page(reported[2]).text
    assert "<b>odd" not in reported[2]
    assert "81.23" in text and "model <x>" in text and "<b>odd & name</b>" in text
    # 5 frames of 60x90, 4 rows of each void, 4 objects of 20x40
    assert "frames 5" in text and "25,200 labelled, 12.7 % of them OOD; 6.67 % of all" in text
    assert "my_score" in text and "at least 10 predicted and 5 true pixels" in text
    threshold = re.search(r"score >= (\S+) \(best pixel F1\)", text).group(1)
    assert 1 < float(threshold) < 4
    assert "of 4 frames with OOD and known pixels (1 have not both)" in text
    assert text.index("town/bad") < text.index("Best frames") < text.index("town/perfect")
    assert "AP 100.00" in text and "hidden_test: 7 frames without public labels" in text
    assert re.search(r"tdos_d2 \d+\.\d+\.\d+, Python 3\.\d+\.\d+, numpy \d", text)


def test_tables_are_escaped_and_numbers_aligned(tmp_path):
    rows = [{"dataset": "a<i>&", "AP": math.nan, "n": 3}, {"dataset": "b", "F1": "2.00 [1.0, 3.0]"}]
    text = write_report(tmp_path / "out", "m", [rows], []).read_text("utf-8")
    start = text.index("<table>")
    table = re.sub(r"\s*\n", "", text[start : text.index("</table>")])
    assert table == (
        '<table><thead><tr><th class="text">dataset</th><th>AP</th><th>n</th><th>F1</th></tr>'
        '</thead><tbody><tr><td class="text">a&lt;i&gt;&amp;</td><td>-</td><td>3</td><td></td></tr>'
        '<tr><td class="text">b</td><td></td><td></td><td class="text">2.00 [1.0, 3.0]</td></tr>'
        "</tbody>"
    )


def test_names_of_frames_are_escaped(tmp_path):
    evaluated = fill(tmp_path)
    for i, record in enumerate(evaluated.records):
        record["image_id"] = f'"><script>alert({i})</script>'
    section = section_of(evaluated, tmp_path)
    text = write_report(tmp_path / "out", "<b>m</b>", [], [section]).read_text("utf-8")
    assert "<script>alert" not in text and "<b>m</b>" not in text
    assert "&lt;script&gt;alert(0)" in text


def test_set_without_ood(tmp_path):
    evaluated = fill(tmp_path)
    frame = check_frame(np.eye(60, 90), np.zeros((60, 90), int), "x")
    evaluated.frames = evaluated.frames.__class__(tmp_path)
    evaluated.frames.append(frame)
    evaluated.records = evaluated.records[:1]
    evaluated.components = evaluated.components[:1]
    section = section_of(evaluated, tmp_path)
    display = section.display._replace(threshold=math.nan)
    section = dataclasses.replace(section, curves={}, display=display)
    path = write_report(tmp_path / "out", "m", [], [section])
    text = Page(path.read_text("utf-8")).text
    assert "none: the labels have no OOD pixel" in text and "none is best or worst" in text
    assert sorted(x.name for x in path.parent.iterdir()) == ["index.html", "tiny_histogram.png"]


def test_nothing_to_say_is_no_error_and_no_folder_is_one(tmp_path):
    path = write_report(tmp_path / "out", "m", [], [], {"hidden_test": 2})
    assert "hidden_test: 2 frames" in Page(path.read_text("utf-8")).text
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write report .*file"):
        write_report(tmp_path / "file", "m", [], [])


def test_in_a_browser(reported, tmp_path):
    """All pictures are shown, and 1280 pixels are wide enough."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    tells = """<script>window.onload = () => { document.title = JSON.stringify([
        document.documentElement.scrollWidth, innerWidth,
        [...document.images].filter(i => i.naturalWidth > 0).length]) }</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(reported[2].replace("</body>", tells), "utf-8")
    command = [browser, "--headless", "--disable-gpu", "--no-sandbox", "--hide-scrollbars"]
    command += ["--window-size=1280,900", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    title = re.search(r"<title>\[(.*)\]</title>", done.stdout)
    assert title, done.stderr[-2000:]
    needed, given, shown = map(int, title.group(1).split(","))
    assert needed <= given <= 1280 and shown == 24
