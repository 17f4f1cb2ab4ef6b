"""Fusion of consecutive linear layers, for models that are only used for prediction."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .backbone import ScaleNeck
from .pixel_decoder import TextPixelDecoder

logger = logging.getLogger(__name__)


@torch.no_grad()
def fuse_for_prediction(model: nn.Module) -> nn.Module:
    """Fuse linear layers in place: the same maps up to rounding, with fewer layers.

    BatchNorm layers of a convolutional encoder are folded into the convolution before them, and the
    encoder uses channels-last maps; the factor of its QuickGELU is folded into the layers around
    it; the last deconvolution of a ``ScaleNeck`` and the following 1x1 convolution of the pixel
    decoder are merged. The model can no longer be trained, saved or loaded.

    Args:
        model: a meta-architecture with a ``backbone``, on its device.

    Returns:
        The model, in evaluation mode.
    """
    # In training mode the trial passes would change the running statistics of BatchNorm.
    backbone = model.eval().backbone
    if any(isinstance(part, _BatchNorm) for part in backbone.modules()):
        _fuse_norms(backbone)
        backbone.memory_format = torch.channels_last
        backbone.to(memory_format=torch.channels_last)
    _fold_quick_gelu(backbone)
    neck, decoder = getattr(model, "neck", None), getattr(model, "pixel_decoder", None)
    if isinstance(neck, ScaleNeck) and isinstance(decoder, TextPixelDecoder):
        # The decoder's inputs are coarsest first; its finest level has a separate layer.
        first_layers = [decoder.lateral, *reversed(decoder.inputs)]
        for level, first in zip(neck.levels, first_layers, strict=True):
            if isinstance(level, nn.Sequential) and isinstance(level[-1], nn.ConvTranspose2d):
                level[-1] = _joined(level[-1], first[0])
                first[0] = nn.Identity()
    model.register_load_state_dict_pre_hook(_refuse_weights)
    return model


def _refuse_weights(model: nn.Module, *arguments: Any) -> None:
    # Some would fit, and give other scores.
    raise RuntimeError("the layers of this model are fused for prediction: it takes no weights")


def _fuse_norms(encoder: nn.Module) -> None:
    """Fold BatchNorm into the convolution whose output is its input.

    A small forward pass finds that convolution; a second one checks that no other layer uses its
    output, as the maps would then differ.
    """
    d = encoder.size_divisibility
    weight = next(encoder.parameters())
    images = torch.rand((1, 3, d, 2 * d), device=weight.device)
    pairs: dict[nn.Module, nn.Module] = {}
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the tensor, so that ids stay unique

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module, output
        elif id(inputs[0]) in made_by:
            pairs[module] = made_by[id(inputs[0])][0]

    handles = [
        part.register_forward_hook(note)
        for part in encoder.modules()
        if isinstance(part, (nn.Conv2d, _BatchNorm)) and not part.training
    ]
    expected = encoder(images)
    for handle in handles:
        handle.remove()
    kept = {}
    for norm, conv in pairs.items():
        kept[conv] = conv.weight, conv.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
    names = {norm: name for name, norm in encoder.named_modules() if norm in pairs}
    for norm, name in names.items():
        encoder.set_submodule(name, _behind(norm))
    maps = encoder(images)
    if all((maps[k] - v).abs().max() <= 1e-3 * v.abs().max() for k, v in expected.items()):
        return
    logger.info("the BatchNorm layers of this encoder cannot be folded: it stays as it is")
    for conv, (weight, bias) in kept.items():
        conv.weight, conv.bias = weight, bias
    for norm, name in names.items():
        encoder.set_submodule(name, norm)


def _behind(norm: nn.Module) -> nn.Module:
    """The operations of a BatchNorm layer after normalisation; timm's includes the activation."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def _fold_quick_gelu(encoder: nn.Module) -> None:
    """x sigmoid(1.702 x) is SiLU of 1.702 x, divided by 1.702: one step in place instead of three.

    The three and their memory take half as long as the linear layer before them.
    """
    for part in encoder.modules():
        # By name: importing open_clip for it would take seconds that other models do not need.
        names = [type(x).__name__ for x in part] if isinstance(part, nn.Sequential) else []
        if names == ["Linear", "QuickGELU", "Linear"]:
            before, _, after = part
            before.weight.mul_(1.702)
            before.bias.mul_(1.702)
            after.weight.div_(1.702)
            part[1] = nn.SiLU(inplace=True)


def _joined(deconv: nn.ConvTranspose2d, conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """One deconvolution that equals ``deconv`` followed by the 1x1 ``conv``."""
    joined = nn.ConvTranspose2d(
        deconv.in_channels, conv.out_channels, deconv.kernel_size, deconv.stride
    ).to(deconv.weight)
    matrix = conv.weight[:, :, 0, 0]  # (out, middle)
    joined.weight.copy_(torch.einsum("imyx,om->ioyx", deconv.weight, matrix))
    bias = matrix @ deconv.bias
    joined.bias.copy_(bias if conv.bias is None else bias + conv.bias)
    return joined
