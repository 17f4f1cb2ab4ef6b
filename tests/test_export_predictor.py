"""The whole predictor as one exported module, against OODPredictor itself."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from script_loading import load_script

from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.inference.export_predictor import PredictorModel, pillow_resize


def image(height: int, width: int) -> np.ndarray:
    """BGR; its channels differ."""
    noise = np.random.default_rng(height).integers(0, 156, (height, width, 3), np.uint8)
    return noise + np.array([0, 50, 100], np.uint8)


def saved(cfg, folder) -> OODPredictor:
    """A predictor of random weights, none of which is at a start value."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value += (1 if name == "scores.normal" else 0.05) * torch.rand_like(value)
    TDOSCheckpointer(model, str(folder)).save("model")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return OODPredictor(cfg)


def run(module: torch.nn.Module, frame: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = module(torch.from_numpy(frame))
    return {name: x.numpy() for name, x in zip(module.outputs, outputs, strict=True)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((72, 128), (48, 85)), ((97, 31), (200, 63)), ((8, 50), (3, 50)), ((131, 90), (63, 120)),
        ((64, 64), (64, 64)),
    ],
)  # fmt: skip
def test_resizing_is_that_of_pillow(old, new):
    """To the bit, on black and white as well, where sums reach their largest values."""
    noise = image(*old)
    for pixels in (noise, np.where(noise > 127, 255, 0).astype(np.uint8)):
        resized = Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BILINEAR)
        found = pillow_resize(old, new)(torch.from_numpy(pixels).permute(2, 0, 1))
        assert np.array_equal(found.permute(1, 2, 0), resized)


def test_sums_of_resizing_are_integers_that_float32_holds(monkeypatch):
    """So the order in which a runtime adds has no effect."""
    resize, sums = pillow_resize((1024, 2048), (480, 960)), []
    monkeypatch.setattr(torch.Tensor, "floor", lambda x: sums.append(x) or torch.floor(x))
    resize(torch.full((3, 1024, 2048), 255, dtype=torch.uint8))
    assert len(sums) == 4 and all(x.max() * 2**11 < 2**24 for x in sums)
    assert all((x * 2**11 % 1 == 0).all() for x in sums)


def test_another_way_of_resizing_is_named(monkeypatch, caplog):
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *_: Image.new("RGB", size))
    pillow_resize((8, 8), (4, 4))
    assert "Pillow" in caplog.text


