"""The page's logic: predict once, show at any threshold, files to take away, what is refused."""

from __future__ import annotations

import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from colour_model import painted, save_checkpoint, see_colours
from PIL import Image
from scipy import ndimage

from tdos_d2.errors import UserError
from tdos_d2.evaluation.operating_point import OperatingPoint, save_operating_point
from tdos_d2.inference import OODPredictor
from tdos_d2.inference.app.models import SHIPPED, Models
from tdos_d2.inference.app.trial import COLUMNS, Limits, predict
from tdos_d2.loading.config_files import load_config, use_shipped_weights


def offer(cfg, folder) -> tuple[Models, str]:
    """Models of which the first is ``cfg``'s, and its name."""
    config = folder / "model.yaml"
    weights = cfg.MODEL.WEIGHTS
    plain = cfg.clone()
    plain.MODEL.WEIGHTS = ""
    config.write_text(plain.dump())
    models = Models([(str(config), weights)])
    return models, models.names[0]


@pytest.fixture
def tiny(tiny_cfg, tmp_path):
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    return offer(save_checkpoint(tiny_cfg, tmp_path), tmp_path)


@pytest.fixture
def noise(tmp_path):
    """A file with noise: its score differs from pixel to pixel."""
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), image)
    return path


def write_video(path, frames, rate=10.0, size=(80, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 4 * i, np.uint8))
    writer.release()
    return path


def test_another_threshold_needs_no_forward_pass(tiny, noise, monkeypatch):
    models, name = tiny
    calls = []
    forward = models(name).predictor.model.forward
    monkeypatch.setattr(
        models(name).predictor.model, "forward", lambda x: calls.append(1) or forward(x)
    )
    trial = predict(models, name, noise)
    assert len(calls) == 1
    score = trial.frames[0][1]["ood_score"]
    pictures = []
    for threshold in np.quantile(score, [0.5, 0.9]):
        view = trial.view(0, float(threshold))
        # scipy's components, another way of counting them
        regions, number = ndimage.label(score >= np.float32(threshold), np.ones((3, 3)))
        areas = sorted(ndimage.sum_labels(regions > 0, regions, range(1, number + 1)))[::-1]
        assert [row[COLUMNS.index("pixels")] for row in view.rows] == areas
        assert view.segmentation.shape[1] == 80 and view.words == {}
        assert f"noise.png: {number} objects" in view.text
        pictures.append(view.overlay)
    assert len(calls) == 1
    assert (pictures[0][:48] != pictures[1][:48]).any()


def test_what_is_said_of_a_threshold(tiny, noise, tmp_path):
    models, name = tiny
    model = models(name)
    assert model.slider == (-8.0, 0.0, -4.0) and model.saved.value is None
    assert "none is saved beside the checkpoint" in predict(models, name, noise).view(0, -1.0).text
    weights = model.predictor.weights
    save_operating_point(weights, OperatingPoint(model.predictor.score, -8.5, "my_set", 50.0))
    again = Models([tuple(name.split(" with "))])(name)
    assert again.slider == (-8.5, 0.0, -8.5)
    assert "best pixel F1 on my_set" in again.about_threshold(-8.5)
    assert "as set: the saved one is -8.5" in again.about_threshold(-1.0)


def test_files_to_take_away(tiny, noise, tmp_path):
    models, name = tiny
    trial = predict(models, name, noise)
    score = trial.frames[0][1]["ood_score"]
    threshold = float(np.quantile(score, 0.8))
    files = trial.write(tmp_path / "out", threshold)
    assert [f.name for f in files] == ["noise_mask.png", "noise_raw.png", "noise.json"]
    with Image.open(files[0]) as mask:
        assert np.array_equal(np.asarray(mask), 255 * (score >= np.float32(threshold)))
    about = json.loads(files[2].read_text())
    (frame,) = about["frames"]
    scale = frame["raw_scale"]
    with Image.open(files[1]) as raw:
        back = scale["offset"] + scale["step"] * np.asarray(raw).astype(float)
    np.testing.assert_allclose(back, score, atol=0.51 * scale["step"])
    assert (about["input"], about["model"], about["words"]) == ("noise.png", name, [])
    assert len(about["checkpoint"]) == 64 and frame["threshold"] == threshold
    assert len(frame["objects"]) == len(trial.view(0, threshold).rows)


def test_video(tiny, tmp_path):
    models, name = tiny
    shares = []
    trial = predict(
        models, name, write_video(tmp_path / "drive.mp4", 20), limits=Limits(frames=7),
        report=shares.append,
    )  # fmt: skip
    # Every third of 20: seven frames, at ten per second.
    assert [frame.index for frame, _ in trial.frames] == [0, 3, 6, 9, 12, 15, 18]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.95)
    highest = [float(result["ood_score"].max()) for _, result in trial.frames]
    threshold = float(np.median(highest))
    expected = [i for i, value in enumerate(highest) if value >= threshold]
    assert trial.positions_with_objects(threshold) == expected and 0 < len(expected) < 7
    text = trial.view(2, threshold).text
    assert f"0.60 s; objects in: {', '.join(map(str, expected))}" in text
    (archive,) = trial.write(tmp_path / "out", threshold)
    names = set(zipfile.ZipFile(archive).namelist())
    assert archive.name == "drive.zip"
    assert {"drive.json", "drive_000018_mask.png", "drive_000018_raw.png"} <= names
    assert len([n for n in names if n.endswith(".png")]) == 14


