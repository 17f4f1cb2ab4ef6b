"""Bad input: one clear line naming the thing, status 2, before training starts."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from safetensors.torch import save_file

from tdos_commands import exit_with_one_line
from tdos_commands.train import run as train
from tdos_d2.engine import check_run, load_config
from tdos_d2.engine import train_command as command
from tdos_d2.errors import UserError
from tdos_d2.loading.checkpoint import TDOSCheckpointer
from tdos_d2.loading.config_checks import check_model

ROOT = Path(__file__).parents[2]
ARGS = {"num_gpus": 1, "num_machines": 1, "resume": False, "eval_only": False}


@pytest.fixture
def config_file(small_cfg, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(small_cfg.dump())
    return path


@pytest.fixture
def error_of(config_file, monkeypatch, capsys):
    """Runs train_net.py with these words after --config-file; gives its one line of error."""

    def run(*words: str, config: Path | str = config_file) -> str:
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", str(config), *words])
        started = []
        monkeypatch.setattr(command, "launch_job", lambda *args: started.append(args))
        with pytest.raises(SystemExit) as caught:
            exit_with_one_line(train)
        assert caught.value.code == 2 and not started
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
        return error

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("MODEL.FOO 1", "command line: unknown config key MODEL.FOO"),
        ("SOLVER.MAX_ITR 1", "unknown config key SOLVER.MAX_ITR, did you mean SOLVER.MAX_ITER?"),
        ("SOLVER.MAX_ITER=20", "with a space instead of '=': SOLVER.MAX_ITER=20"),
        ("DATASETS.TEST camvid_ood", "of type tuple, such as \"('camvid_ood',)\", not str"),
        ("SOLVER.POLY_POWER 1.0", "SOLVER.POLY_POWER: it is SOLVER.POLY_LR_POWER now"),
        ("INPUT.COLOR_AUG False", "INPUT.COLOR_AUG: it is INPUT.COLOR_AUG_SSD now"),
        ("SOLVER.MAX_ITER", "KEY VALUE pairs"),
        ("SOLVER.MAX_ITER 1 --resume", "--resume must come before"),
        ("SOLVER.MAX_ITER many", "SOLVER.MAX_ITER must be of type int, not str (many)"),
        ("SOLVER.MAX_ITER 0", "SOLVER.MAX_ITER must be greater than 0, not 0"),
        ("SOLVER.RESUME_FROM a.pth", "SOLVER.RESUME_FROM needs --resume"),
        ("--resume SOLVER.RESUME_FROM gone.pth", "SOLVER.RESUME_FROM: no file gone.pth"),
        ("TEST.THRESHOLD fpr:1.5", "TEST.THRESHOLD: a threshold is best-f1, fpr:SHARE"),
        ("TEST.THRESHOLD calibrated", "TEST.THRESHOLD: what is still being trained"),
        ("TEST.THRESHOLD gone.json", "TEST.THRESHOLD: cannot read threshold gone.json"),
        ("SOLVER.IMS_PER_BATCH 0", "SOLVER.IMS_PER_BATCH must be greater than 0"),
        ("SOLVER.IMS_PER_BATCH -2", "SOLVER.IMS_PER_BATCH must be 0 or greater, not -2"),
        ("SOLVER.CHECKPOINT_PERIOD 0", "SOLVER.CHECKPOINT_PERIOD"),
        ("TEST.EVAL_PERIOD -1", "TEST.EVAL_PERIOD must be 0 or greater, not -1"),
        ("TEST.WINDOW.STRIDE 600", "TEST.WINDOW.STRIDE must be 1 to TEST.WINDOW.SIZE (512)"),
        ("TEST.MISSING maybe", "TEST.MISSING must be error or skip, got 'maybe'"),
        ("INPUT.FORMAT L", "INPUT.FORMAT must be RGB or BGR, got 'L'"),
        ("INPUT.OOD_PASTE.SOURCE cats", "INPUT.OOD_PASTE.SOURCE must be one of"),
        ("INPUT.OOD_PASTE.SOURCE coco INPUT.OOD_PASTE.COCO_LIST gone.json", "gone.json does not"),
        ("INPUT.OOD_PASTE.SOURCE mix", "INPUT.OOD_PASTE.MIX is empty"),
        ("INPUT.RARE_CLASS.TEMPERATURE 0.0", "INPUT.RARE_CLASS.TEMPERATURE must be greater"),
        ("DATASETS.TRAIN_WEIGHTS [1.0,2.0]", "DATASETS.TRAIN_WEIGHTS has 2 weights, but"),
        ("MODEL.TDOS.MERGE median", "MODEL.TDOS.MERGE: 'median' is none of max, mean"),
        ("MODEL.TDOS.SCORE foo", "MODEL.TDOS.SCORE or MODEL.TDOS.EXTRA_SCORES: no score 'foo'"),
        ("MODEL.NECK.NAME foo", "MODEL.NECK.NAME: 'foo' is none of"),
        ("MODEL.CLIP.NAME tiny-rn", "MODEL.BACKBONE.NAME: CLIPVisionTransformer is for a ViT"),
        ("MODEL.TDOS.CLASS_MERGE foo", "MODEL.TDOS.CLASS_MERGE: 'foo'"),
        ("MODEL.SEM_AUG.ENABLED True MODEL.SEM_AUG.REGION sky", "MODEL.SEM_AUG.REGION: 'sky'"),
        ("MODEL.SEM_AUG.PROB 1.5", "MODEL.SEM_AUG.PROB must be 0 to 1, not 1.5"),
        ("MODEL.SEM_AUG.SIZE (0.5,0.1)", "MODEL.SEM_AUG.SIZE must be (smallest, largest)"),
        ("MODEL.REG.TEMPERATURE 0.0", "MODEL.REG.TEMPERATURE must be greater than 0"),
        ("MODEL.PIXEL_DECODER.NUM_LAYERS 0", "NUM_LAYERS must be greater than 0"),
        ("MODEL.REG.TEMPLATE origami", "MODEL.REG.TEMPLATE: 'origami' has no {}"),
        ("MODEL.PROMPTS.GROUPS gone.json", "OOD words: no file 'gone.json'"),
        ("MODEL.PROMPTS.INIT words", "MODEL.PROMPTS.INIT: 'words' is none of"),
        ("MODEL.PROMPTS.INIT group MODEL.PROMPTS.GROUPS ", "MODEL.PROMPTS.GROUPS is empty"),
        ("MODEL.TDOS.HEADS_ONLY True", "name its checkpoint in MODEL.WEIGHTS"),
        ("MODEL.TDOS.EXTRA_SCORES ['foo']", "MODEL.TDOS.EXTRA_SCORES: no score 'foo'"),
        ("MODEL.TEXT.EMBEDDINGS gone.npz", "MODEL.TEXT.EMBEDDINGS: gone.npz does not exist"),
        ("SEED 4294967296", "SEED must be below"),
        ("SOLVER.MULTIPLIERS [['neck',1e999]]", "SOLVER.MULTIPLIERS must be finite"),
        ("SOLVER.MULTIPLIERS [['backbone']]", "SOLVER.MULTIPLIERS must be a list, each"),
        ("TEST.EXPECTED_RESULTS [['ood','AP']]", "TEST.EXPECTED_RESULTS must be a list"),
        ("MODEL.META_ARCHITECTURE TDSO", "MODEL.META_ARCHITECTURE: 'TDSO' is not registered"),
        ("MODEL.BACKBONE.NAME ViT", "MODEL.BACKBONE.NAME: 'ViT' is not registered"),
        ("DATASETS.TRAIN ()", "DATASETS.TRAIN"),
        ("DATASETS.TRAIN ('nowhere',)", "'nowhere'"),
        ("DATASETS.TEST ('nowhere',)", "'nowhere'"),
        ("TEST.MISSING skip DATASETS.TEST ('nowhere',)", "'nowhere'"),
        ("MODEL.WEIGHTS gone.pth", "MODEL.WEIGHTS: gone.pth does not exist"),
        ("MODEL.CLIP.WEIGHTS pretrained/gone.pt", "MODEL.CLIP.WEIGHTS: pretrained/gone.pt"),
        ("MODEL.TDOS.CLASS_NAMES ['road']", "MODEL.TDOS.CLASS_NAMES has 1 name"),
        ("OUTPUT_DIR /dev/null/x", "OUTPUT_DIR: /dev/null is no folder"),
        ("TEST.SHOW_DIR /dev/null/x", "TEST.SHOW_DIR: /dev/null is no folder"),
    ],
)
def test_wrong_values(error_of, words, expected):
    assert expected in error_of(*words.split(" "))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num-gpus", "0"], "--num-gpus"),
        (["--num-gpus", "3"], "SOLVER.IMS_PER_BATCH 2 is not divisible by"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "4"], "SOLVER.REFERENCE_WORLD_SIZE (4)"),
        (["--eval-only"], "DATASETS.TEST"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_wrong_flags(error_of, words, expected):
    assert expected in error_of(*words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SOLVER:\n  BAR: 1\n", "unknown config key SOLVER.BAR"),
        ("SOLVER:\n  POLY_END: 0.1\n", "it is SOLVER.POLY_LR_CONSTANT_ENDING now"),
        ("SOLVER: [\n", "not valid YAML"),
        ("VERSION: 2\nSOLVER: 3\n", "SOLVER must be of type"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml does not exist"),
        ("just words\n", "not a config"),
        ("", "not a config"),
        ("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_wrong_files(error_of, tmp_path, text, expected):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    error = error_of(config=path)
    assert expected in error and "wrong.yaml" in error


def test_missing_config_file(error_of):
    assert "config file gone.yaml does not exist" in error_of(config="gone.yaml")


def test_damaged_checkpoints(error_of, small_cfg, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_text("no checkpoint")
    words = "--eval-only", "DATASETS.TEST", str(small_cfg.DATASETS.TRAIN), "MODEL.WEIGHTS", str(bad)
    assert "bad.pth cannot be read" in error_of(*words)
    output = Path(small_cfg.OUTPUT_DIR)
    output.mkdir()
    (output / "last_checkpoint").write_text("model_0000009.pth")
    assert "last_checkpoint names model_0000009.pth" in error_of("--resume")


class Named(torch.nn.Module):
    def __init__(self, names: list[str], **info: Any) -> None:
        super().__init__()
        self.info = {"class_names": names, **info}

    def checkpoint_info(self) -> dict:
        return self.info


def save(folder: Path, names: list[str], seed: int = 11, **info: Any) -> Path:
    folder.mkdir(exist_ok=True)
    TDOSCheckpointer(Named(names, **info), str(folder), run_info={"seed": seed}).save("model")
    return folder / "model.pth"


def test_resume_takes_seed_and_refuses_other_classes(small_cfg):
    output = Path(small_cfg.OUTPUT_DIR)
    save(output, ["road", "traffic sign", "car"])
    small_cfg.MODEL.TDOS.CLASS_NAMES = []
    notes = check_run(small_cfg, Namespace(**{**ARGS, "resume": True}))
    assert small_cfg.SEED == 11 and any("SEED is 11" in note for note in notes)
    save(output, ["road", "sky", "car"])
    with pytest.raises(UserError, match="road, sky, car"):
        check_run(small_cfg, Namespace(**{**ARGS, "resume": True}))


def test_class_names_are_filled_in(small_cfg, tmp_path):
    small_cfg.MODEL.TDOS.CLASS_NAMES = []
    check_run(small_cfg, Namespace(**ARGS))
    assert small_cfg.MODEL.TDOS.CLASS_NAMES == ["road", "traffic sign", "car"]

    names = ["street", "sign", "vehicle"]
    weights = save(tmp_path / "old", names, ood_name="thing", clip_name="tiny-quickgelu")
    small_cfg.MODEL.WEIGHTS = str(weights)
    small_cfg.DATASETS.TEST = small_cfg.DATASETS.TRAIN
    finetuned = small_cfg.clone()
    notes = check_run(finetuned, Namespace(**ARGS))
    assert finetuned.MODEL.TDOS.CLASS_NAMES == ["road", "traffic sign", "car"]

    small_cfg.MODEL.TDOS.CLASS_NAMES = []
    small_cfg.MODEL.CLIP.WEIGHTS = "pretrained/gone.pt"  # not needed: the checkpoint has all
    notes = check_run(small_cfg, Namespace(**{**ARGS, "eval_only": True}))
    assert names == small_cfg.MODEL.TDOS.CLASS_NAMES
    assert small_cfg.MODEL.TDOS.OOD_NAME == "thing"
    assert (small_cfg.MODEL.CLIP.NAME, small_cfg.MODEL.CLIP.WEIGHTS) == ("tiny-quickgelu", "")
    assert any("thing" in note for note in notes)
    assert small_cfg.MODEL.CLIP.ACTIVATION == "quick_gelu" and finetuned.MODEL.CLIP.WEIGHTS == ""
    assert finetuned.MODEL.CLIP.ACTIVATION == "auto"  # not a checkpoint that goes on

    small_cfg.MODEL.TDOS.OOD_NAME = "animal"
    check_run(small_cfg, Namespace(**{**ARGS, "eval_only": True}))
    assert small_cfg.MODEL.TDOS.OOD_NAME == "animal"


def test_prediction_needs_no_list_of_datasets(small_cfg, tmp_path, error_of):
    small_cfg.DATASETS.REGISTER = str(tmp_path / "gone.yaml")
    config = tmp_path / "moved.yaml"
    config.write_text(small_cfg.dump())
    check_model(load_config(str(config)))
    assert "DATASETS.REGISTER: cannot read" in error_of(config=config)


def test_classes_by_other_names_are_in_the_log(small_cfg):
    assert check_run(small_cfg, Namespace(**ARGS)) == []
    small_cfg.MODEL.TDOS.CLASS_NAMES = ["Road", "bottle", "sky"]
    (note,) = check_run(small_cfg, Namespace(**ARGS))
    assert "'traffic sign' is 'bottle', 'car' is 'sky' (" in note and "'road'" not in note


def test_test_set_of_other_classes(small_cfg):
    small_cfg.DATASETS.TEST = small_cfg.DATASETS.TRAIN
    small_cfg.DATASETS.TRAIN = ("two_classes",)
    small_cfg.MODEL.TDOS.CLASS_NAMES = []
    frames = DatasetCatalog.get(small_cfg.DATASETS.TEST[0])
    DatasetCatalog.register("two_classes", lambda: frames[:1])
    MetadataCatalog.get("two_classes").set(
        stuff_classes=["a", "b"], ignore_values=(2,), ignore_label=255, evaluator_type="sem_seg"
    )
    try:
        with pytest.raises(UserError, match="has 3 classes, the model 2"):
            check_run(small_cfg, Namespace(**ARGS))
    finally:
        DatasetCatalog.remove("two_classes")
        MetadataCatalog.remove("two_classes")


@pytest.fixture
def changed_copy(small_cfg):
    """Registers the training frames a second time, with other metadata."""
    (train,) = small_cfg.DATASETS.TRAIN
    frames, of_train = DatasetCatalog.get(train), MetadataCatalog.get(train).as_dict()

    def register(name: str, **changes) -> str:
        DatasetCatalog.register(name, lambda: frames)
        MetadataCatalog.get(name).set(**{**of_train, "name": name, **changes})
        return name

    yield register
    for name in ("other_order", "for_testing"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_classes_in_another_order(small_cfg, changed_copy):
    """A class must not be trained or tested as another one."""
    first, second, *rest = MetadataCatalog.get(small_cfg.DATASETS.TRAIN[0]).stuff_classes
    swapped = [second, first, *rest]
    other_order = changed_copy("other_order", stuff_classes=swapped)
    said = f"class 0 of the model is '{swapped[1]}', but in dataset 'other_order' this is class 1"
    small_cfg.DATASETS.TEST = (other_order,)
    with pytest.raises(UserError, match=said):
        check_run(small_cfg.clone(), Namespace(**ARGS))
    small_cfg.DATASETS.TEST = small_cfg.DATASETS.TRAIN
    small_cfg.MODEL.TDOS.CLASS_NAMES = swapped
    with pytest.raises(UserError, match=f"class 0 of the model is '{swapped[0]}'"):
        check_run(small_cfg.clone(), Namespace(**ARGS))
    small_cfg.MODEL.TDOS.CLASS_NAMES = ["other names", "for the", "classes"]
    check_run(small_cfg, Namespace(**ARGS))


def test_resumed_evaluation_needs_a_checkpoint(small_cfg, tmp_path):
    """Not MODEL.WEIGHTS, from which the run may have started."""
    small_cfg.DATASETS.TEST, small_cfg.OUTPUT_DIR = small_cfg.DATASETS.TRAIN, str(tmp_path / "a")
    with pytest.raises(UserError, match="OUTPUT_DIR: .*/a has no checkpoint to evaluate"):
        check_run(small_cfg, Namespace(**{**ARGS, "eval_only": True, "resume": True}))


@pytest.mark.parametrize("alone", [True, False])
def test_ood_sets_are_not_trained_on(small_cfg, changed_copy, alone):
    classes = {"stuff_classes": ()} if alone else {}
    added = changed_copy("for_testing", evaluator_type="ood", **classes)
    small_cfg.DATASETS.TRAIN = (added,) if alone else (*small_cfg.DATASETS.TRAIN, added)
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN: for_testing is for testing, its labels"):
        check_run(small_cfg, Namespace(**ARGS))


def test_missing_test_sets_are_left_out_on_request(small_cfg, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    present = small_cfg.DATASETS.TRAIN[0]
    small_cfg.DATASETS.TEST = (present, "road_anomaly")
    with pytest.raises(UserError, match="road_anomaly"):
        check_run(small_cfg.clone(), Namespace(**ARGS))
    small_cfg.TEST.MISSING = "skip"
    notes = check_run(small_cfg, Namespace(**ARGS))
    assert tuple(small_cfg.DATASETS.TEST) == (present,)
    assert any("road_anomaly" in note for note in notes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_without_gpu(small_cfg):
    small_cfg.MODEL.DEVICE = "cuda"
    notes = check_run(small_cfg, Namespace(**ARGS))
    assert small_cfg.MODEL.DEVICE == "cpu" and any("MODEL.DEVICE" in note for note in notes)


def test_packed_checkpoints_are_not_trained(error_of, tmp_path):
    """They have no prompts: training would leave the text as it is, with other class names, too."""
    packed = tmp_path / "packed.safetensors"
    save_file({"text.embeddings": torch.zeros(8, 4)}, packed)
    said = f"MODEL.WEIGHTS: {packed} is packed for prediction, without text encoder: train from"
    assert said in error_of("MODEL.WEIGHTS", str(packed))
    words = "--resume", "SOLVER.RESUME_FROM", str(packed)
    assert "is packed for prediction" in error_of(*words)


def test_a_score_that_needs_a_memory_is_not_trained(small_cfg, error_of):
    """The evaluation after the training would have nothing to search in."""
    words = "MODEL.TDOS.EXTRA_SCORES", "['combined']", "DATASETS.TEST"
    assert "training fits no memory" in error_of(*words, str(small_cfg.DATASETS.TRAIN))
    small_cfg.MODEL.TDOS.SCORE = "memory"
    check_run(small_cfg, Namespace(**ARGS))  # without an evaluation


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("INPUT.OOD_PASTE.SOURCE", "none"), True),
        (("INPUT.OOD_PASTE.SOURCE", "shapes"), False),
        (("INPUT.OOD_PASTE.SOURCE", "shapes", "INPUT.OOD_PASTE.PROB", 0.0), True),
        (("MODEL.SEM_AUG.ENABLED", True, "MODEL.SEM_AUG.REGION", "labelled"), True),
        (("MODEL.SEM_AUG.ENABLED", True, "MODEL.SEM_AUG.REGION", "random"), False),
    ],
)
def test_training_without_anything_ood_is_in_the_log(small_cfg, changed_copy, words, said):
    small_cfg.INPUT.OOD_PASTE.SOURCE = "none"
    small_cfg.merge_from_list(list(words))
    notes = check_run(small_cfg, Namespace(**ARGS))
    assert any("no pixel of the training is OOD" in note for note in notes) == said
    small_cfg.DATASETS.TRAIN = (changed_copy("other_order", ood_values=(200,)),)
    assert not any("is OOD" in note for note in check_run(small_cfg, Namespace(**ARGS)))


def test_file_then_command_line(config_file):
    cfg = load_config(str(config_file), ["SOLVER.BASE_LR", "1e-4", "SEED", "5"])
    assert (cfg.SOLVER.BASE_LR, cfg.SEED, cfg.SOLVER.IMS_PER_BATCH) == (1e-4, 5, 2)


CONFIGS = sorted({*(ROOT / "configs").rglob("*.yaml")} - {ROOT / "configs/benchmarks/sizes.yaml"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs(path):
    cfg = load_config(str(path))
    of_memory = path.name.startswith("memory_")
    assert ("NormalityMemory" if of_memory else "TDOS") == cfg.MODEL.META_ARCHITECTURE
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR"
