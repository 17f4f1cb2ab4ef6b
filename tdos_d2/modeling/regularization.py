"""Regularizers that keep text queries close to their words, and the image encoder close to CLIP's.

The third regularizer of the method, the score map's cross entropy, is part of the criterion.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from ..value_checks import check_positive

logger = logging.getLogger(__name__)

References = Callable[[], tuple[Tensor, Tensor]]


class Regularization(nn.Module):
    """The enabled regularizers; None = disabled."""

    def __init__(self, language: LanguageLoss | None, vision: VisionLoss | None) -> None:
        super().__init__()
        self.language = language
        self.vision = vision

    def forward(
        self, text: Tensor, images: Tensor, region: Tensor | None, embedding: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            text: (B, N, D_t), text embeddings after the context decoder.
            images: (B, 3, H, W), normalised.
            region: (B, H, W), where features are perturbed; None: no perturbation.
            embedding: (B, D_v), the trained encoder's embedding of the images.

        Returns:
            The enabled ones of the weighted terms ``loss_language`` and ``loss_vision``.
        """
        losses = {}
        if self.language is not None:
            losses["loss_language"] = self.language(text)
        if self.vision is not None:
            losses["loss_vision"] = self.vision(images, region, embedding)
        return losses


class LanguageLoss(nn.Module):
    """Cross entropy that classifies each text query by the fixed embeddings of the queries' words.

    weight * CE_j(cos(t_k, r_j) / temperature) with target j = k, mean over images and queries. The
    references r are the embeddings of the known names, the OOD word and, for the negatives,
    prototypes of word groups; queries without a reference are left out. Without a temperature, as
    published, the term hardly varies (defect 18).

    Args:
        references: returns (R, D) unit vectors and the (R,) numbers of their queries. It is called
            at the first training step after weights were loaded, as the vectors depend on these;
            inference does not need them.
        weight: weight of the term.
        temperature: temperature of the cosines.
    """

    def __init__(
        self, references: References, *, weight: float = 1.0, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self._make_references = references
        self.weight, self.temperature = weight, temperature
        # They are computed from the weights: not in checkpoints, but moved with the module.
        self.register_buffer("references", None, persistent=False)
        self.register_buffer("queries", None, persistent=False)
        # A function, not a bound method, so that a copied module resets its own references.
        self.register_load_state_dict_post_hook(LanguageLoss._forget_references)

    def forward(self, text: Tensor) -> Tensor:
        """(B, N, D) text embeddings -> the weighted term."""
        # float32, as the temperature amplifies rounding errors of half precision.
        with torch.autocast(text.device.type, enabled=False):
            if self.references is None:  # not in __init__: a checkpoint is loaded after it
                with torch.no_grad():
                    references, queries = self._make_references()
                self.references = references.detach().to(text.device, torch.float32)
                self.queries = queries.to(text.device)
            text = F.normalize(text[:, self.queries].float(), dim=-1)
            logits = text @ self.references.T / self.temperature
        # (B, R): row k of the logits belongs to the query of reference k.
        targets = torch.arange(len(self.queries), device=text.device).expand(len(text), -1)
        return self.weight * F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _forget_references(self, _: object) -> None:
        self.references = None


class VisionLoss(nn.Module):
    """Distance of the image embedding from that of the encoder before training.

    mse_weight * MSE(g, g0) + cosine_weight * mean(1 - cos(g, g0)), the published form. g0 comes
    from a copy of the encoder without gradients or training mode (defect 14), for the same images
    and perturbed regions: only the weights differ, so the term starts at 0. If BatchNorm is trained
    it uses the batch's statistics, also in the copy, which does not store them. The copy,
    ``reference``, is not a submodule: optimizers, checkpoints and ``train()`` do not find it, but
    it moves with ``to()``.

    Args:
        encoder: returns ``embedding`` for images; copied in its current state.
        mse_weight: weight of the squared distance.
        cosine_weight: weight of the cosine distance.
    """

    def __init__(
        self, encoder: Backbone, *, mse_weight: float = 10.0, cosine_weight: float = 2.0
    ) -> None:
        super().__init__()
        # train() leaves frozen parts in eval mode, and get_bn_modules finds those in training mode.
        reference = copy.deepcopy(encoder).requires_grad_(False).train()
        trained_norms = get_bn_modules(reference)
        reference.eval()
        for norm in trained_norms:
            norm.train().track_running_stats = False  # uses batch statistics and stores none
        object.__setattr__(self, "reference", reference)  # nn.Module's own would register it
        self.mse_weight, self.cosine_weight = mse_weight, cosine_weight

    # Called by to(), cuda() and half().
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionLoss:
        self.reference._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor, region: Tensor | None, embedding: Tensor) -> Tensor:
        """The weighted term; arguments as in :meth:`Regularization.forward`."""
        with torch.no_grad():
            target = self.reference(images, region)["embedding"].float()
        embedding = embedding.float()
        mse, distance = F.mse_loss(embedding, target), 1 - F.cosine_similarity(embedding, target)
        return self.mse_weight * mse + self.cosine_weight * distance.mean()


def build_regularization(
    cfg, names: Sequence[str], text: nn.Module, backbone: Backbone
) -> Regularization:
    """The regularizers that are enabled in the config and apply to the model.

    ``names`` are the K known classes and, last, the OOD word; ``text`` has ``build_references``.
    """
    check_positive(cfg, "MODEL.REG", "TEMPERATURE")
    node = cfg.MODEL.REG
    language = vision = None
    if node.LANGUAGE_WEIGHT:
        language = LanguageLoss(
            text.build_references(cfg, names),
            weight=node.LANGUAGE_WEIGHT,
            temperature=node.TEMPERATURE,
        )
    mse_weight, cosine_weight = node.VISION_MSE_WEIGHT, node.VISION_COSINE_WEIGHT
    # A frozen encoder does not change: the term would have no gradient (defect 7).
    if (mse_weight or cosine_weight) and not backbone.frozen:
        if not getattr(backbone, "pretrained", bool(cfg.MODEL.CLIP.WEIGHTS)):
            logger.info(
                "no vision regularizer: an image encoder that starts from random weights has "
                "nothing to hold on to"
            )
        elif not cfg.MODEL.TDOS.HEADS_ONLY:
            vision = VisionLoss(backbone, mse_weight=mse_weight, cosine_weight=cosine_weight)
    return Regularization(language, vision)
