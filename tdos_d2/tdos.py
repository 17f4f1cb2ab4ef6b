"""The meta-architecture TDOS: training losses and inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from .data import class_names
from .errors import UserError
from .modeling.backbone import TAPS
from .modeling.clip import release_weights
from .modeling.criterion import IGNORE, TDOSCriterion
from .modeling.image_model import ImageModel
from .modeling.linear import use_onednn
from .modeling.memory import FeatureMemory, build_memory
from .modeling.merge import check_merge_rules, merge_ood_queries
from .modeling.registry import (
    build_context_decoder,
    build_neck,
    build_pixel_decoder,
    build_text,
    build_transformer_decoder,
)
from .modeling.regularization import Regularization, build_regularization
from .modeling.scores import AnomalyScores, needs_memory, resize
from .modeling.semantic_augmentation import SemanticAugmentation, build_augmentation
from .modeling.text.stored import StoredText
from .modeling.training_events import record_batch
from .modeling.word_maps import word_maps

# Prompts, and other parameters per class or query.
HEADS = (
    "text.",
    "pixel_decoder.text_position.",
    "transformer_decoder.query_position.",
    "transformer_decoder.class_head.",
    "transformer_decoder.mask_head.",
)


@META_ARCH_REGISTRY.register()
class TDOS(ImageModel):
    """Text-driven OOD segmentation: N = K + 1 + M text queries segment an image.

    K known classes, one query for the OOD word, M learnable negatives; the last M + 1 are merged
    into one OOD query before losses and scores (arXiv 2511.07238).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: nn.Module,
        text: nn.Module,
        context_decoder: nn.Module,
        pixel_decoder: nn.Module,
        transformer_decoder: nn.Module,
        criterion: TDOSCriterion,
        semantic_augmentation: SemanticAugmentation | None = None,
        regularization: Regularization | None = None,
        memory: FeatureMemory | None = None,
        heads_only: bool = False,
        class_names: Sequence[str],
        ood_name: str = "ood",
        merge: str = "max",
        class_merge: str = "mean",
        score: str = "log_s_ood",
        extra_scores: Sequence[str] = (),
        **image: Any,
    ) -> None:
        """
        Args:
            backbone: returns ``tap1..4``, ``embedding`` and ``dense`` (see FreezableEncoder).
            neck: taps, score map -> four levels, finest first.
            text: module without inputs that returns (N, D) text embeddings.
            context_decoder: (N, D), (B, S, D_v) -> (B, N, D).
            pixel_decoder: levels, text -> memory, mask features.
            transformer_decoder: memory, mask features, text -> class logits, mask logits.
            criterion: the losses.
            semantic_augmentation: chooses where features are perturbed in training; None: no
                perturbation.
            regularization: further losses.
            memory: memory of normal features, for the scores "memory" and "combined".
            heads_only: train only ``HEADS``; freeze other weights and statistics.
            class_names: names of the K known classes.
            ood_name: the OOD word.
            merge: rule for masks and score maps of the OOD queries (see ``modeling.merge``).
            class_merge: rule for their class logits.
            score: name of the score in ``ood_score`` (see ``modeling.scores``).
            extra_scores: names of the scores in ``ood_scores``.
            image: arguments of :class:`~tdos_d2.modeling.image_model.ImageModel`.

        Raises:
            UserError: unknown merge rule or score; the stride leaves gaps between windows.
        """
        super().__init__(**image)
        check_merge_rules(merge, class_merge)
        self.backbone = backbone
        self.neck = neck
        self.text = text
        self.image_projection = _projection(backbone, text.embed_dim)
        self.context_decoder = context_decoder
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.criterion = criterion
        self.semantic_augmentation = semantic_augmentation
        self.regularization = regularization
        self.memory = memory
        self.heads_only = heads_only
        if heads_only:
            self._freeze_all_but_heads()
        self.class_names, self.ood_name = tuple(class_names), ood_name
        self.num_known = len(self.class_names)
        self.merge, self.class_merge = merge, class_merge
        self.scores = AnomalyScores((score, *extra_scores), criterion.temperature)
        if self.scores.need_memory and memory is None:
            raise UserError("the scores memory and combined need a memory")
        self.score_name, self.extra_scores = score, tuple(extra_scores)
        self.size_divisibility = max(neck.size_divisibility, backbone.size_divisibility)
        use_onednn(self)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node = cfg.MODEL.TDOS
        names = class_names(cfg)
        all_names, num_queries = [*names, node.OOD_NAME], len(names) + 1 + node.NUM_NEGATIVE
        backbone = build_backbone(cfg)
        text = build_text(cfg, all_names)
        release_weights()
        dim, shapes = text.embed_dim, backbone.output_shape()
        neck = build_neck(cfg, [shapes[tap] for tap in TAPS], num_queries)
        need_memory = needs_memory([node.SCORE, *node.EXTRA_SCORES])
        return {
            "backbone": backbone,
            "neck": neck,
            "text": text,
            "context_decoder": build_context_decoder(cfg, dim, dim),
            "pixel_decoder": build_pixel_decoder(cfg, neck.channels, dim, num_queries),
            "transformer_decoder": build_transformer_decoder(
                cfg, dim, num_queries, len(names) + 1
            ),
            "criterion": TDOSCriterion(cfg, len(names)),
            "semantic_augmentation": build_augmentation(cfg, len(names)),
            "regularization": build_regularization(cfg, all_names, text, backbone),
            "memory": build_memory(cfg, shapes) if need_memory else None,
            "heads_only": node.HEADS_ONLY,
            "class_names": names,
            "ood_name": node.OOD_NAME,
            "merge": node.MERGE,
            "class_merge": node.CLASS_MERGE,
            "score": node.SCORE,
            "extra_scores": node.EXTRA_SCORES,
            **cls.image_config(cfg),
        }

    def checkpoint_info(self) -> dict[str, Any]:
        """Information for checkpoints, from which the model can be rebuilt without its config."""
        info = {
            "class_names": list(self.class_names),
            "ood_name": self.ood_name,
            "clip_name": getattr(self.backbone, "architecture", ""),
        }
        fitted = self.memory is not None and len(self.memory.vectors)
        return {**info, "memory": self.memory.info()} if fitted else info

    def train(self, mode: bool = True) -> TDOS:
        """Set the mode of all parts except frozen ones, which stay in eval mode."""
        super().train(mode)
        if self.heads_only:
            for name, part in self.named_children():
                # The query decoder has no statistics, but deep supervision only in training mode.
                part.train(mode and name == "transformer_decoder")
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts: ``image`` (3, H, W) in [0, 255]; in training
                ``sem_seg`` (H, W) int64 with 0..K-1 known, K OOD, 255 ignored; in evaluation
                optionally ``height`` and ``width`` of the original image, and ``words``
                (K + W, D), plain text embeddings of the known names and of W words.

        Returns:
            In training a dict of losses. In evaluation, per input, ``sem_seg`` (K, H, W) float32,
            the averaged S of the known classes at original size; ``ood_score`` (H, W) float32,
            larger = more anomalous; ``ood_scores``, further scores by name; with ``words`` also
            ``word_scores`` and ``word_chances``, (W, H, W) each (see ``modeling.word_maps``).
        """
        if self.training:
            return self._losses(batched_inputs)
        return [self._infer(x) for x in batched_inputs]

    def embed(self, images: Tensor, regions: Tensor) -> Tensor:
        """Embeddings of image regions, to be compared with plain text embeddings.

        Args:
            images: (B, 3, H, W) in [0, 255], H and W multiples of ``size_divisibility``.
            regions: (B, H, W) in [0, 1], not all 0.

        Returns:
            (B, D) mean of the dense visual embedding's unit vectors over each region.
        """
        features = self.backbone(self._normalise(images))
        dense, grid = self._dense(features), features["dense"].shape[-2:]  # (B, h * w, D)
        with self._full_precision():
            unit = F.normalize(dense.float(), dim=-1)
            share = F.adaptive_avg_pool2d(regions[:, None].to(self.device, torch.float32), grid)
            share = share.flatten(1) / share.sum(dim=(1, 2, 3))[:, None]
            return (share[:, None] @ unit)[:, 0]

    def fit_memory(self, images: Iterable[Tensor], *, seed: int = 0) -> int:
        """Fill the memory, and weight the scores of "combined", with normal frames.

        Args:
            images: (3, H, W) frames in [0, 255] at test size, iterated over up to three times: a
                list or a dataset.
            seed: seed of the random selection.

        Returns:
            The number of vectors, at most the memory's size.

        Raises:
            UserError: there are no frames, or no score needs a memory.
        """
        if self.memory is None:
            raise UserError(
                "this model has no memory: MODEL.TDOS.SCORE or EXTRA_SCORES must name memory or "
                "combined"
            )
        self.eval()
        with torch.no_grad():
            count = self.memory.fit(self._features_of(images), seed)
            if "combined" in self.scores.names:
                self.scores.fit(self._slide(image) for image in images)
        return count

    def match_checkpoint(self, state: Mapping[str, Tensor]) -> None:
        """Adapt the model to a checkpoint before this is loaded.

        The memory gets the checkpoint's size. If the checkpoint is packed and has text embeddings,
        they replace the text encoder.
        """
        if "text.embeddings" in state:
            self.text = StoredText(torch.zeros_like(state["text.embeddings"], dtype=torch.float32))
            self.text.to(self.device)
        if self.memory is not None:
            self.memory.match(state, "memory.")

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        # Whoever loads the weights, such as Detectron2's DefaultPredictor: text embeddings that are
        # in the checkpoint must not be left out in favour of prompts with their start values.
        if not prefix and "text.embeddings" in state:
            self.match_checkpoint(state)
        super()._load_from_state_dict(state, prefix, *args)

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [self._normalise(x["image"]) for x in batched_inputs]
        # Normalised first, so that padding with 0 is padding with the mean colour.
        images = ImageList.from_tensors(images, self.size_divisibility)
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        labels = ImageList.from_tensors(labels, self.size_divisibility, IGNORE).tensor
        region = None
        if self.semantic_augmentation is not None:
            labels, region = self.semantic_augmentation(labels)
        features = self.backbone(images.tensor, region)
        # Class logits, mask logits, score map; text; mask logits before merging.
        *outputs, text, of_queries = self._segment(features)
        record_batch(labels, of_queries[-1], self.num_known)
        losses = self.criterion(*outputs, labels)
        # These outputs stay in the graph even if no enabled loss or decoder uses them: with several
        # processes, each waits for the gradients of all trained parameters.
        unused = outputs[2].float().mean() + features["embedding"].float().mean()
        losses["loss_class"] = losses["loss_class"] + 0 * unused
        if self.regularization is not None:
            losses |= self.regularization(
                text, images.tensor, region, features["embedding"]
            )
        return losses

    def _infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image, words = inputs["image"], inputs.get("words")
        maps = self._slide(image, words=words)
        size = (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
        num_words = 0 if words is None else len(words) - self.num_known
        maps, of_words = maps.split([len(maps) - 2 * num_words, 2 * num_words])
        known, scores = self.scores.finish(resize(maps[None], size)[0])
        output = {"sem_seg": known, "ood_score": scores[self.score_name]}
        if self.extra_scores:
            output["ood_scores"] = {name: scores[name] for name in self.extra_scores}
        if num_words:
            cosines, chances = resize(of_words[None], size)[0].split(num_words)
            output |= {"word_scores": cosines, "word_chances": chances}
        return output

    def _decode(
        self, features: dict[str, Tensor], size: tuple[int, int], words: Tensor | None = None
    ) -> Tensor:
        h, w = size
        class_logits, mask_logits, score_map, *_ = self._segment(features)
        padded = self._padded_size(h), self._padded_size(w)
        with self._full_precision():
            maps = self.scores.window_maps(
                class_logits[-1],
                mask_logits[-1],
                score_map,
                padded,
                self.memory(features) if self.scores.need_memory else None,
            )
        if words is not None:
            dense = self._dense(features).transpose(1, 2)
            dense = dense.unflatten(2, features["dense"].shape[-2:])
            of_words = word_maps(dense, words.to(self.device), self.num_known)
            maps = torch.cat([maps, resize(of_words, padded)], dim=1)
        return maps[..., :h, :w]  # without the padding, before windows are averaged

    def _dense(self, features: dict[str, Tensor]) -> Tensor:
        """(B, S, D) dense visual embedding in text space."""
        return self.image_projection(features["dense"].flatten(2).transpose(1, 2))

    def _segment(self, features: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs of the backbone -> class logits (O, B, K + 1, K + 2), mask logits
        (O, B, K + 1, h, w) and score map (B, K + 1, h', w') of the merged queries, all float32; and
        the text embeddings (B, N, D) and mask logits (O, B, N, h, w) of all queries.
        """
        dense = self._dense(features)
        embedding = self.image_projection(features["embedding"])  # (B, D), CLIP's image embedding
        visual = torch.cat([embedding[:, None], dense], dim=1)  # (B, 1 + S, D)
        text = self.context_decoder(self.text(), visual)
        with self._full_precision():
            units = F.normalize(text.float(), dim=-1), F.normalize(dense.float(), dim=-1)
            score_map = units[0] @ units[1].transpose(1, 2)  # cosines, (B, N, S)
        score_map = score_map.unflatten(2, features["dense"].shape[-2:])
        levels = self.neck([features[tap] for tap in TAPS], score_map)
        memory, mask_features = self.pixel_decoder(levels, text)
        class_logits, mask_logits = self.transformer_decoder(memory, mask_features, text)
        with self._full_precision():
            merged = merge_ood_queries(
                class_logits.float(),
                mask_logits,
                score_map,
                self.num_known,
                rule=self.merge,
                class_rule=self.class_merge,
            )
        return *merged, text, mask_logits

    def _full_precision(self) -> torch.autocast:
        """Disable autocast, whose half precision would cause ties of cosines and scores."""
        return torch.autocast(self.device.type, enabled=False)

    def _freeze_all_but_heads(self) -> None:
        for name, parameter in self.named_parameters():
            if not name.startswith(HEADS):
                parameter.requires_grad_(False)
        self.train(self.training)


def _projection(backbone: Backbone, text_dim: int) -> nn.Module:
    """Projection from image to text space: identity for CLIP's encoders, else learned.

    CLIP's text may have another width, if its embeddings are from a file.
    """
    width = backbone.output_shape()["dense"].channels
    in_text_space = getattr(backbone, "in_text_space", False) and width == text_dim
    return nn.Identity() if in_text_space else nn.Linear(width, text_dim)
