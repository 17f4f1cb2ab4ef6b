"""Whatever can be switched off trains without it, in one process and in two."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from small_set import register

from tdos_d2.engine import Trainer
from tdos_d2.engine.launch import launch_job
from tdos_d2.modeling.clip import build_clip

# Keys and values by the name of what is off (or left out), beside a model with everything on.
SWITCHES = {
    "nothing": {},
    "negatives": {"MODEL.TDOS.NUM_NEGATIVE": 0},
    "context tokens": {"MODEL.TDOS.CONTEXT_LENGTH": 0},
    "tokens of negatives": {"MODEL.TDOS.NEGATIVE_LENGTH": 0, "MODEL.PROMPTS.INIT": "random"},
    "context decoder": {"MODEL.CONTEXT_DECODER.NUM_LAYERS": 0},
    "start of gamma": {"MODEL.TDOS.GAMMA_INIT": 0.0},
    "dropout": {"MODEL.CONTEXT_DECODER.DROPOUT": 0.0},
    "class loss": {"MODEL.TDOS.CLASS_WEIGHT": 0.0},
    "mask losses": {"MODEL.TDOS.MASK_WEIGHT": 0.0, "MODEL.TDOS.DICE_WEIGHT": 0.0},
    "score map's loss": {"MODEL.TDOS.SCORE_MAP_WEIGHT": 0.0},
    "weights of classes": {"MODEL.TDOS.OOD_WEIGHT": 0.0, "MODEL.TDOS.NO_OBJECT_WEIGHT": 0.0},
    "uncertain points": {"MODEL.TDOS.IMPORTANCE_SAMPLE_RATIO": 0.0},
    "void": {"MODEL.TDOS.IGNORE_VOID": False},
    "body": {"MODEL.TDOS.HEADS_ONLY": True},
    "body and negatives": {"MODEL.TDOS.HEADS_ONLY": True, "MODEL.TDOS.NUM_NEGATIVE": 0},
    "image encoder's training": {"MODEL.CLIP.FREEZE_IMAGE": True},
    "image encoder's learning rate": {"SOLVER.MULTIPLIERS": [["backbone", 0.0]]},
    "frozen norms": {"MODEL.BACKBONE.FREEZE_NORM": False},
    "CLIP's weights": {"MODEL.CLIP.WEIGHTS": ""},
    "semantic augmentation": {"MODEL.SEM_AUG.ENABLED": False},
    "its probability": {"MODEL.SEM_AUG.PROB": 0.0},
    "its effect": {"MODEL.SEM_AUG.NOISE": 0.0, "MODEL.SEM_AUG.ALPHA": 0.0},
    "its blocks": {"MODEL.SEM_AUG.BLOCKS": []},
    "words": {"MODEL.PROMPTS.GROUPS": ""},
    "language regularizer": {"MODEL.REG.LANGUAGE_WEIGHT": 0.0},
    "vision regularizer": {
        "MODEL.REG.VISION_MSE_WEIGHT": 0.0,
        "MODEL.REG.VISION_COSINE_WEIGHT": 0.0,
    },
    "norm of the neck": {"MODEL.NECK.NORM": ""},
    "colours": {"INPUT.COLOR_AUG_SSD": False},
    "crop": {"INPUT.CROP.ENABLED": False},
    "pasted outliers": {"INPUT.OOD_PASTE.SOURCE": "none"},
    "their probability": {"INPUT.OOD_PASTE.PROB": 0.0},
    "gradient clipping": {"SOLVER.CLIP_GRADIENTS.ENABLED": False},
    "warm-up": {"SOLVER.WARMUP_ITERS": 0},
    "decay": {"SOLVER.WEIGHT_DECAY": 0.0},
}
TOGETHER = ("negatives", "context decoder", "score map's loss", "words", "language regularizer",
            "vision regularizer", "semantic augmentation", "norm of the neck")  # fmt: skip
SWITCHES["all that the method adds"] = {k: v for n in TOGETHER for k, v in SWITCHES[n].items()}
SWITCHES["the same from random weights"] = SWITCHES["all that the method adds"] | {
    "MODEL.CLIP.WEIGHTS": ""
}
ENCODERS = {"tiny": "CLIPVisionTransformer", "tiny-rn": "CLIPModifiedResNet"}
# A ResNet differs in its norms, its neck, its pooling and how it is perturbed.
OF_A_RESNET = ("nothing", "negatives", "context decoder", "score map's loss", "frozen norms",
               "image encoder's training", "image encoder's learning rate", "CLIP's weights",
               "its effect", "vision regularizer", "norm of the neck", "all that the method adds",
               "the same from random weights")  # fmt: skip
RUNS = [("tiny", name) for name in SWITCHES] + [("tiny-rn", name) for name in OF_A_RESNET]
# Which parameters get a gradient, all that two processes have to agree on, is left by these.
OF_ONE_PROCESS = ("start of gamma", "dropout", "weights of classes", "uncertain points", "void",
                  "colours", "crop", "pasted outliers", "gradient clipping", "warm-up",
                  "decay")  # fmt: skip
RUNS_OF_TWO = [(encoder, SWITCHES[name]) for encoder, name in RUNS if name not in OF_ONE_PROCESS]
RUNS_OF_TWO.append(("tiny", {k: v for n in OF_ONE_PROCESS for k, v in SWITCHES[n].items()}))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's weights, random, for each encoder."""
    folder = tmp_path_factory.mktemp("clip")
    for name in ENCODERS:
        torch.save(build_clip(name, "")[0].state_dict(), folder / f"{name}.pt")
    return folder


