"""The page to try models on, as a program and as a person use it. Needs gradio, the extra 'app'."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from colour_model import save_checkpoint
from PIL import Image

from tdos_commands.app import parser
from tdos_d2.errors import UserError
from tdos_d2.inference.app import page as app_page
from tdos_d2.inference.app.models import Models
from tdos_d2.inference.app.trial import Limits

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="needs gradio, the extra 'app'"
)


@pytest.fixture
def models(tiny_cfg, tmp_path):
    """Models of which the first is tiny."""
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    save_checkpoint(tiny_cfg, tmp_path)
    tiny_cfg.MODEL.WEIGHTS = ""
    (tmp_path / "model.yaml").write_text(tiny_cfg.dump())
    return Models([(str(tmp_path / "model.yaml"), str(tmp_path / "model.pth"))])


@pytest.fixture
def served(models, tmp_path, monkeypatch):
    """A running page with a tiny model: its address, the model, a list that forwards add to."""
    monkeypatch.setattr(app_page, "_DRAWN", ("sofa", None))
    monkeypatch.setattr(app_page, "_SIZE", (96, 192))
    model, calls = models(models.names[0]).predictor.model, []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: calls.append(1) or forward(x))
    gr = app_page.import_gradio(str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    page = app_page.make_page(gr, models, Limits(upload_mb=1), tmp_path / "kept")
    _, url, _ = page.launch(
        **app_page.launch_options(gr, Limits(upload_mb=1)), server_name="127.0.0.1", quiet=True,
        prevent_thread_lock=True,
    )  # fmt: skip
    yield url, models.names[0], calls
    page.close()


@pytest.fixture
def street(tmp_path):
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    return path


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    return path


def test_by_default_it_listens_on_this_machine_only():
    args = parser().parse_args([])
    assert args.host == "127.0.0.1" and args.model == []


def test_gradio_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'gradio: pip install "gradio>=6,<7"'):
        app_page.import_gradio("unused")


@needs_gradio
def test_as_a_program(served, street, broken, tmp_path):
    client = pytest.importorskip("gradio_client")
    url, name, calls = served
    user = client.Client(url, verbose=False)
    user.predict(client.handle_file(street), name, "", -4.0, api_name="/find")
    assert len(calls) == 1
    shown = [user.predict(0, threshold, False, api_name="/show") for threshold in (-8.0, 0.0)]
    pictures = [np.asarray(Image.open(one[0])).astype(int) for one in shown]
    assert len(calls) == 1 and np.abs(pictures[0] - pictures[1]).max() > 60
    # All pixels have a score above -8, none is above 0.
    assert [row[5] for row in shown[0][3]["data"]] == [96 * 128] and shown[1][3]["data"] == []
    files = user.predict(-4.0, False, api_name="/write")
    assert [Path(f).name for f in files] == ["street_mask.png", "street_raw.png", "street.json"]
    with pytest.raises(client.exceptions.AppError, match="cannot read image broken.png"):
        user.predict(client.handle_file(broken), name, "", -4.0, api_name="/find")
    # Another session has seen nothing of this one.
    other = client.Client(url, verbose=False)
    assert other.predict(0, -8.0, False, api_name="/show")[0] is None
    with pytest.raises(client.exceptions.AppError, match="drop a file first"):
        other.predict(-8.0, False, api_name="/write")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2**20 + 1))
    with pytest.raises(Exception, match="(?i)size|413|large"):
        user.predict(client.handle_file(large), name, "", -4.0, api_name="/find")
    assert len(calls) == 1


@needs_gradio
def test_an_earlier_file_does_not_replace_a_later_one(served, street, tmp_path, monkeypatch):
    """Whichever is computed last; and the page sends the later one while the first is computed."""
    client = pytest.importorskip("gradio_client")
    url, name, calls = served
    slow = Path(shutil.copy(street, tmp_path / "slow.png"))
    begun, go_on, predict = threading.Event(), threading.Event(), app_page.predict

    def wait_for_the_other(models, name, path, *rest):
        if path.name == slow.name:
            begun.set()
            assert go_on.wait(20)
        return predict(models, name, path, *rest)

    monkeypatch.setattr(app_page, "predict", wait_for_the_other)
    user = client.Client(url, verbose=False)
    first = user.submit(client.handle_file(slow), name, "", -4.0, api_name="/find")
    assert begun.wait(20)
    user.predict(client.handle_file(street), name, "", -4.0, api_name="/find")
    go_on.set()
    first.result()
    assert user.predict(0, -4.0, False, api_name="/show")[4].startswith("street.png: ")
    assert len(calls) == 2
    later = [d for d in user.config["dependencies"] if d["api_name"].startswith("find")]
    assert later and all(d["trigger_mode"] == "multiple" for d in later)


def wait(look, seconds=60.0):
    """What ``look`` gives, as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if (found := look()) is not None and found is not False:
                return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(word)
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


DESKTOP, PHONE = (1440, 1000), (390, 844)


