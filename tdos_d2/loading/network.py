"""Settings of a network that change its function, but no shape of its weights.

Trainings store them in their checkpoints. A model that is built with others would load such a
checkpoint without an error, and give the scores of another network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..errors import UserError
from ..value_checks import get_key
from .config_values import plain

# By key, an example of a value.
NETWORK_SETTINGS: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [0.0],
    "MODEL.PIXEL_STD": [0.0],
    "MODEL.TIMM.LEVELS": [0],
    "MODEL.NECK.NORM": "LN",
    "MODEL.CONTEXT_DECODER.NUM_HEADS": 4,
    "MODEL.PIXEL_DECODER.NUM_HEADS": 8,
    "MODEL.PIXEL_DECODER.NUM_SAMPLING_POINTS": 4,
    "MODEL.TRANSFORMER_DECODER.NUM_HEADS": 8,
}


def network_settings(cfg: CfgNode) -> dict[str, Any]:
    """The settings by key, in plain types, for the information in a checkpoint of TDOS."""
    return {key: plain(get_key(cfg, key)) for key in NETWORK_SETTINGS}


def check_network(cfg: CfgNode, info: dict[str, Any], path: str | Path) -> None:
    """Compare a config with the information in the checkpoint ``path``, if it has the settings.

    Raises:
        UserError: a setting differs; the message names the key and both values.
    """
    if cfg.MODEL.META_ARCHITECTURE != "TDOS":
        return
    trained = info.get("network", {})
    for key, value in network_settings(cfg).items():
        if key in trained and trained[key] != value:
            raise UserError(f"{key} is {value!r}, but {path} was trained with {trained[key]!r}")
