"""Prediction, evaluation and reports of a NormalityMemory: no known classes, no words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from script_loading import load_script

from tdos_commands.calibrate import run as calibrate
from tdos_commands.predict import run as predict
from tdos_commands.train import run as train
from tdos_d2.data import register_from_file
from tdos_d2.engine import load_config
from tdos_d2.errors import UserError, exit_with_one_line
from tdos_d2.inference import OODPredictor
from tdos_d2.loading.checkpoint import TDOSCheckpointer

HEIGHT, WIDTH = 64, 96


def frame(seed: int, odd: bool = False) -> np.ndarray:
    """A grey BGR frame; with something colourful in it, if it is odd."""
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 140, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    if odd:
        image[16:48, 32:64] = rng.integers(0, 256, (32, 32, 3))
    return image


@pytest.fixture
def memory(tiny_cfg, tmp_path):
    """Words of the command line that name a config; its fitted memory is memory.pth beside it."""
    tiny_cfg.MODEL.META_ARCHITECTURE = "NormalityMemory"
    tiny_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.WEIGHTS = "tf_efficientnet_lite0", ""
    tiny_cfg.MODEL.PIXEL_MEAN = tiny_cfg.MODEL.PIXEL_STD = [127.5] * 3
    tiny_cfg.MODEL.MEMORY.SIZE, tiny_cfg.MODEL.MEMORY.NEIGHBOURS = 80, 1
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    tiny_cfg.TEST.WINDOW.SIZE = 0
    tiny_cfg.INPUT.CROP.SIZE = [64, 64]
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "output")
    (tmp_path / "memory.yaml").write_text(tiny_cfg.dump())
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    rgb = [frame(i)[..., ::-1].transpose(2, 0, 1) for i in range(3)]
    model.fit_memory([torch.from_numpy(image.copy()) for image in rgb])
    TDOSCheckpointer(model, str(tmp_path)).save("memory", tag=False)
    return ["--config-file", str(tmp_path / "memory.yaml")]


@pytest.fixture
def weights(memory, tmp_path):
    return ["MODEL.WEIGHTS", str(tmp_path / "memory.pth")]


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in (3, 4):
        cv2.imwrite(str(folder / f"{i}.png"), frame(i, odd=True))
    return folder


@pytest.fixture
def small_set(frames, tmp_path):
    """File that lists the frames with their masks as the set "memory_small"."""
    masks = tmp_path / "masks"
    masks.mkdir()
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[16:48, 32:64] = 1
    for path in frames.iterdir():
        cv2.imwrite(str(masks / path.name), label)
    (tmp_path / "sets.yaml").write_text(
        f"- {{name: memory_small, image_root: {frames}, label_root: {masks}, id_values: [0], "
        "ood_values: [1], ignore_values: [255], min_pred: 1, min_gt: 1}\n"
    )
    register_from_file(str(tmp_path / "sets.yaml"))
    yield str(tmp_path / "sets.yaml")
    DatasetCatalog.remove("memory_small")
    MetadataCatalog.remove("memory_small")


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_predictor_has_scores_and_no_classes(memory, weights):
    predictor = OODPredictor(load_config(memory[1], weights))
    assert predictor.class_names == () and predictor.score == "memory"
    assert not predictor.takes_words and not predictor.words_have_meaning
    found = predictor(frame(3, odd=True)[:50, :70])
    assert found["sem_seg"].shape == (0, 50, 70) and (found["labels"] == 255).all()
    assert found["labels"].dtype == np.uint8 and found["labels"].shape == (50, 70)
    assert found["ood_score"].shape == (50, 70) and found["word_scores"] == {}
    assert predictor(frame(0))["ood_score"].max() < 1e-5 < found["ood_score"].max()
    with pytest.raises(UserError, match="a NormalityMemory has no text side"):
        predictor(frame(3), words="deer")


def test_prediction_on_a_folder_and_a_video(memory, weights, frames, tmp_path, capsys):
    writer = cv2.VideoWriter(
        str(frames / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (WIDTH, HEIGHT)
    )
    for i in range(3):
        writer.write(frame(i, odd=True))
    writer.release()
    output = tmp_path / "out"
    words = ["--input", str(frames), "--output", str(output), "--threshold", "0.02"]
    predict([*memory, *words, "--min-area", "20", "--opts", *weights])
    error = capsys.readouterr().err
    assert "threshold 0.02" in error and "words" not in error
    names = {path.name for path in output.iterdir()}
    assert names == {"predictions.jsonl", "v_score.mp4"} | {
        f"{i}_{kind}.png" for i in (3, 4) for kind in ("raw", "score")
    }
    first, _, *_, video = records(output)
    assert first["score"] == "memory" and set(first["files"]) == {"raw", "score"}
    largest = first["objects"][0]
    assert largest["mean_score"] >= 0.02 and "nearest_words" not in largest
    x0, y0, x1, y1 = largest["box"]
    assert x0 < 48 < x1 and y0 < 32 < y1
    assert video["frames"] == 3 and list(video["files"]) == ["score"]
    picture = cv2.imread(str(output / "3_score.png"))
    assert picture.shape[0] > HEIGHT and picture.std() > 5


@pytest.mark.parametrize(
    "words", [["--words", "deer"], ["--nearest-words", "2"], ["--words", "a", "--combine-words"]]
)
def test_options_for_words_are_refused(memory, weights, frames, tmp_path, words, capsys):
    given = ["--input", str(frames), "--output", str(tmp_path / "out"), *words, "--opts", *weights]
    with pytest.raises(SystemExit) as end:
        exit_with_one_line(lambda: predict([*memory, *given]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert error == f"error: {words[0]}: a NormalityMemory has no text side to compare words with"


def evaluate(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    train()


def test_evaluation_with_report_pictures_and_threshold(
    memory, weights, small_set, tmp_path, monkeypatch, capsys
):
    opts = [*weights, "DATASETS.REGISTER", small_set, "DATASETS.TEST", "('memory_small',)"]
    shown = tmp_path / "shown"
    opts += ["TEST.REPORT", "True", "TEST.SHOW_DIR", str(shown), "TEST.AUG.ENABLED", "True"]
    opts += ["TEST.AUG.MIN_SIZES", "[64]"]
    evaluate(monkeypatch, *memory, "--eval-only", *opts)
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    metrics = json.dumps(results)
    assert '"AP"' in metrics and "NaN" not in metrics
    page = (tmp_path / "output" / "report" / "index.html").read_text()
    assert "memory_small" in page and "NormalityMemory" in page
    assert {p.name for p in (shown / "memory_small").iterdir()} == {"3.jpg", "4.jpg"}
    point = json.loads((tmp_path / "memory.pth.threshold.json").read_text())
    assert point["score"] == "memory" and 0 < point["threshold"] < 2
    capsys.readouterr()
    words = ["--input", str(tmp_path / "frames"), "--output", str(tmp_path / "out")]
    predict([*memory, *words, "--opts", *weights])
    assert "best pixel F1 on memory_small" in capsys.readouterr().err
    assert records(tmp_path / "out")[0]["objects"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "MODEL.META_ARCHITECTURE: a NormalityMemory is not trained: tools/fit_memory.py"),
        (["--eval-only"], "MODEL.WEIGHTS is empty: name a memory that tools/fit_memory.py wrote"),
        (
            ["--eval-only", "MODEL.WEIGHTS", "memory.pth", "DATASETS.TEST", "('camvid_val',)"],
            "DATASETS.TEST: camvid_val has labels of classes, and a NormalityMemory has no known",
        ),
    ],
)
def test_what_it_cannot_do(memory, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate(monkeypatch, *memory, *words)


def test_a_memory_of_another_encoder_or_other_levels(memory, weights, tmp_path):
    path = tmp_path / "memory.pth"
    was = f"{path} was fitted with the encoder tf_efficientnet_lite0 and MODEL.MEMORY.LEVELS tap3, "
    was += "tap4, but the config has "
    for opts, has in (
        (["MODEL.TIMM.NAME", "resnet18"], "resnet18 and tap3, tap4"),
        (["MODEL.TIMM.LEVELS", "[0,1,2,3]"], "tf_efficientnet_lite0 (levels 0, 1, 2, 3) and tap3"),
        (["MODEL.MEMORY.LEVELS", "['tap4']"], "tf_efficientnet_lite0 and tap4"),
    ):
        opts += ["MODEL.PIXEL_MEAN", str([123.675, 116.28, 103.53])] if opts[1][0] == "r" else []
        opts += ["MODEL.PIXEL_STD", str([58.395, 57.12, 57.375])] if opts[1][0] == "r" else []
        with pytest.raises(UserError) as error:
            OODPredictor(load_config(memory[1], [*weights, *opts]))
        assert str(error.value).startswith(was + has) and "\n" not in str(error.value)


def test_size_is_that_of_the_file(memory, weights):
    predictor = OODPredictor(load_config(memory[1], [*weights, "MODEL.MEMORY.SIZE", "7"]))
    assert len(predictor.model.memory.vectors) == 3 * (HEIGHT // 16) * (WIDTH // 16)


def test_an_empty_memory(memory, tmp_path):
    cfg = load_config(memory[1], ["MODEL.DEVICE", "cpu"])
    TDOSCheckpointer(build_model(cfg), str(tmp_path)).save("empty")
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: the memory in .*empty.pth is empty"):
        OODPredictor(load_config(memory[1], ["MODEL.WEIGHTS", str(tmp_path / "empty.pth")]))


def test_a_memory_of_an_earlier_version(memory, weights, monkeypatch):
    cfg = load_config(memory[1], weights)
    assert not any("earlier version" in note for note in OODPredictor(cfg.clone()).notes)
    monkeypatch.setattr("tdos_d2.loading.config_files.PADDING", "another")
    (note,) = [note for note in OODPredictor(cfg).notes if "earlier version" in note]
    assert "memory.pth is of an earlier version" in note and "fit it again" in note


def test_it_has_one_score(memory, weights):
    cfg = load_config(memory[1], [*weights, "MODEL.TDOS.EXTRA_SCORES", "['energy']"])
    with pytest.raises(UserError, match="MODEL.TDOS.EXTRA_SCORES: a NormalityMemory has no score"):
        OODPredictor(cfg)


def run_tool(monkeypatch, name: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    load_script(f"tools/{name}.py").run()


def test_export(tiny_cfg, tmp_path, monkeypatch):
    """With CLIP's encoder: torch.export takes minutes for the padding of timm's tf_ models."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    tiny_cfg.MODEL.META_ARCHITECTURE, tiny_cfg.TEST.WINDOW.SIZE = "NormalityMemory", 0
    tiny_cfg.MODEL.MEMORY.SIZE, tiny_cfg.INPUT.MIN_SIZE_TEST = 3000, 0
    tiny_cfg.INPUT.CROP.SIZE = [64, 96]
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "memory.pth")
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    # More vectors than the search compares at a time.
    model.fit_memory(list(torch.randint(0, 256, (4, 3, 192, 256), dtype=torch.uint8)))
    assert len(model.memory.vectors) > 2048
    TDOSCheckpointer(model, str(tmp_path)).save("memory", tag=False)
    config, output = tmp_path / "memory.yaml", tmp_path / "memory.onnx"
    config.write_text(tiny_cfg.dump())
    run_tool(
        monkeypatch, "export_model", "--config-file", str(config), "--output", str(output)
    )
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_outputs()] == ["ood_score"]
    example = load_script("examples/onnx_sliding_window.py")
    predictor = OODPredictor(load_config(str(config)))
    for image in (frame(7, odd=True), np.vstack([frame(8), frame(9)])[:100, :70]):
        sem_seg, score = example.predict(session, image)
        assert sem_seg.shape == (0, *image.shape[:2])
        np.testing.assert_allclose(score, predictor(image)["ood_score"], 0, 1e-3)


def test_what_it_consists_of(memory, weights, monkeypatch, capsys):
    run_tool(monkeypatch, "model_info", *memory, *weights)
    out = capsys.readouterr().out
    assert "TimmBackbone of tf_efficientnet_lite0" in out
    assert "72 vectors of 432 channels" in out  # 3 frames of 4 x 6 places
    assert "memory.pth" in out and "random" not in out


def test_calibrated_threshold(memory, weights, tmp_path, capsys):
    (tmp_path / "normal").mkdir()
    for i in range(10, 14):
        cv2.imwrite(str(tmp_path / "normal" / f"{i}.png"), frame(i))
    words = ["--images", str(tmp_path / "normal"), "--false-alarm-rate", "0.2"]
    calibrate([*memory, *words, *weights])
    assert "at it 0 of the 4 frames have an object" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "odd.png"), frame(20, odd=True))
    odd = ["--input", str(tmp_path / "odd.png"), "--output", str(tmp_path / "out")]
    predict([*memory, *odd, "--opts", *weights])
    assert "with probability at most 0.2" in capsys.readouterr().err
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["objects"]
