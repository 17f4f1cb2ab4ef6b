"""Fixtures that several test modules use."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

# Processes that tests start share the cores with each other: with a thread per core in each of them
# OpenMP's threads wait for one another most of the time. To be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

with contextlib.suppress(ImportError):
    # Before anything imports distutils: otherwise setuptools, which torch's C++ extensions import
    # when Detectron2 describes the environment, refuses to be imported at all.
    import setuptools  # noqa: F401

import pytest
import torch
from detectron2.utils.logger import setup_logger
from network_camera import Camera

# Imported once by the server that ``forked_processes`` takes its processes from.
multiprocessing.set_forkserver_preload(["tdos_d2.engine.train_command", "open_clip"])
# The tensors of tests are small: more threads only get into each other's way on a busy machine.
torch.set_num_threads(1)


# Files with tests of 10 seconds and more. They begin first, so that no worker waits for one at the
# end.
_LONG = ("test_code_blocks.py", "test_export.py", "test_switches.py", "test_train_net.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, the order otherwise unchanged."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session", autouse=True)
def logging_set_up_before():
    """The first Trainer of a process would do it, and hide its messages from caplog."""
    with _loggers_kept():
        setup_logger()
        setup_logger(name="tdos_d2")


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """Detectron2's set-up of a run takes its loggers from pytest, for later tests too."""
    with _loggers_kept():
        yield


@contextlib.contextmanager
def _loggers_kept() -> Iterator[None]:
    names = ("", "tdos_d2", "detectron2", "d2", "fvcore", "iopath")
    loggers = [logging.getLogger(name) for name in names]
    before = [(x.level, x.propagate, list(x.handlers)) for x in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of this run of the tests, the same for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def session_cache(shared_folder):
    """Scenes of the demo are drawn once per run, and not where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDOS_CACHE", str(shared_folder / "cache"))
        yield
    drawn = list((shared_folder / "cache").glob("demo-*/train"))
    assert not drawn, "a test had the demo's 960 scenes drawn: it should use few_scenes"


@pytest.fixture
def few_scenes(shared_folder, monkeypatch):
    """The demo's datasets with 12 scenes, and 2 of each kind of OOD object."""
    from tdos_d2.data.demo_scenes import dataset

    monkeypatch.setenv("TDOS_CACHE", str(shared_folder / "few_scenes"))
    few = {
        name: dataclasses.replace(split, frames=12 if split.kinds == (None,) else 2)
        for name, split in dataset._SPLITS.items()
    }
    monkeypatch.setattr(dataset, "_SPLITS", few)


@pytest.fixture
def forked_processes(monkeypatch):
    """Distributed processes start at once, forked from a server that has torch imported.

    They know neither what this process has changed in modules nor in the environment.
    """
    start = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)


@pytest.fixture
def tiny_cfg():
    """Config of a model that builds and runs in well under a second."""
    from detectron2.config import get_cfg

    import tdos_d2

    cfg = get_cfg()
    tdos_d2.add_tdos_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "TDOS"
    cfg.MODEL.BACKBONE.NAME = "CLIPVisionTransformer"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.CLIP.NAME = "tiny"
    cfg.MODEL.CLIP.WEIGHTS = ""
    cfg.MODEL.TDOS.CLASS_NAMES = ["road", "traffic sign", "car"]
    cfg.MODEL.TDOS.NUM_NEGATIVE = 4
    cfg.MODEL.TDOS.CONTEXT_LENGTH = 3
    cfg.MODEL.TDOS.NEGATIVE_LENGTH = 2
    cfg.MODEL.TDOS.NUM_POINTS = 64
    cfg.MODEL.SEM_AUG.ENABLED = False
    cfg.MODEL.PROMPTS.GROUPS = ""
    cfg.MODEL.REG.LANGUAGE_WEIGHT = 0.0
    cfg.MODEL.NECK.CHANNELS = 32
    cfg.MODEL.CONTEXT_DECODER.HIDDEN_DIM = 32
    cfg.MODEL.CONTEXT_DECODER.NUM_LAYERS = 1
    cfg.MODEL.PIXEL_DECODER.HIDDEN_DIM = 32
    cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 1
    cfg.MODEL.PIXEL_DECODER.FFN_DIM = 32
    cfg.MODEL.TRANSFORMER_DECODER.NUM_LAYERS = 2
    cfg.MODEL.TRANSFORMER_DECODER.FFN_DIM = 32
    return cfg


@pytest.fixture
def clip_file(tmp_path):
    """A file of the tiny CLIP's weights, random but always the same."""
    import torch

    from tdos_d2.modeling.clip import build_clip

    torch.manual_seed(0)
    clip, _ = build_clip("tiny", "")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    return str(tmp_path / "clip.pt")


@pytest.fixture
def frozen_cfg(tiny_cfg, clip_file):
    """``tiny_cfg`` with CLIP's weights from a file, so that the image encoder is frozen."""
    tiny_cfg.INPUT.FORMAT = "RGB"
    tiny_cfg.MODEL.CLIP.WEIGHTS = clip_file
    return tiny_cfg


@pytest.fixture(scope="session")
def camera():
    """Address of a network camera; with a name, a password and a key in it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}/live?key=secret"
    server.shutdown()
    server.server_close()
