"""Every key set to values that it cannot have: legal, or one line that names the key."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from tdos_d2.config import set_key
from tdos_d2.engine import check_run, load_config
from tdos_d2.errors import UserError
from tdos_d2.loading.config_checks import check_model
from tdos_d2.loading.config_values import _defaults, check_values, default_config, leaves

ARGS = Namespace(num_gpus=1, num_machines=1, resume=False, eval_only=False)
KEYS = [key for key, value in _defaults().items() if not isinstance(value, dict)]
WRONG = {
    bool: ("nonsense", 3),
    int: ("nonsense", -1, 0, 1.5, [1]),
    float: ("nonsense", -1.0, 0.0, float("nan"), [1.0]),
    str: ("nonsense", 3, ["a"]),
    list: ([1], [[1]], [["a"]], [None], [-1, -1], [0, 0], [1, 1, 1], "nonsense"),
}
pytestmark = pytest.mark.usefixtures("few_scenes")
LEGAL_NONE = {"SOLVER.WEIGHT_DECAY_BIAS"}


@pytest.fixture(scope="module")
def demo_cfg(tmp_path_factory):
    return load_config("demo.yaml", ["OUTPUT_DIR", str(tmp_path_factory.mktemp("out"))])


def refusal(checked, *given) -> str:
    try:
        checked(*given)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("section", sorted({key.rpartition(".")[0] for key in KEYS}))
def test_every_key_with_wrong_values(demo_cfg, section):
    values = dict(leaves(demo_cfg))
    for key in (k for k in KEYS if k.rpartition(".")[0] == section):
        kind = type(values[key]) if values[key] is not None else float
        built = kind is float  # nothing can go wrong with one within its range
        for wrong in (None, *WRONG[list if kind is tuple else kind]):
            cfg = demo_cfg.clone()
            set_key(cfg, "DATASETS.TEST", ())
            set_key(cfg, key, wrong)
            message = refusal(check_values, cfg)  # anything but a UserError fails
            if not message and not built:  # one value of a key is enough, it takes the longest
                message, built = refusal(check_run, cfg, ARGS), True
            assert "\n" not in message
            if key not in message:
                assert not message and (wrong is not None or key in LEGAL_NONE), (wrong, message)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("INPUT.CROP.SIZE", [96], "a list of 2: a number, a number"),
        ("INPUT.CROP.SIZE", [96, 1.5], "absolute sizes are whole pixels"),
        ("INPUT.CROP.SIZE", [96, 0], "greater than 0"),
        ("INPUT.CROP.TYPE", "nonsense", "none of absolute, absolute_range"),
        ("INPUT.SCALE_RANGE", [1.0], "a list of 2"),
        ("INPUT.SCALE_RANGE", [2.0, 1.0], "(smallest, largest)"),
        ("DATASETS.TEST", None, "a list, each element a text"),
        ("DATASETS.TEST", [["demo_ood"]], "a list, each element a text"),
        ("DATASETS.TEST", ["nowhere"], "unknown dataset 'nowhere'"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "there are TrainingSampler"),
        ("MODEL.DEVICE", "gpu", "no device here"),
        ("MODEL.DEVICE", "meta", "no device here"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "greater than 0"),
        ("MODEL.NECK.NORM", "XX", "cannot be built"),
        ("MODEL.PIXEL_DECODER.NUM_HEADS", 7, "not a multiple of 7 heads"),
        ("MODEL.TRANSFORMER_DECODER.NUM_HEADS", 7, "not a multiple of 7 heads"),
        ("MODEL.CONTEXT_DECODER.NUM_HEADS", 7, "not a multiple of 7 heads"),
        ("MODEL.CLIP.WEIGHTS", "nonsense", "neither a file nor an open_clip tag"),
        ("MODEL.TDOS", None, "is a section"),
        ("SOLVER.LR_SCHEDULER_NAME", "nonsense", "Unknown LR scheduler"),
        ("SOLVER.OPTIMIZER", "nonsense", "not known"),
        ("SOLVER.MULTIPLIERS", [["backbone", -1.0]], "0 or greater"),
        ("SOLVER.STEPS", [10], "SOLVER.STEPS has no effect with SOLVER.LR_SCHEDULER_NAME Warmup"),
        ("SOLVER.GAMMA", 0.5, "SOLVER.GAMMA has no effect with SOLVER.LR_SCHEDULER_NAME WarmupPol"),
        ("TEST.DETECTIONS_PER_IMAGE", 5, "no effect here"),
        ("SOLVER.MOMENTUM", 0.95, "no effect here: see SOLVER.OPTIMIZER"),
        ("INPUT.MIN_SIZE_TRAIN", [512], "no effect here: see INPUT.SCALE_RANGE"),
        ("DATALOADER.REPEAT_THRESHOLD", 0.1, "no effect here: see INPUT.RARE_CLASS"),
        ("TEST.EXPORT.FORMAT", "nonsense", "none of smiyc, fishyscapes"),
        ("TEST.EXPECTED_RESULTS", [["ood", "AP"]], "a list of 4"),
    ],
)
def test_what_is_said(demo_cfg, key, value, expected):
    cfg = demo_cfg.clone()
    set_key(cfg, key, value)
    message = refusal(check_run, cfg, ARGS)
    assert key in message and expected in message


@pytest.mark.parametrize(
    ("backbone", "effective"),
    [
        ("CLIPModifiedResNet", {"MODEL.CLIP.FREEZE_IMAGE"}),
        ("TimmBackbone", {"MODEL.TIMM.FREEZE"}),
        ("build_resnet_backbone", {"MODEL.BACKBONE.FREEZE_AT", "MODEL.CLIP.FREEZE_IMAGE",
                                   "MODEL.TIMM.FREEZE"}),
    ],
)  # fmt: skip
def test_each_encoder_is_frozen_by_its_key(demo_cfg, backbone, effective):
    """A user's encoder may read any of the keys, those of this project read one each."""
    keys = {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.CLIP.FREEZE_IMAGE": False,
            "MODEL.TIMM.FREEZE": False}  # fmt: skip
    for key, value in keys.items():
        cfg = demo_cfg.clone()
        cfg.MODEL.BACKBONE.NAME = backbone
        set_key(cfg, key, value)
        if key in effective:
            check_values(cfg)
        else:
            with pytest.raises(UserError, match=f"{key} has no effect .*NAME {backbone}: see "):
                check_values(cfg)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.yaml": "_BASE_: a.yaml\n"}, "_BASE_ leads back"),
        ({"a.yaml": "_BASE_: b.yaml\n", "b.yaml": "_BASE_: [a.yaml]\n"}, "_BASE_ leads back"),
        ({"a.yaml": "_BASE_:\n"}, "_BASE_"),
        ({"a.yaml": "_BASE_: [b.yaml, b.yaml]\n", "b.yaml": "_BASE_: [c.yaml, c.yaml]\n",
          "c.yaml": f"OUTPUT_DIR: {'x' * 70_000}\n"}, "_BASE_ leads back"),
        ({"a.yaml": "_BASE_: http://nowhere.invalid/b.yaml\n"}, "invalid/b.yaml is an address"),
        ({"a.yaml": "_BASE_: /dev/zero\n"}, "cannot read /dev/zero: it is a pipe, a socket"),
        ({"a.yaml": "_BASE_: b.yaml\n", "b.yaml": "x: !!python/name:os.system\n"}, "b.yaml"),
        ({"a.yaml": "x: &x [1, *x]\n"}, "its aliases repeat too much"),
        ({"a.yaml": "[" * 9999}, "nested too deeply"),
        ({"a.yaml": 'OUTPUT_DIR: "a\\e[2Jb"\n'}, "OUTPUT_DIR has a character that cannot"),
        ({"a.yaml": "_BASE_: .\n"}, "_BASE_ cannot be read"),
        ({"a.yaml": "MODEL:\n"}, "MODEL must be of type CfgNode"),
        ({"a.yaml": "MODEL:\n  TDOS:\n"}, "MODEL.TDOS must be of type CfgNode"),
        ({"a.yaml": "VERSION: x\n"}, "VERSION"),
        ({"a.yaml": "SOLVER:\n  BASE_LR: .nan\n"}, "SOLVER.BASE_LR must be finite"),
        ({"a.yaml": "DATASETS:\n  TEST:\n"}, "DATASETS.TEST must be a list"),
    ],
)
def test_files(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(tmp_path / "a.yaml"))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "greater than 0"),
        ("MODEL.PIXEL_DECODER.FFN_DIM", 0, "greater than 0"),
        ("MODEL.CONTEXT_DECODER.DROPOUT", 1.5, "0 to 1"),
        ("MODEL.SEM_AUG.NUM", (0, 3), "greater than 0"),
        ("MODEL.SEM_AUG.SIZE", (0.5, 0.1), "(smallest, largest)"),
        ("MODEL.TDOS.OVERSAMPLE_RATIO", 0.5, "1 or greater"),
        ("TEST.WINDOW.BATCH", -1, "0 or greater"),
    ],
)
def test_parts_check_their_own_values(tiny_cfg, key, value, expected):
    """Built without any check before."""
    set_key(tiny_cfg, key, value)
    with pytest.raises(UserError) as caught:
        build_model(tiny_cfg)
    assert str(caught.value) == f"{key} must be {expected}, not {value}"


