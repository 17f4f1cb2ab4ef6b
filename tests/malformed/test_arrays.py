"""Malformed images, labels, videos, score maps, folders of scores and lists of inputs."""

from __future__ import annotations

import io
import itertools
import json

import cv2
import numpy as np
import pytest
from detectron2.data.catalog import Metadata
from mutations import Case, damaged, json_cases, no_files, outcomes
from PIL import Image

from tdos_d2.data import read_image
from tdos_d2.data.reading import image_size, read_label
from tdos_d2.errors import UserError
from tdos_d2.evaluation.frames import check_frame
from tdos_d2.evaluation.score_files import find_score_files, read_score
from tdos_d2.inference.media import list_inputs, read_results
from tdos_d2.inference.sources import Video

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 24, 3), np.uint8)
LABEL = RNG.integers(0, 2, (16, 24), np.uint8)
SCORE = RNG.random((16, 24)).astype(np.float32)
OOD = Metadata(name="set", evaluator_type="ood")


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def is_image(pixels) -> bool:
    return pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def check(found) -> None:
    assert [o for o in found if o.fault] == []
    assert any(outcome.refused for outcome in found)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF"])
def test_images(form, tmp_path):
    content = saved(Image.fromarray(PIXELS), form)
    cases = itertools.chain(damaged(content), no_files() if form == "PNG" else ())
    check(outcomes(cases, tmp_path / "in", f".{form.lower()}", read_image, is_image))
    if form == "PNG":
        cases = itertools.chain(damaged(content), no_files())
        read = outcomes(cases, tmp_path / "size", ".png", image_size, lambda s: len(s) == 2)
        check(read)


def label_cases():
    yield from damaged(saved(Image.fromarray(LABEL), "PNG"))
    yield from no_files()
    wrong = {
        "value": LABEL + 7, "colour": PIXELS, "16 bits": LABEL.astype(np.uint16) + 300,
        "real": LABEL + np.float32(0.5), "nan": np.full((4, 4), np.nan, np.float32),
        "large": np.full((4, 4), 1e30, np.float32), "negative": np.full((4, 4), -3, np.int32),
    }  # fmt: skip
    for name, values in wrong.items():
        form = "TIFF" if values.dtype.kind == "f" or values.dtype == np.int32 else "PNG"
        content = saved(Image.fromarray(values), form)
        yield Case(name, lambda path, content=content: path.write_bytes(content))


def test_labels(tmp_path):
    def fits(label) -> bool:
        return label.dtype == np.uint8 and label.ndim == 2 and set(np.unique(label)) <= {0, 1, 255}

    check(outcomes(label_cases(), tmp_path / "in", ".png", lambda p: read_label(p, OOD), fits))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_videos(tmp_path, suffix):
    code = cv2.VideoWriter.fourcc(*("mp4v" if suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(tmp_path / f"good{suffix}"), code, 5, (48, 32))
    for _ in range(12):
        writer.write(RNG.integers(0, 256, (32, 48, 3), np.uint8))
    writer.release()

    def read(path):
        return [frame.image.shape for frame in Video(path)]

    def cases():
        yield from damaged((tmp_path / f"good{suffix}").read_bytes())
        yield from no_files()
        for text in ("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "ffconcat version 1.0\nfile a.mp4\n"):
            yield Case("list", lambda path, text=text: path.write_text(text))

    def fits(shapes) -> bool:
        return 0 < len(shapes) <= 12 and all(shape[2:] == (3,) for shape in shapes)

    check(outcomes(cases(), tmp_path / "in", suffix, read, fits))


def score_cases(suffix):
    files = io.BytesIO()
    if suffix == ".npy":
        np.save(files, SCORE)
    elif suffix == ".npz":
        np.savez_compressed(files, value=SCORE)
    elif suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(files, "w") as file:
            file.create_dataset("value", data=SCORE)
    else:
        files = io.BytesIO(saved(Image.fromarray((SCORE * 65535).astype(np.uint16)), "PNG"))
    yield from damaged(files.getvalue())
    yield from no_files()
    if suffix not in (".npy", ".npz"):
        return
    wrong = {
        "nan": np.where(SCORE > 0.9, np.nan, SCORE), "inf": np.where(SCORE > 0.9, np.inf, SCORE),
        "text": np.array([["a"]]), "objects": np.array([[{}]], object), "empty": SCORE[:0],
        "3d": SCORE[None], "0d": np.array(1.0), "complex": SCORE + 1j, "size": SCORE[1:],
        "times": np.zeros((16, 24), "M8[s]"), "records": np.zeros((16, 24), "f4,f4"),
    }  # fmt: skip
    save = np.save if suffix == ".npy" else np.savez
    for name, values in wrong.items():
        yield Case(name, lambda path, values=values: save(path, values, allow_pickle=True))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, %d), }"
    for shape in [(10**9, 10**9), (10**6, 10**4), (-1, 5)]:
        text = header % shape
        content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)
        yield Case("claims", lambda path, content=content: path.write_bytes(content))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".png"])