class Visitor:
    """A person at the page in a window of a width and height."""

    def __init__(self, driver, url: str, width: int, height: int) -> None:
        self.driver, self.width = driver, width
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(url)

    def drop(self, path: Path) -> None:
        """Drop a file; one that was dropped before is removed first."""
        for button in self._all("[aria-label='Clear'], [aria-label='Remove file']"):
            button.click()
        wait(lambda: self._all("input[type=file]")[0]).send_keys(str(path))

    def set_threshold(self, value: float) -> None:
        slide = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.driver.execute_script(slide, self._all("input[type=range]")[0], value)

    def reads(self, words: str) -> None:
        """Wait until the page shows these words."""
        wait(lambda: words in self._all("body")[0].text)

    def outlined(self) -> list[list[int]]:
        """x0, y0, x1, y1 of each outline in the picture that is seen, from left to right."""
        image = self._all("[role=tabpanel] img:not(.thumbnail-lg)")[0]
        with urllib.request.urlopen(image.get_attribute("src")) as answer:
            picture = np.asarray(Image.open(io.BytesIO(answer.read()))).astype(int)
        # Neither grey nor the colours of scores have more green than red: outlines are cyan.
        cyan = np.uint8(picture[..., 1] - picture[..., 0] > 60)
        joined = cv2.morphologyEx(cyan, cv2.MORPH_CLOSE, np.ones((5, 5)))
        stats = cv2.connectedComponentsWithStats(joined)[2][1:]
        return sorted([x, y, x + w, y + h] for x, y, w, h, _ in stats.tolist())

    def sees(self, *boxes: tuple[int, int, int, int]) -> None:
        """Wait until the outlines are those of the boxes, to 3 pixels."""
        def same() -> bool:
            found = self.outlined()
            return len(found) == len(boxes) and bool(
                np.abs(np.subtract(found, boxes, dtype=float)).max(initial=0) <= 3
            )

        wait(same)

    def check_layout(self) -> None:
        """Nothing is wider than the window; scenes and the model's name are whole and uncovered."""
        root, scenes = self._all("html")[0], self._all(".grid-container")[0]
        assert root.get_property("scrollWidth") <= self.width
        assert scenes.get_property("scrollWidth") <= scenes.get_property("clientWidth")
        title, scene = self._all(".drawn label")[0].rect, self._all(".drawn .thumbnail-lg")[0].rect
        assert title["y"] + title["height"] <= scene["y"]
        name, arrow = self._all(".model input")[0].rect, self._all(".model .icon-wrap")[0].rect
        assert name["x"] + name["width"] <= arrow["x"]

    def _all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)


# Boxes with scores -5 and -2 in street(); the rest has -8.
LEFT, RIGHT = (20, 30, 60, 70), (100, 40, 130, 80)


@pytest.fixture
def score_of_red(models, monkeypatch):
    """Make the score of a pixel its red / 32 - 8."""
    model = models(models.names[0]).predictor.model
    forward = model.forward

    def score(inputs):
        (output,) = forward(inputs)
        return [{**output, "ood_score": inputs[0]["image"][0] / 32 - 8}]

    monkeypatch.setattr(model, "forward", score)


@pytest.fixture
def two_objects(tmp_path):
    image = np.zeros((96, 160, 3), np.uint8)
    for (x0, y0, x1, y1), red in ((LEFT, 96), (RIGHT, 192)):
        image[y0:y1, x0:x1] = 0, 0, red
    path = tmp_path / "two.png"
    cv2.imwrite(str(path), image)
    return path


@needs_gradio
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_as_a_person(size, score_of_red, served, two_objects, broken, chromium):
    url, _, calls = served
    visitor = Visitor(chromium, url, *size)
    visitor.drop(two_objects)
    visitor.reads("two.png: 1 object of ")
    visitor.sees(RIGHT)  # at -4, the middle of the slider
    visitor.set_threshold(-6)
    visitor.reads("two.png: 2 objects of ")
    visitor.sees(LEFT, RIGHT)
    visitor.check_layout()
    visitor.set_threshold(-1)
    visitor.reads("two.png: 0 objects of ")
    visitor.sees()
    assert len(calls) == 1
    visitor.drop(broken)
    visitor.reads("cannot read image broken.png")
    visitor.check_layout()
    assert len(calls) == 1
    loaded = chromium.execute_script(
        "return performance.getEntriesByType('resource').map(x => x.name)"
    )
    assert loaded and [address for address in loaded if not address.startswith(url)] == []


@needs_gradio
def test_a_file_dropped_while_a_video_is_computed(
    score_of_red, served, two_objects, chromium, tmp_path, monkeypatch
):
    url, _, calls = served
    video = tmp_path / "long.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 96))
    for _ in range(5):
        writer.write(np.full((96, 160, 3), (0, 0, 255), np.uint8))
    writer.release()
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    predict = app_page.predict

    def slow(models, name, path, words, limits, report):
        def wait_and_report(share):
            begun.set()
            assert go_on.wait(60)
            report(share)

        if path.name != video.name:
            return predict(models, name, path, words, limits, report)
        try:
            return predict(models, name, path, words, limits, wait_and_report)
        finally:
            ended.set()

    monkeypatch.setattr(app_page, "predict", slow)
    visitor = Visitor(chromium, url, *DESKTOP)
    visitor.drop(video)
    assert begun.wait(60)
    visitor.drop(two_objects)
    visitor.reads("two.png: 1 object of ")
    go_on.set()
    assert ended.wait(60)
    visitor.set_threshold(-6)  # shows what the session holds now
    visitor.reads("two.png: 2 objects of ")
    visitor.sees(LEFT, RIGHT)
    assert len(calls) == 2  # the rest of the video was not computed
