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
def served(tiny_cfg, tmp_path, monkeypatch):
    """A running page with a tiny model: its address, the model, a list that forwards add to."""
    monkeypatch.setattr(app_page, "_DRAWN", ("sofa", None))
    monkeypatch.setattr(app_page, "_SIZE", (96, 192))
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    save_checkpoint(tiny_cfg, tmp_path)
    tiny_cfg.MODEL.WEIGHTS = ""
    (tmp_path / "model.yaml").write_text(tiny_cfg.dump())
    models = Models([(str(tmp_path / "model.yaml"), str(tmp_path / "model.pth"))])
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


def wait(look, seconds=20.0):
    """What ``look`` gives, as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if (found := look()) is not None and found is not False:
                return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,1000"):
        options.add_argument(word)
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


def picture(browser) -> np.ndarray:
    """The picture that is seen."""
    (image,) = browser.find_elements("css selector", "[role=tabpanel] img:not(.thumbnail-lg)")[:1]
    with urllib.request.urlopen(image.get_attribute("src")) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read()))).astype(int)


@needs_gradio
def test_as_a_person(served, street, broken, browser):
    url, _, calls = served
    browser.get(url)
    wait(lambda: browser.find_element("css selector", "input[type=file]"))
    browser.find_element("css selector", "input[type=file]").send_keys(str(street))
    before = wait(lambda: picture(browser))
    slide = "arguments[0].value = -8; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(slide, browser.find_element("css selector", "input[type=range]"))
    wait(lambda: bool(np.abs(picture(browser) - before).max() > 60))
    assert len(calls) == 1
    browser.find_element("css selector", "[aria-label='Clear'], [aria-label='Remove file']").click()
    wait(lambda: browser.find_element("css selector", "input[type=file]"))
    browser.find_element("css selector", "input[type=file]").send_keys(str(broken))
    wait(lambda: "cannot read image broken.png" in browser.find_element("tag name", "body").text)
    assert len(calls) == 1
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(x => x.name)"
    )
    assert loaded and [address for address in loaded if not address.startswith(url)] == []