@pytest.mark.parametrize("score", ["log_s_ood", "max_logit", "combined"])
def test_it_gives_what_the_predictor_gives(tiny_cfg, tmp_path, score):
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.MODEL.TDOS.SCORE = 0, score
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    tiny_cfg.MODEL.MEMORY.SIZE = 50
    if score == "combined":
        model = build_model(tiny_cfg)
        model.fit_memory([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
        TDOSCheckpointer(model, str(tmp_path)).save("fitted")
        tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "fitted.pth")
        predictor = OODPredictor(tiny_cfg)
    else:
        predictor = saved(tiny_cfg, tmp_path)
    frame = image(80, 100)
    expected = predictor(frame)
    threshold = float(np.quantile(expected["ood_score"], 0.7))
    for channels, given in (("bgr", frame), ("rgb", np.ascontiguousarray(frame[..., ::-1]))):
        module = PredictorModel(predictor, (80, 100), channels=channels, threshold=threshold)
        found = run(module, given)
        assert list(found) == ["ood_score", "labels", "ood_mask"]
        np.testing.assert_allclose(found["ood_score"], expected["ood_score"], 0, 1e-4)
        assert (found["labels"] == expected["labels"]).all() and found["labels"].dtype == np.uint8
        mask = np.where(expected["ood_score"] >= threshold, 255, 0)
        assert (found["ood_mask"] != mask).mean() < 1e-3 and found["ood_mask"].dtype == np.uint8
    assert expected["ood_score"].std() > 1e-3  # something to be wrong about
    assert PredictorModel(predictor, (80, 100), labels=False).outputs == ("ood_score",)


def test_frames_are_resized_inside(tiny_cfg, tmp_path):
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 48, 100
    tiny_cfg.TEST.WINDOW.SIZE = 0
    predictor = saved(tiny_cfg, tmp_path)
    assert predictor.input_size(72, 128) == (48, 85)
    frame = image(72, 128)
    expected = predictor(frame)["ood_score"]
    found = run(PredictorModel(predictor, (72, 128)), frame)["ood_score"]
    np.testing.assert_allclose(found, expected, 0, 1e-2 * expected.std())


def fitted(cfg, folder) -> OODPredictor:
    """Predictor of a NormalityMemory whose frames are resized; its config is in config.yaml."""
    cfg.MODEL.META_ARCHITECTURE, cfg.TEST.WINDOW.SIZE = "NormalityMemory", 0
    cfg.MODEL.MEMORY.SIZE, cfg.INPUT.MIN_SIZE_TEST = 100, 32
    cfg.INPUT.MAX_SIZE_TEST = 100
    torch.manual_seed(0)
    model = build_model(cfg)
    model.fit_memory(list(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)))
    TDOSCheckpointer(model, str(folder)).save("memory", tag=False)
    cfg.MODEL.WEIGHTS = str(folder / "memory.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return OODPredictor(cfg)


@pytest.fixture
def memory(tiny_cfg, tmp_path):
    return fitted(tiny_cfg, tmp_path)


def tool(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["export_model.py", "--config-file", *map(str, words)])
    load_script("tools/export_model.py").run()


def test_onnx(memory, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    words = ["--form", "predictor", "--size", "72x48", "--threshold", "0.5", "--channels", "rgb"]
    tool(monkeypatch, tmp_path / "config.yaml", *words, "--output", tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("image", [48, 72, 3], "tensor(uint8)")
    assert [(x.name, x.shape, x.type) for x in session.get_outputs()] == [
        ("ood_score", [48, 72], "tensor(float)"),
        ("ood_mask", [48, 72], "tensor(uint8)"),
    ]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["threshold"]) == 0.5 and about["channels"] == "RGB"
    assert json.loads(about["frame_size"]) == [72, 48]
    assert json.loads(about["model_size"]) == [48, 32]
    frame = image(48, 72)
    score, mask = session.run(None, {"image": np.ascontiguousarray(frame[..., ::-1])})
    expected = memory(frame)["ood_score"]
    np.testing.assert_allclose(score, expected, 0, 1e-2 * expected.std())
    assert ((mask == 255) == (score >= 0.5)).all()


def test_an_encoder_of_timm(tiny_cfg, tmp_path, monkeypatch):
    """With a memory as the only head: exporting decoders takes longer."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = "resnet18", ""
    predictor = fitted(tiny_cfg, tmp_path)
    words = ["--form", "predictor", "--size", "72x48", "--output", tmp_path / "a.onnx"]
    tool(monkeypatch, tmp_path / "config.yaml", *words)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"]
    )
    frame = image(48, 72)
    (score,) = session.run(["ood_score"], {"image": frame})
    expected = predictor(frame)["ood_score"]
    np.testing.assert_allclose(score, expected, 0, 1e-2 * expected.std())


def test_openvino_and_int8(memory, tmp_path, monkeypatch, capsys):
    openvino = pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    pytest.importorskip("nncf", reason="needs the extra 'openvino'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    (tmp_path / "frames").mkdir()
    for i in (48, 50, 60):
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.png"), image(i, 72))
    words = ["--form", "predictor", "--size", "72x48", "--int8", tmp_path / "frames"]
    tool(monkeypatch, tmp_path / "config.yaml", *words, "--output", tmp_path / "a.xml")
    assert "ranges of 3 frames" in capsys.readouterr().out
    frame, core = image(48, 72), openvino.Core()
    expected, scores = memory(frame)["ood_score"], {}
    for name in ("a", "a_int8"):
        model = core.read_model(tmp_path / f"{name}.xml")
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        scores[name] = compiled(frame)["ood_score"]
    about = core.read_model(tmp_path / "a.xml").get_rt_info(["tdos", "frame_size"])
    assert json.loads(about.value) == [72, 48]
    np.testing.assert_allclose(scores["a"], expected, 0, 1e-2 * expected.std())
    difference = np.abs(scores["a_int8"] - expected)
    assert 1e-5 < difference.mean() < 0.3 * expected.std()
    quantised = {op.get_type_name() for op in core.read_model(tmp_path / "a_int8.xml").get_ops()}
    assert "FakeQuantize" in quantised


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "predictor"], "--form predictor needs --size"),
        (["--form", "predictor", "--size", "8x8", "--input-type", "float32"], "--input-type: "),
        (["--int8", "frames"], "--int8 needs --form predictor"),
        (["--threshold", "1"], "--threshold needs --form predictor"),
    ],
)
def test_options_that_do_not_fit(monkeypatch, words, message):
    with pytest.raises(UserError, match=message):
        tool(monkeypatch, "demo.yaml", *words, "--output", "a.onnx")
