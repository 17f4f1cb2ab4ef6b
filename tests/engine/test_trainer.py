"""Training: exact resume, longer resume, results, pictures."""

from __future__ import annotations

import hashlib
import json
import random
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from trainings import assert_same, interrupted_copy, train

from tdos_d2.engine import TDOSCheckpointer, Trainer, check_expected_results, read_checkpoint_info
from tdos_d2.errors import UserError
from tdos_d2.loading.packing import pack


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def random_state() -> list:
    numpy_state = np.random.get_state()
    return [random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state()]


def test_8_and_8_iterations_are_16(small_cfg, tmp_path):
    """Dropout, cropping, colours, pasting, point sampling: all of it random, all of it the same."""
    whole = tmp_path / "whole"
    losses = train(small_cfg, whole, MAX_ITER=16, CHECKPOINT_PERIOD=8).storage.histories()
    end_of_whole = random_state()
    final = torch.load(whole / "model_final.pth", weights_only=True)

    small_cfg.SEED = -1  # the checkpoint knows the run's seed
    for workers in (0, 1):
        parts = tmp_path / f"parts{workers}"
        interrupted_copy(whole, parts, "model_0000007.pth")
        small_cfg.DATALOADER.NUM_WORKERS = workers
        trainer = train(small_cfg, parts, resume=True, MAX_ITER=16, CHECKPOINT_PERIOD=8)
        assert_same(random_state(), end_of_whole, "random state")
        found = trainer.storage.history("total_loss").values()
        assert found == losses["total_loss"].values()[8:]
        resumed = torch.load(parts / "model_final.pth", weights_only=True)
        assert_same(resumed, final)
        assert resumed["tdos"]["seed"] == 3


def test_resume_with_the_whole_method(small_cfg, tmp_path):
    """Perturbed regions are random too, and what text queries are held to is made again."""
    small_cfg.MODEL.SEM_AUG.ENABLED, small_cfg.MODEL.SEM_AUG.REGION = True, "both"
    small_cfg.MODEL.REG.LANGUAGE_WEIGHT = 1.0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_cfg, whole, MAX_ITER=6, CHECKPOINT_PERIOD=3)
    interrupted_copy(whole, parts, "model_0000002.pth")
    small_cfg.SEED = -1
    train(small_cfg, parts, resume=True, MAX_ITER=6, CHECKPOINT_PERIOD=3)
    assert_same(*(torch.load(f / "model_final.pth", weights_only=True) for f in (whole, parts)))
    assert metrics(whole)[-1]["loss_language"] > 0


def test_warm_start_of_other_class_and_negative_counts(small_cfg, tmp_path, caplog):
    """What fits is loaded, and the log says what is not."""
    small_cfg.MODEL.TDOS.CLASS_NAMES = ["road", "car"]
    small_cfg.MODEL.TDOS.NUM_NEGATIVE = 2
    source = build_model(small_cfg)
    path = tmp_path / "two_classes.pth"
    TDOSCheckpointer(source, str(tmp_path)).save(path.stem)
    small_cfg.MODEL.TDOS.CLASS_NAMES = ["road", "traffic sign", "car"]
    small_cfg.MODEL.TDOS.NUM_NEGATIVE = 4
    small_cfg.MODEL.WEIGHTS = str(path)
    torch.manual_seed(5)
    trainer = Trainer(small_cfg)
    start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with caplog.at_level("INFO", logger="tdos_d2"):
        trainer.resume_or_load(resume=False)
    new = {
        *("text.negatives", "pixel_decoder.text_position.weight"),
        *("transformer_decoder.query_position.weight",),
        *("transformer_decoder.class_head.weight", "transformer_decoder.class_head.bias"),
    }
    old = source.state_dict()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, start[key] if key in new else old[key]), key
        assert (f"{key} is " in caplog.text) == (key in new)
    assert "all of backbone, neck, context_decoder" in caplog.text
    assert "trained with the classes road, car" in caplog.text
    assert "text.negatives is (2, 2, 64) there and (4, 2, 64) here" in caplog.text