def test_score_maps(tmp_path, suffix):
    def read(path):
        return check_frame(read_score(path), LABEL, str(path))

    def fits(frame) -> bool:
        return frame.score.shape == LABEL.shape and np.isfinite(frame.score).all()

    check(outcomes(score_cases(suffix), tmp_path / "in", suffix, read, fits))


def folder_cases():
    def files(*names):
        def write(path):
            for name in names:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                np.save(path / name, SCORE)

        return write

    good = files("a.npy", "b.npy")
    yield Case("complete", good)
    yield Case("one is missing", files("a.npy"))
    yield Case("one too many", files("a.npy", "b.npy", "c.npy"))
    yield Case("two for one", lambda p: (good(p), np.savez(p / "b.npz", SCORE)))
    yield Case("hidden", lambda p: (good(p), (p / ".b.npy").write_text("")))
    yield Case("empty", lambda p: p.mkdir())
    yield Case("folder for a file", lambda p: (files("a.npy")(p), (p / "b.npy").mkdir()))
    yield Case("circle", lambda p: (good(p), (p / "more").symlink_to(".")))
    yield Case("link to itself", lambda p: (good(p), (p / "c.npy").symlink_to("c.npy")))
    yield Case("escape in a name", lambda p: (good(p), np.save(p / "\x1b[2J.npy", SCORE)))
    yield Case("line end in a name", lambda p: (good(p), np.save(p / "c\nd.npy", SCORE)))
    yield from no_files()
    yield Case("file", lambda p: p.write_text("a.npy b.npy"))


def test_folders_of_scores(tmp_path):
    found = outcomes(
        folder_cases(), tmp_path / "in", "", lambda path: find_score_files(path, ["a", "b"]),
        lambda files: sorted(files) == ["a", "b"],
    )  # fmt: skip
    check(found)
    assert sum(not outcome.refused for outcome in found) == 3  # complete, hidden, circle


LINES = ["a\0b", "\x1b[31m", "x" * 5000, "~nobody/x", "/dev/zero", "a/../c.png", "", " ",
         "\u202egnp.a", "-", "http://nowhere.invalid/a.png", "a\tb.png", "circle"]  # fmt: skip


def test_lists_on_standard_input(tmp_path, monkeypatch):
    """Each line is an input of its own: what it names is read, or refused by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    for line in LINES:
        try:
            for path, name in list_inputs(["-"], [line + "\n"], tmp_path / "out", set()):
                assert not name.startswith(("/", "..")) and "/../" not in name
                with pytest.raises(UserError) as caught:
                    read_image(path)
                assert "\n" not in str(caught.value) and str(caught.value).isprintable()
        except UserError as error:
            assert str(error).isprintable()


def test_tables_of_earlier_results(tmp_path):
    """Lines that name no files are passed over, as those that broke off."""
    record = {"input": "a.png", "files": {"raw": "a_raw.png", "score": "a_score.png"}}
    found = outcomes(
        json_cases(record, 2), tmp_path / "in", ".jsonl", read_results,
        lambda names: all(isinstance(name, str) for name in names),
    )  # fmt: skip
    assert [outcome for outcome in found if outcome.fault] == []
    (tmp_path / "good.jsonl").write_text(json.dumps(record))
    assert len(read_results(tmp_path / "good.jsonl")) == 2
