"""Base class of the image encoders of CLIP and timm as Detectron2 backbones."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TAPS = ("tap1", "tap2", "tap3", "tap4")


class FreezableEncoder(Backbone):
    """An image encoder that is frozen as a whole, in its BatchNorm layers, or not at all.

    Attributes:
        channels: channels of the four taps, finest first.
        strides: strides of the four taps; the dense embedding has the last one.
        dense_channels: channels of the dense embedding.
        in_text_space: whether the dense and image embeddings are in the space of a text encoder.
        memory_format: format of the network's input images. A frozen convolutional encoder uses
            channels-last maps, which is faster, especially in half precision.
    """

    in_text_space = False
    memory_format = torch.contiguous_format

    def freeze(self, whole: bool, norms: bool) -> None:
        """Set what is frozen; called after all parts have been built.

        Args:
            whole: freeze weights, statistics and mode, and compute no gradients.
            norms: freeze the BatchNorm layers of a trained encoder.
        """
        self.frozen, self.frozen_norm = whole, norms
        if whole and any(isinstance(part, _BatchNorm) for part in self.modules()):
            self.memory_format = torch.channels_last
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)  # new modules are in training mode, frozen parts included

    def train(self, mode: bool = True) -> FreezableEncoder:
        """Set the mode of all parts except frozen ones, which stay in eval mode."""
        super().train(mode)
        # Training mode would change BatchNorm statistics and enable DropPath (defect 14).
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen:
            return list(self.children())
        # Fine-tuning uses small batches of similar scenes, whose statistics cannot replace those of
        # pre-training.
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
        return norms if self.frozen_norm else []

    def forward(self, images: Tensor, region: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), H and W multiples of ``size_divisibility``.
            region: (B, H, W) in [0, 1], 1 where features are perturbed; None: no perturbation.

        Returns:
            ``tap1`` ... ``tap4`` (B, C, h, w) and ``dense`` (B, D, h, w), as in ``output_shape``,
            and ``embedding`` (B, D), the image embedding.
        """
        images = images.contiguous(memory_format=self.memory_format)
        # A frozen encoder has no backward pass that would need its activations.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            taps, embedding, dense = self.encode(images, region)
        return {**dict(zip(TAPS, taps, strict=True)), "embedding": embedding, "dense": dense}

    def encode(self, images: Tensor, region: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Four taps, image embedding and dense embedding; arguments as of :meth:`forward`."""
        raise NotImplementedError

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the taps and of the dense embedding."""
        names, channels = (*TAPS, "dense"), (*self.channels, self.dense_channels)
        strides = (*self.strides, self.strides[-1])
        return {
            name: ShapeSpec(channels=c, stride=stride)
            for name, c, stride in zip(names, channels, strides, strict=True)
        }

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to a multiple of this."""
        return self.strides[-1]  # the taps have the same stride, or each twice the previous one