def test_heads_only_of_another_class_count(small_cfg, tmp_path):
    """What is there per class starts anew and is trained; anything else must be in the file."""
    small_cfg.MODEL.TDOS.NUM_NEGATIVE = 2
    TDOSCheckpointer(build_model(small_cfg), str(tmp_path)).save("source")
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "source.pth")
    small_cfg.MODEL.TDOS.NUM_NEGATIVE = 4
    small_cfg.MODEL.TDOS.HEADS_ONLY = True
    train(small_cfg, tmp_path / "a", MAX_ITER=1)
    small_cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 2
    with pytest.raises(UserError, match=r"HEADS_ONLY: .*source\.pth has no fitting pixel_decoder"):
        train(small_cfg, tmp_path / "b", MAX_ITER=1)


def test_resume_is_no_warm_start(small_cfg, tmp_path):
    train(small_cfg, tmp_path / "a", MAX_ITER=2)
    small_cfg.MODEL.TDOS.NUM_NEGATIVE = 5
    with pytest.raises(UserError, match="of another model"):
        train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=4)


def test_other_seed_is_another_run(small_cfg, tmp_path):
    weights = []
    for seed in (1, 2):
        small_cfg.SEED = seed
        trainer = train(small_cfg, tmp_path / str(seed), MAX_ITER=2)
        weights.append(trainer.model.state_dict())
    with pytest.raises(AssertionError):
        assert_same(*weights)


def test_negative_seed_is_drawn_and_kept(small_cfg, tmp_path):
    small_cfg.SEED = -1
    trainer = train(small_cfg, tmp_path / "a", MAX_ITER=1)
    assert trainer.cfg.SEED >= 0 and small_cfg.SEED == -1
    info = read_checkpoint_info(tmp_path / "a" / "model_final.pth")
    assert info["seed"] == trainer.cfg.SEED
    assert info["class_names"] == ["road", "traffic sign", "car"]


def test_resume_with_larger_max_iter(small_cfg, tmp_path):
    train(small_cfg, tmp_path / "a", MAX_ITER=4)
    trainer = train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=8)
    assert trainer.iter == 8
    lines = metrics(tmp_path / "a")
    assert [line["iteration"] for line in lines] == [3, 7]
    # the last step of 8 in the polynomial schedule, power 0.9
    assert lines[1]["lr"] == pytest.approx(1e-3 * (1 / 8) ** 0.9)


def test_resume_with_another_learning_rate(small_cfg, tmp_path, caplog):
    """From a named checkpoint, into a folder of its own; repeated, it goes on there."""
    train(small_cfg, tmp_path / "a", MAX_ITER=6, CHECKPOINT_PERIOD=4)
    named = tmp_path / "a" / "model_0000003.pth"
    changed = {"BASE_LR": 5e-4, "WEIGHT_DECAY": 0.25, "RESUME_FROM": str(named)}
    with caplog.at_level("INFO", logger="tdos_d2"):
        trainer = train(small_cfg, tmp_path / "b", resume=True, MAX_ITER=6, **changed)
    assert "learning rates are those of the config" in caplog.text
    assert trainer.start_iter == 4
    lrs = [lr for lr, _ in trainer.storage.history("lr").values()]
    assert lrs == pytest.approx([5e-4 * (left / 6) ** 0.9 for left in (2, 1)])
    assert {g["weight_decay"] for g in trainer.optimizer.param_groups} <= {0.25, 0.0}
    again = train(small_cfg, tmp_path / "b", resume=True, MAX_ITER=7, **changed)
    assert again.start_iter == 6


def test_weights_alone_are_not_resumed(small_cfg, tmp_path):
    """They would begin at iteration 0, with another optimizer, and say that they go on."""
    trained = train(small_cfg, tmp_path / "a", MAX_ITER=2)
    named = tmp_path / "weights.pth"
    torch.save({"model": trained.checkpointer.model.state_dict()}, named)
    with pytest.raises(UserError, match="weights.pth: it has weights alone; MODEL.WEIGHTS starts"):
        train(small_cfg, tmp_path / "b", resume=True, MAX_ITER=4, RESUME_FROM=str(named))


def test_packed_weights_are_not_trained(small_cfg, tmp_path):
    model = build_model(small_cfg).eval()
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "packed.safetensors")
    pack(model, tmp_path / "packed.safetensors", {})
    with pytest.raises(UserError, match="packed.safetensors is packed for prediction"):
        train(small_cfg, tmp_path / "a", MAX_ITER=2)


