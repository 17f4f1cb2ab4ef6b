"""OODPredictor: what it returns, words, threads, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from colour_model import COLOURS, NAMES, painted, see_colours
from detectron2.modeling import build_model

from tdos_d2.data import TDOSDatasetMapper
from tdos_d2.engine import TDOSCheckpointer
from tdos_d2.errors import UserError
from tdos_d2.evaluation.operating_point import OperatingPoint, save_operating_point
from tdos_d2.inference import OODPredictor
from tdos_d2.loading.config_files import holds_encoders
from tdos_d2.modeling.scores import PIXEL_SCORES
from tdos_d2.modeling.text import TextEncoder
from tdos_d2.modeling.word_maps import MIN_SPREAD, word_maps

KEYS = {"labels", "sem_seg", "ood_score", "word_scores"}
SIZES = [(80, 130), (50, 61), (90, 40)]


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def test_result_is_that_of_evaluation(trained_cfg, tmp_path):
    predictor = OODPredictor(trained_cfg)
    assert predictor.class_names == ("road", "traffic sign", "car")  # of the checkpoint
    trained_cfg.MODEL.TDOS.CLASS_NAMES = ["road", "traffic sign", "car"]
    model = build_model(trained_cfg).eval()
    TDOSCheckpointer(model).load(trained_cfg.MODEL.WEIGHTS)
    mapper = TDOSDatasetMapper(trained_cfg, is_train=False)
    for image in images():
        result = predictor(image)
        assert set(result) == KEYS and result["word_scores"] == {}
        path = str(tmp_path / "image.png")
        cv2.imwrite(path, image)
        with torch.no_grad():
            (expected,) = model([mapper({"file_name": path})])
        # Up to rounding: the predictor folds layers.
        assert np.allclose(result["sem_seg"], expected["sem_seg"].numpy(), atol=1e-5)
        assert np.allclose(result["ood_score"], expected["ood_score"].numpy(), atol=1e-4)
        assert result["sem_seg"].shape == (3, *image.shape[:2])
        assert result["ood_score"].dtype == result["sem_seg"].dtype == np.float32
        assert result["labels"].dtype == np.uint8
        assert np.array_equal(result["labels"], result["sem_seg"].argmax(0))
        assert result["ood_score"].base is None  # kept alone, it keeps no other maps


def test_a_list_gives_what_single_images_give(trained_cfg):
    predictor = OODPredictor(trained_cfg)
    results = predictor(images(), words=["deer"])
    assert [r["labels"].shape for r in results] == SIZES
    for image, result in zip(images(), results, strict=True):
        alone = predictor(image, words=["deer"])
        assert np.array_equal(result["ood_score"], alone["ood_score"])
        assert np.array_equal(result["word_scores"]["deer"], alone["word_scores"]["deer"])


def test_calls_at_the_same_time(trained_cfg):
    words = [None, "deer", "lost cargo, deer", "sofa"]
    jobs = [(image, some) for image in images() for some in words]
    serial = OODPredictor(trained_cfg)
    expected = [serial(*job) for job in jobs]
    predictor = OODPredictor(trained_cfg)  # new: nothing has been computed yet
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda job: predictor(*job), jobs))
    for result, other in zip(results, expected, strict=True):
        assert np.array_equal(result["ood_score"], other["ood_score"])
        assert np.array_equal(result["sem_seg"], other["sem_seg"])
        assert list(result["word_scores"]) == list(other["word_scores"])
        for word, score in other["word_scores"].items():
            assert np.array_equal(result["word_scores"][word], score)


def test_texts_are_encoded_once(trained_cfg, monkeypatch):
    predictor = OODPredictor(trained_cfg)
    calls = []
    forward = predictor.model.text.tower.forward
    monkeypatch.setattr(
        predictor.model.text.tower, "forward", lambda *x: calls.append(len(x[1])) or forward(*x)
    )
    predictor(images())
    assert calls == []
    for _ in range(2):
        predictor(images(), words=["deer", "sofa"])
    assert sum(calls) == 5  # three names and two words
    predictor(images()[0], words=["Deer", "sofa", "lost cargo"])
    assert sum(calls) == 6
    company = predictor.embed_words(["deer", "sofa", "lost cargo", "hay", "elephant", "tent"])
    for word, vector in zip(["hay", "elephant", "tent"], company[3:], strict=True):
        assert torch.equal(OODPredictor(trained_cfg).embed_words([word])[0], vector)


def test_words_change_nothing_else(trained_cfg):
    predictor = OODPredictor(trained_cfg)
    for image in images():
        without, result = predictor(image), predictor(image, words="deer, lost  cargo,deer")
        assert set(result) == KEYS | {"word_chances"}
        for key in KEYS - {"word_scores"}:
            assert np.array_equal(without[key], result[key]), key
        for key in ("word_scores", "word_chances"):
            assert list(result[key]) == ["deer", "lost cargo"]
            for values in result[key].values():
                assert values.shape == image.shape[:2] and values.dtype == np.float32


def test_words_are_found_where_they_are(fixed_cfg, monkeypatch):
    """One window; far from the seam the numbers are those worked out by hand."""
    predictor = OODPredictor(fixed_cfg)
    assert predictor.words_have_meaning
    see_colours(predictor.model, monkeypatch)
    result = predictor(painted(64, 128, "deer", "road"), words=["deer", "sofa"])
    deer, sofa = result["word_scores"]["deer"], result["word_scores"]["sofa"]
    np.testing.assert_allclose(deer[:, :56], 1, atol=1e-5)
    np.testing.assert_allclose(deer[:, 72:], 0, atol=1e-5)
    np.testing.assert_allclose(sofa, 0, atol=1e-5)
    chances = result["word_chances"]
    # On the left the names' cosines are 0, 0, 0; on the right 1, 0, 0: standard deviation 0.4714.
    np.testing.assert_allclose(chances["deer"][:, :56], 1, atol=1e-5)
    np.testing.assert_allclose(chances["sofa"][:, :56], 0.5, atol=1e-5)
    by_hand = 1 / (1 + np.exp(1 / 0.4714045))
    np.testing.assert_allclose(chances["deer"][:, 72:], by_hand, atol=1e-5)
    combined = predictor.combined_score(result)
    expected = np.maximum(result["ood_score"], np.log(by_hand))
    np.testing.assert_allclose(combined[:, 72:], expected[:, 72:], atol=1e-5)
    expected = np.maximum(result["ood_score"], 0)
    np.testing.assert_allclose(combined[:, :56], expected[:, :56], atol=1e-5)
    assert (combined >= result["ood_score"]).all()
    without = predictor(painted(64, 128, "deer", "road"))
    assert np.array_equal(predictor.combined_score(without), without["ood_score"])


def test_a_chance_needs_more_than_noise_between_names():
    names = torch.eye(4)[:3]
    dense = torch.tensor([0.5, 0.5, 0.502, 0.4]).view(1, 4, 1, 1)
    cosines, chance = word_maps(dense, names, num_known=2).flatten().tolist()
    assert cosines == pytest.approx(0.502 / np.linalg.norm([0.5, 0.5, 0.502, 0.4]))
    margin = 0.002 / np.linalg.norm([0.5, 0.5, 0.502, 0.4])
    assert chance == pytest.approx(1 / (1 + np.exp(-margin / MIN_SPREAD)), rel=1e-4)


@pytest.mark.parametrize("name", ["log_s_ood", "text_only", *PIXEL_SCORES])
def test_chances_in_the_unit_of_a_score(fixed_cfg, monkeypatch, name):
    """A chance of 1 is a pixel of OOD alone, one of 0 a pixel of one known class alone."""
    fixed_cfg.MODEL.TDOS.SCORE = name
    predictor = OODPredictor(fixed_cfg)
    lowest = np.full((1, 2), -np.inf, np.float32)
    chances = {"deer": np.array([[0, 1]], np.float32)}
    combined = predictor.combined_score({"ood_score": lowest, "word_chances": chances})
    if name in PIXEL_SCORES:
        known_alone, ood_alone = torch.eye(4)[[0, 3]].view(2, 4, 1, 1)
        expected = [PIXEL_SCORES[name](s).item() for s in (known_alone, ood_alone)]
    else:
        expected = [-np.inf, 0]  # logarithms
    np.testing.assert_allclose(combined[0], expected, rtol=1e-5)


def test_nearest_words_of_regions(fixed_cfg, monkeypatch):
    predictor = OODPredictor(fixed_cfg)
    see_colours(predictor.model, monkeypatch)
    image = painted(80, 120, "road", "road")
    regions = np.zeros((80, 120), np.int32)
    boxes = [(60, 10, 110, 60), (68, 18, 102, 52)]  # a deer around a sofa
    for i, (word, (x0, y0, x1, y1)) in enumerate(zip(["deer", "sofa"], boxes, strict=True)):
        image[y0:y1, x0:x1] = COLOURS[word][::-1]
        regions[y0:y1, x0:x1] = i + 1
    found = predictor.nearest_words(image, regions, boxes, 2)
    assert [[word for word, _ in words] for words in found] == [["deer", "sofa"], ["sofa", "deer"]]
    assert all(words[0][1] > 0.9 for words in found)
    assert predictor.nearest_words(image, regions, []) == []
    everything = predictor.nearest_words(image, regions, boxes[:1], 9)
    known = {"road", "traffic sign", "car", "ood"}
    assert everything[0][0][0] == "deer"
    assert {word for word, _ in everything[0]} == set(NAMES) - known


def test_words_after_other_weights_were_loaded(trained_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    predictor = OODPredictor(trained_cfg)
    tower = predictor.model.text.tower
    with torch.autocast("cpu", torch.bfloat16):  # what is kept is in single precision all the same
        old = [predictor.embed_words(["deer"]), predictor._words.of_list(["deer"])]
    assert torch.equal(old[0], predictor._words.of_list(["deer"]))
    tower.load_state_dict({**tower.state_dict(), "ln_final.bias": torch.randn(tower.width)})
    new = TextEncoder(tower)(["deer"])
    for kept in (predictor.embed_words(["deer"]), predictor._words.of_list(["deer"])):
        assert torch.allclose(kept, new) and not torch.allclose(kept, old[0])


def test_nearest_words_need_a_meaning(trained_cfg):
    trained_cfg.MODEL.PROMPTS.GROUPS = "cityscapes"
    predictor = OODPredictor(trained_cfg)
    assert not predictor.words_have_meaning
    regions = np.ones((40, 40), np.int32)
    assert predictor.nearest_words(images()[0][:40, :40], regions, [(0, 0, 40, 40)]) == [[]]


def test_half_precision_is_for_gpus(trained_cfg):
    image = images()[0]
    results = [OODPredictor(trained_cfg, half=half)(image) for half in (True, False)]
    assert np.array_equal(results[0]["ood_score"], results[1]["ood_score"])


def test_bfloat16_on_a_cpu_is_asked_for(trained_cfg):
    image = images()[0]
    asking = in_bfloat16(trained_cfg)
    predictors = [
        OODPredictor(cfg, half=half)
        for cfg, half in ((trained_cfg, True), (asking, True), (asking, False))
    ]
    scores = [predictor(image)["ood_score"] for predictor in predictors]
    assert np.array_equal(scores[0], scores[2])
    difference = np.abs(scores[1] - scores[0]).max()
    assert 0 < difference < 0.1 * np.ptp(scores[0])
    # What a calibrated threshold is compared by.
    settings = [predictor.settings["half precision"] for predictor in predictors]
    assert settings == [False, "bfloat16", False]


def in_bfloat16(cfg):
    cfg = cfg.clone()
    cfg.TEST.BFLOAT16 = True
    return cfg


def test_scores_of_a_model_in_half_precision_are_in_single(trained_cfg):
    """bfloat16 on a CPU stands in for half precision on a GPU."""
    predictor = OODPredictor(trained_cfg)
    image = torch.from_numpy(images()[0].transpose(2, 0, 1).copy())
    words = predictor.embed_words([*predictor.class_names, "deer"])
    outputs = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(predictor.model([{"image": image, "words": words}])[0])
    for key in ("sem_seg", "ood_score", "word_scores", "word_chances"):
        full, half = (output[key] for output in outputs)
        assert half.dtype == torch.float32 and not torch.equal(full, half)
        assert (full - half).abs().max() < 0.05 * full.abs().max(), key
        assert len(half.unique()) > 0.5 * len(full.unique())


def test_operating_point(trained_cfg):
    assert OODPredictor(trained_cfg).operating_point is None
    point = OperatingPoint("log_s_ood", -1.25, "demo_ood", 61.0)
    save_operating_point(trained_cfg.MODEL.WEIGHTS, point)
    assert OODPredictor(trained_cfg).operating_point == point


def test_config_is_not_changed(trained_cfg):
    trained_cfg.freeze()
    before = trained_cfg.dump()
    OODPredictor(trained_cfg)
    assert trained_cfg.dump() == before


def test_a_checkpoint_needs_no_clip_weights(trained_cfg):
    """Neither a file nor the network: they are in it."""
    for weights in ("gone.pt", "openai"):
        trained_cfg.MODEL.CLIP.WEIGHTS = weights
        assert "MODEL.CLIP.WEIGHTS is ''" in " ".join(OODPredictor(trained_cfg).notes)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_encoders_that_the_checkpoint_has_are_not_read(
    frozen_cfg, clip_file, tmp_path, monkeypatch, activation
):
    frozen_cfg.MODEL.CLIP.ACTIVATION = activation
    frozen_cfg.INPUT.FORMAT, frozen_cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
    model = build_model(frozen_cfg).eval()
    TDOSCheckpointer(model, str(tmp_path)).save("model")
    frozen_cfg.MODEL.CLIP.ACTIVATION = "auto"
    frozen_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    Path(clip_file).write_bytes(b"not read")
    predictor = OODPredictor(frozen_cfg)
    state = predictor.model.state_dict()
    assert predictor.words_have_meaning and predictor.model.backbone.frozen
    own = model.text.state_dict(prefix="text.")
    assert all(torch.equal(state[key], value) for key, value in own.items())
    image = images()[0]
    with torch.no_grad():
        rgb = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
        (expected,) = model([{"image": rgb}])
    np.testing.assert_allclose(predictor(image)["ood_score"], expected["ood_score"], atol=1e-5)


def test_which_checkpoints_have_the_encoders(tiny_cfg, tmp_path):
    """Beside an encoder of timm, the file of CLIP's weights tells the text encoder's activation."""
    tiny_cfg.MODEL.CLIP.WEIGHTS = "clip.pt"
    infos = {"clip": {"clip_name": "tiny"}, "timm": {"clip_name": ""}, "others": {}}
    for name, info in infos.items():
        torch.save({"model": {}, "tdos": info and {"class_names": ["a"], **info}}, tmp_path / name)
    found = [holds_encoders(tiny_cfg, tmp_path / name) for name in infos]
    assert found == [True, False, False] and not holds_encoders(tiny_cfg, None)
    tiny_cfg.MODEL.CLIP.WEIGHTS = ""
    assert holds_encoders(tiny_cfg, tmp_path / "timm")


def test_wrong_config(trained_cfg):
    trained_cfg.MODEL.PIXEL_DECODER.FFN_DIM = 16
    with pytest.raises(UserError, match=r"model\.pth is not of the config's model.*pixel_decoder"):
        OODPredictor(trained_cfg)
    trained_cfg.MODEL.WEIGHTS = "gone.pth"
    with pytest.raises(UserError, match=r"gone\.pth does not exist"):
        OODPredictor(trained_cfg)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)),
     np.zeros((0, 4, 3), np.uint8), None, "a.png", Path("a.png")],
)  # fmt: skip
def test_wrong_images(trained_cfg, image):
    with pytest.raises(ValueError, match="uint8 expected"):
        OODPredictor(trained_cfg)(image)


def test_words_that_a_file_lacks(fixed_cfg):
    predictor = OODPredictor(fixed_cfg)
    with pytest.raises(UserError, match="lacks elk, lost cargo"):
        predictor(images()[0], words=["deer", "Elk", "lost cargo"])


def test_wrong_words(trained_cfg):
    predictor = OODPredictor(trained_cfg)
    with pytest.raises(UserError, match="longer than 77"):
        predictor(images()[0], words=["deer " * 80])
    for none in ("", " , ", []):
        with pytest.raises(UserError, match="words are expected"):
            predictor(images()[0], words=none)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("key", ["sem_seg", "ood_score", "word_scores", "word_chances"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_results_that_are_not_finite_are_an_error(trained_cfg, monkeypatch, half, key, value):
    predictor = OODPredictor(trained_cfg)
    infer = predictor.model._infer

    def broken(inputs):
        output = infer(inputs)
        output[key][..., 3, 4] = value
        return output

    monkeypatch.setattr(predictor.model, "_infer", broken)
    monkeypatch.setattr(predictor, "_precision", torch.bfloat16 if half else None)
    with pytest.raises(UserError, match=rf"the model's {key}: \d+ of \d+ scores are NaN") as caught:
        predictor(images()[0], words=["deer"])
    assert ("--full-precision" in str(caught.value)) == half