def test_predictor_checks_the_same(demo_cfg):
    cfg = demo_cfg.clone()
    set_key(cfg, "MODEL.PIXEL_DECODER.NUM_HEADS", 7)
    with pytest.raises(UserError, match=r"MODEL\.PIXEL_DECODER\.NUM_HEADS"):
        check_model(cfg)


def test_nothing_is_read_or_drawn(demo_cfg, tmp_path):
    """Weights are only looked for, and random numbers stay where they were."""
    weights = tmp_path / "clip.pt"
    weights.write_bytes(b"no weights")
    cfg = demo_cfg.clone()
    set_key(cfg, "MODEL.CLIP.WEIGHTS", str(weights))
    state = torch.get_rng_state()
    assert refusal(check_run, cfg, ARGS) == ""
    assert torch.equal(state, torch.get_rng_state())


def test_paths_with_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = default_config()
    paths = {
        key: value for key, value in leaves(cfg)
        if key in ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS", "MODEL.TEXT.EMBEDDINGS",
                   "MODEL.PROMPTS.GROUPS", "DATASETS.REGISTER", "INPUT.OOD_PASTE.COCO_LIST",
                   "TEST.SHOW_DIR")
    }  # fmt: skip
    assert len(paths) == 8
    for key in paths:
        set_key(cfg, key, "~/there")
    check_values(cfg)
    assert {dict(leaves(cfg))[key] for key in paths} == {str(Path(tmp_path) / "there")}