def test_what_is_refused(tiny, noise, tmp_path):
    models, name = tiny
    folder = str(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("x")
    write_video(tmp_path / "long.mp4", 30)
    for given, limits, message in [
        ("broken.png", Limits(), "cannot read image broken.png"),
        ("broken.mp4", Limits(), "cannot read video broken.mp4"),
        ("notes.txt", Limits(), "notes.txt: neither an image nor a video"),
        ("long.mp4", Limits(seconds=2), "long.mp4 is longer than 2 seconds"),
        ("noise.png", Limits(upload_mb=0), "noise.png has more than 0 MiB"),
        ("noise.png", Limits(session_mb=0), "noise.png has too many pixels"),
    ]:
        with pytest.raises(UserError) as caught:
            predict(models, name, tmp_path / given, limits=limits)
        assert str(caught.value).startswith(message) and folder not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_kept_is_limited(tiny, tmp_path):
    """48 x 80 pixels of 8 bytes are 30,720: 34 frames to a MiB, of 60 every second."""
    models, name = tiny
    video = write_video(tmp_path / "drive.mp4", 60)
    trial = predict(models, name, video, limits=Limits(session_mb=1))
    assert len(trial.frames) == 30
    arrays = [(frame.image, *result.values()) for frame, result in trial.frames]
    arrays = [v for of_frame in arrays for v in of_frame if isinstance(v, np.ndarray)]
    assert all(v.base is None for v in arrays)  # a view would keep more than its own bytes
    kept = sum(v.nbytes for v in arrays)
    assert kept == 30 * 30_720


def test_words_where_they_mean_something(fixed_cfg, tmp_path, monkeypatch):
    models, name = offer(fixed_cfg, tmp_path)
    assert models(name).no_words == ""
    see_colours(models(name).predictor.model, monkeypatch)
    path = tmp_path / "halves.png"
    cv2.imwrite(str(path), painted(64, 128, "deer", "road"))
    trial = predict(models, name, path, " deer,sofa ")
    # The deer's chance is 1 in the left half: its logarithm is 0, whatever the score says.
    without, view = (trial.view(0, -0.01, combine) for combine in (False, True))
    found = trial.frames[0][1]["ood_score"] >= np.float32(-0.01)
    pixels = COLUMNS.index("pixels")
    assert sum(row[pixels] for row in without.rows) == found.sum() < 64 * 128
    found[:, :56] = True
    assert sum(row[pixels] for row in view.rows) >= found.sum()
    assert list(view.words) == ["deer", "sofa"]
    assert view.rows[0][0] == 1 and view.rows[0][-1] == "deer"
    assert "a guarantee about false alarms does not hold" in view.text
    with pytest.raises(UserError, match="lacks giraffe"):
        predict(models, name, path, "giraffe")


def test_words_that_mean_nothing_are_refused(tiny, noise):
    models, name = tiny
    assert "never CLIP's" in models(name).no_words
    with pytest.raises(UserError, match="words: this model's text encoder was never CLIP's"):
        predict(models, name, noise, "deer")


def test_users_at_once_share_one_model(tiny, noise, monkeypatch):
    """It is loaded once, and computes one frame at a time."""
    models, name = tiny
    built, inside, most = [], [], []
    init = OODPredictor.__init__
    monkeypatch.setattr(
        OODPredictor, "__init__", lambda self, *a, **k: built.append(1) or init(self, *a, **k)
    )
    call = OODPredictor.__call__

    def counted(self, *given):
        inside.append(1)
        most.append(len(inside))
        try:
            return call(self, *given)
        finally:
            inside.pop()

    monkeypatch.setattr(OODPredictor, "__call__", counted)
    start = threading.Barrier(4)

    def use(_):
        start.wait(10)
        return predict(models, name, noise).frames[0][1]["ood_score"]

    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(use, range(4)))
    assert len(built) == 1 and len(most) == 4 and max(most) == 1
    assert all(np.array_equal(score, scores[0]) for score in scores)


def test_models_that_ship_have_a_threshold():
    models = Models(opts=["MODEL.DEVICE", "cpu"])
    assert len(models.names) == len(SHIPPED)
    for config in SHIPPED:
        cfg = load_config(f"configs/{config}")
        use_shipped_weights(cfg, f"configs/{config}")
        assert cfg.MODEL.WEIGHTS.endswith(".safetensors")


def test_a_config_that_is_not_there():
    with pytest.raises(UserError, match="config file nothing.yaml does not exist"):
        Models([("nothing.yaml", "model.pth")])
