"""A network with the weights' shapes and another function is refused."""

from __future__ import annotations

import re

import pytest
import torch

from tdos_d2.errors import UserError
from tdos_d2.loading.config_checks import check_model
from tdos_d2.loading.network import network_settings
from tdos_d2.value_checks import get_key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.NECK.NORM", "GN"),
        ("MODEL.CONTEXT_DECODER.NUM_HEADS", 2),
        ("MODEL.PIXEL_DECODER.NUM_HEADS", 4),
        ("MODEL.TRANSFORMER_DECODER.NUM_HEADS", 4),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
    ],
)
def test_settings_of_the_training_are_those_of_prediction(tiny_cfg, tmp_path, key, value):
    path = tmp_path / "trained.pth"
    info = {"network": network_settings(tiny_cfg)}
    torch.save({"model": {}, "tdos": info}, path)
    tiny_cfg.MODEL.WEIGHTS = str(path)
    check_model(tiny_cfg.clone())
    trained = get_key(tiny_cfg, key)
    assert trained != value
    tiny_cfg.merge_from_list([key, value])
    said = f"{key} is {value!r}, but {path} was trained with {trained!r}"
    with pytest.raises(UserError, match=re.escape(said)):
        check_model(tiny_cfg.clone())
    del info["network"][key]  # of an earlier version
    torch.save({"model": {}, "tdos": info}, path)
    check_model(tiny_cfg)


def test_what_a_file_says_is_checked(tiny_cfg, tmp_path):
    torch.save({"model": {}, "tdos": {"network": {"MODEL.NECK.NORM": 3}}}, tmp_path / "a.pth")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth says that its MODEL.NECK.NORM is 3"):
        check_model(tiny_cfg)