def test_first_step_after_a_longer_resume_is_on_the_new_schedule(small_cfg, tmp_path):
    train(small_cfg, tmp_path / "a", MAX_ITER=4)
    trainer = train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=5)
    lr = trainer.storage.history("lr").values()[0][0]
    assert lr == pytest.approx(1e-3 * (1 / 5) ** 0.9)


def test_resume_with_another_batch_size(small_cfg, tmp_path, monkeypatch):
    """Other processes than before change it through SOLVER.REFERENCE_WORLD_SIZE."""
    said = []
    monkeypatch.setattr("tdos_d2.loading.resuming.logger.warning", said.append)
    small_cfg.SOLVER.IMS_PER_BATCH, small_cfg.SOLVER.REFERENCE_WORLD_SIZE = 4, 2
    train(small_cfg, tmp_path / "a", MAX_ITER=2)  # one process: 2 images, 4 steps
    resumed = {"resume": True, "MAX_ITER": 8}
    small_cfg.SOLVER.REFERENCE_WORLD_SIZE = 1
    with pytest.raises(UserError, match=r"cannot resume: a step takes 4 images, in .* 2\."):
        train(small_cfg, tmp_path / "a", **resumed)
    small_cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    train(small_cfg, tmp_path / "a", IMS_PER_BATCH=2, **resumed)
    assert not said
    train(small_cfg, tmp_path / "a", IMS_PER_BATCH=4, resume=True, MAX_ITER=9)
    (line,) = said
    assert "4 images, in the run of" in line and "the order of the data does not go on" in line


def test_resume_errors(small_cfg, tmp_path):
    train(small_cfg, tmp_path / "a", MAX_ITER=3)
    with pytest.raises(UserError, match="MAX_ITER is 2"):
        train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=2)
    with pytest.raises(UserError, match="cannot resume"):
        train(small_cfg, tmp_path / "a", resume=True, MAX_ITER=4, MULTIPLIERS=[["neck", 0.0]])


def test_evaluation_needs_neither_clip_file_nor_words(small_cfg, tmp_path):
    """A checkpoint holds the frozen encoders too, and says what they are."""
    from tdos_d2.engine import check_run
    from tdos_d2.modeling.clip import build_clip

    clip, _ = build_clip("tiny-quickgelu", "")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    small_cfg.MODEL.CLIP.NAME = "tiny-quickgelu"
    small_cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "clip.pt")
    trained = train(small_cfg, tmp_path / "a", MAX_ITER=1).model.eval()

    (tmp_path / "clip.pt").unlink()
    small_cfg.MODEL.PROMPTS.GROUPS, small_cfg.MODEL.PROMPTS.INIT = "gone.json", "group"
    small_cfg.MODEL.CLIP.NAME = "tiny"
    small_cfg.MODEL.WEIGHTS = str(tmp_path / "a" / "model_final.pth")
    small_cfg.DATASETS.TEST = small_cfg.DATASETS.TRAIN
    check_run(small_cfg, Namespace(num_gpus=1, num_machines=1, resume=False, eval_only=True))
    model = build_model(small_cfg).eval()
    TDOSCheckpointer(model).load(small_cfg.MODEL.WEIGHTS)
    frame = [{"image": torch.randint(0, 256, (3, 64, 64))}]
    with torch.no_grad():
        assert_same(model(frame), trained(frame))


class FixedResult(DatasetEvaluator):
    """Needs no labels; sees what the model gives."""

    def __init__(self) -> None:
        self.frames = 0

    def reset(self) -> None:
        self.frames = 0

    def process(self, inputs, outputs) -> None:
        self.frames += len(inputs)

    def evaluate(self) -> dict:
        return {"ood": {"AP": 10.0 * self.frames, "AP-tree": float("nan")}}


@pytest.fixture
def evaluated_cfg(small_cfg, small_dataset, monkeypatch, tmp_path):
    build = staticmethod(lambda cfg, name: FixedResult())
    monkeypatch.setattr(Trainer, "build_evaluator", build)
    small_cfg.DATASETS.TEST = (small_dataset,)
    small_cfg.TEST.NUM_PICTURES = 2
    return small_cfg