def everything_on(cfg: CfgNode, folder: Path, clip_folder: Path) -> dict[str, CfgNode]:
    """A config with everything on for each encoder."""
    words = {"source": "test", "parameters": {}, "licence": "none", "known": ["road"]}
    words |= {"words": ["sofa", "tent", "piano", "banana"], "distances": [1, 2, 3, 4]}
    words["groups"] = [[i, i + 1] for i in range(4)]
    (folder / "words.json").write_text(json.dumps(words))
    cfg.DATASETS.TRAIN = ("switches",)
    cfg.MODEL.CLIP.FREEZE_IMAGE = False
    cfg.MODEL.PROMPTS.GROUPS, cfg.MODEL.PROMPTS.INIT = str(folder / "words.json"), "group"
    cfg.MODEL.REG.LANGUAGE_WEIGHT = 1.0
    cfg.MODEL.SEM_AUG.ENABLED, cfg.MODEL.SEM_AUG.REGION = True, "both"
    cfg.INPUT.OOD_PASTE.PROB, cfg.INPUT.OOD_PASTE.SHADOW = 1.0, 1.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    cfgs = {}
    for name, backbone in ENCODERS.items():
        cfgs[name] = cfg.clone()
        cfgs[name].MODEL.CLIP.NAME, cfgs[name].MODEL.BACKBONE.NAME = name, backbone
        cfgs[name].MODEL.CLIP.WEIGHTS = str(clip_folder / f"{name}.pt")
    return cfgs


def train_two_steps(cfg: CfgNode, switches: dict) -> None:
    """The second step is where a parameter that got no gradient is missed."""
    cfg = cfg.clone()
    cfg.merge_from_list([x for item in switches.items() for x in item])
    trainer = Trainer(cfg)
    trainer.model.train()
    with EventStorage():
        for trainer.iter in range(2):
            trainer.run_step()
    lacking = [k for k, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


@pytest.fixture
def switch_cfgs(small_cfg, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TDOS_CACHE", str(tmp_path / "cache"))
    return everything_on(small_cfg, tmp_path, clip_folder)


@pytest.mark.parametrize(("encoder", "name"), RUNS)
def test_one_process(switch_cfgs, small_dataset, encoder, name):
    cfg = switch_cfgs[encoder]
    cfg.DATASETS.TRAIN = (small_dataset,)
    train_two_steps(cfg, SWITCHES[name])


def all_switches(args: Namespace, _: CfgNode, cfgs: dict[str, CfgNode], folder: str) -> None:
    os.environ["TDOS_CACHE"] = f"{folder}/cache"
    register("switches", Path(folder))
    for encoder, switches in RUNS_OF_TWO:
        try:
            train_two_steps(cfgs[encoder], switches)
        except Exception as error:
            raise RuntimeError(f"{encoder} with {switches}: {error}") from error


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU processes")
def test_two_processes(switch_cfgs, tmp_path, forked_processes):
    args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    launch_job(all_switches, args, switch_cfgs["tiny"], switch_cfgs, str(tmp_path))