def test_evaluation_during_training(evaluated_cfg, small_dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluated_cfg.TEST.EVAL_PERIOD = 2
    evaluated_cfg.TEST.EXPECTED_RESULTS = [["ood", "AP", 50.0, 0.1]]
    train(evaluated_cfg, tmp_path / "a", MAX_ITER=4)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results == {small_dataset: {"ood": {"AP": 50.0, "AP-tree": None}}}
    assert metrics(tmp_path / "a")[-1]["ood/AP"] == 50.0
    events = EventAccumulator(str(tmp_path / "a"), {"images": 0, "scalars": 0}).Reload()
    scalars, pictures = events.Tags()["scalars"], events.Tags()["images"]
    assert {"total_loss", "loss_class", "loss_mask", "loss_dice", "lr", "ood/AP"} <= set(scalars)
    assert pictures == [f"{small_dataset}/0", f"{small_dataset}/1"]
    shown = events.Images(pictures[0])
    assert [p.step for p in shown] == [1, 4]  # one at each evaluation
    assert (shown[0].height, shown[0].width) == (64, 4 * 96)


@pytest.mark.parametrize(("period", "first"), [(2, "model_0000001.pth"), (3, "of iteration 1,")])
def test_results_say_which_checkpoint_they_are_of(evaluated_cfg, tmp_path, period, first):
    folder, seen = tmp_path / "a", []
    evaluated_cfg.TEST.EVAL_PERIOD = 2
    for end in (2, 4):  # in a run of 4 the results of iteration 1 are overwritten
        stop = pytest.raises(KeyboardInterrupt) if end == 2 else nullcontext()
        with pytest.MonkeyPatch.context() as patch, stop:
            if end == 2:
                patch.setattr("tdos_d2.engine.trainer.report_results", interrupt)
            train(evaluated_cfg, folder, MAX_ITER=4, CHECKPOINT_PERIOD=period)
        seen.append(json.loads((folder / "results.checkpoint.json").read_text()))
        text = (folder / "results.md").read_text()
        assert seen[-1]["checkpoint"] in text and (seen[-1]["sha256"] or "")[:16] in text
    assert first in seen[0]["checkpoint"] and seen[1]["checkpoint"] == f"{folder}/model_final.pth"
    saved = [folder / "model_0000001.pth", folder / "model_final.pth"]
    for path, values in zip(saved, seen, strict=True):
        own = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        assert values["sha256"] == own
    assert "weights (none)" not in text


def interrupt(*_):
    raise KeyboardInterrupt


def test_training_again_in_a_folder(small_cfg, tmp_path, caplog):
    folder = tmp_path / "a"
    for number, iterations in enumerate((1, 2, 3)):
        caplog.clear()
        train(small_cfg, folder, MAX_ITER=iterations)
        warnings = [r.getMessage() for r in caplog.records if "another run" in r.getMessage()]
        assert len(warnings) == (number > 0)
        assert [line["iteration"] for line in metrics(folder)] == [iterations - 1]
    assert "model_final.pth" in warnings[0] and "metrics.2.json" in warnings[0]
    assert "\n" not in warnings[0]
    for number in (1, 2):
        old = json.loads((folder / f"metrics.{number}.json").read_text())
        assert old["iteration"] == number - 1
    caplog.clear()
    train(small_cfg, folder, resume=True, MAX_ITER=4)
    assert "another run" not in caplog.text and len(metrics(folder)) == 2


def test_expected_results(evaluated_cfg, small_dataset):
    results = {"ood": {"AP": 50.0}}
    evaluated_cfg.TEST.EXPECTED_RESULTS = [["ood", "AP", 50.0, 0.1]]
    check_expected_results(evaluated_cfg, results)
    with pytest.raises(SystemExit):
        check_expected_results(evaluated_cfg, {"ood": {"AP": 49.0}})
    evaluated_cfg.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 50.0, 0.1]]
    with pytest.raises(UserError, match="sem_seg"):
        check_expected_results(evaluated_cfg, results)


def test_expected_results_of_several_sets(evaluated_cfg):
    evaluated_cfg.DATASETS.TEST = ("a", "b")
    results = {"a": {"ood": {"AP": 1.0}}, "b": {"ood": {"AP": 2.0}}}
    evaluated_cfg.TEST.EXPECTED_RESULTS = [["b/ood", "AP", 2.0, 0.1]]
    check_expected_results(evaluated_cfg, results)
    evaluated_cfg.TEST.EXPECTED_RESULTS = [["a/ood", "AP", 2.0, 0.1]]
    with pytest.raises(SystemExit):
        check_expected_results(evaluated_cfg, results)
