"""The meta-architecture: what happens to an image, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from .data import class_names
from .errors import UserError
from .modeling.backbone import TAPS, ScaleNeck
from .modeling.build import build_text
from .modeling.clip import release_weights
from .modeling.criterion import IGNORE, TDOSCriterion
from .modeling.merge import MERGE_RULES, merge_classes, merge_maps
from .modeling.pixel_decoder import TextPixelDecoder
from .modeling.scores import get_score, known_scores
from .modeling.sliding_window import slide
from .modeling.text import ContextDecoder
from .modeling.transformer_decoder import TextQueryDecoder


@META_ARCH_REGISTRY.register()
class TDOS(nn.Module):
    """Text-driven OOD segmentation: N = K + 1 + M text queries segment an image.

    K known classes, one query for the OOD word, M learnable negatives; the last M + 1 are merged
    into one OOD query before losses and scores (arXiv 2511.07238).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: ScaleNeck,
        text: nn.Module,
        context_decoder: ContextDecoder,
        pixel_decoder: TextPixelDecoder,
        transformer_decoder: TextQueryDecoder,
        criterion: TDOSCriterion,
        class_names: Sequence[str],
        ood_name: str = "ood",
        merge: str = "max",
        score: str = "log_s_ood",
        extra_scores: Sequence[str] = (),
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        window_size: int = 512,
        window_stride: int = 341,
        window_batch: int = 4,
    ) -> None:
        """
        Args:
            backbone: gives ``tap1..4``, ``embedding`` and ``dense`` (see CLIPVisionTransformer).
            neck: taps -> four levels, finest first.
            text: module without arguments that gives (N, D) text embeddings.
            context_decoder: (N, D), (B, S, D_v) -> (B, N, D).
            pixel_decoder: levels, text -> memory, mask features.
            transformer_decoder: memory, mask features, text -> class logits, mask logits.
            criterion: the losses.
            class_names: names of the K known classes.
            ood_name: the OOD word.
            merge: rule for the masks of the OOD queries, "max" or "mean".
            score: name of the score in ``ood_score``.
            extra_scores: names of the scores in ``ood_scores``.
            pixel_mean: per channel, in the order of the images given.
            pixel_std: per channel.
            window_size: side of the sliding window in pixels, 0 = whole image.
            window_stride: its step in pixels.
            window_batch: windows per forward pass.

        Raises:
            UserError: unknown merge rule or score.
        """
        super().__init__()
        if merge not in MERGE_RULES:
            raise UserError(f"MODEL.TDOS.MERGE: '{merge}' is none of {', '.join(MERGE_RULES)}")
        self.backbone = backbone
        self.neck = neck
        self.text = text
        self.image_projection = _projection(
            backbone.output_shape()["dense"].channels, text.embed_dim
        )
        self.context_decoder = context_decoder
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.criterion = criterion
        self.class_names, self.ood_name = tuple(class_names), ood_name
        self.num_known = len(self.class_names)
        self.merge = merge
        self.scores = {name: get_score(name) for name in (score, *extra_scores)}
        self.score_name = score
        self.window = {"size": window_size, "stride": window_stride, "batch": window_batch}
        self.size_divisibility = max(neck.size_divisibility, backbone.size_divisibility)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node, pixel, query = cfg.MODEL.TDOS, cfg.MODEL.PIXEL_DECODER, cfg.MODEL.TRANSFORMER_DECODER
        names = class_names(cfg)
        backbone = build_backbone(cfg)
        text = build_text(cfg, [*names, node.OOD_NAME])
        release_weights()
        shapes = backbone.output_shape()
        neck = ScaleNeck([shapes[tap] for tap in TAPS], cfg.MODEL.NECK.NORM)
        context = {k.lower(): v for k, v in cfg.MODEL.CONTEXT_DECODER.items()}
        num_queries = len(names) + 1 + node.NUM_NEGATIVE
        return {
            "backbone": backbone,
            "neck": neck,
            "text": text,
            "context_decoder": ContextDecoder(
                text.embed_dim, text.embed_dim, gamma_init=node.GAMMA_INIT, **context
            ),
            "pixel_decoder": TextPixelDecoder(
                neck.channels,
                text.embed_dim,
                num_queries,
                hidden_dim=pixel.HIDDEN_DIM,
                num_layers=pixel.NUM_LAYERS,
                num_heads=pixel.NUM_HEADS,
                num_points=pixel.NUM_SAMPLING_POINTS,
                ffn_dim=pixel.FFN_DIM,
            ),
            "transformer_decoder": TextQueryDecoder(
                text.embed_dim,
                num_queries,
                len(names) + 1,
                hidden_dim=pixel.HIDDEN_DIM,
                num_layers=query.NUM_LAYERS,
                num_heads=query.NUM_HEADS,
                ffn_dim=query.FFN_DIM,
            ),
            "criterion": TDOSCriterion(
                len(names),
                class_weight=node.CLASS_WEIGHT,
                mask_weight=node.MASK_WEIGHT,
                dice_weight=node.DICE_WEIGHT,
                score_map_weight=node.SCORE_MAP_WEIGHT,
                ood_weight=node.OOD_WEIGHT,
                no_object_weight=node.NO_OBJECT_WEIGHT,
                num_points=node.NUM_POINTS,
                oversample_ratio=node.OVERSAMPLE_RATIO,
                importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
                temperature=node.SCORE_MAP_TEMPERATURE,
            ),
            "class_names": names,
            "ood_name": node.OOD_NAME,
            "merge": node.MERGE,
            "score": node.SCORE,
            "extra_scores": node.EXTRA_SCORES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "window_size": cfg.TEST.WINDOW.SIZE,
            "window_stride": cfg.TEST.WINDOW.STRIDE,
            "window_batch": cfg.TEST.WINDOW.BATCH,
        }

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

    def checkpoint_info(self) -> dict[str, Any]:
        """What a checkpoint must say so that the model can be built again without its config."""
        return {
            "class_names": list(self.class_names),
            "ood_name": self.ood_name,
            "clip_name": getattr(self.backbone, "architecture", ""),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's list of dicts: ``image`` (3, H, W) in [0, 255]; in training
                ``sem_seg`` (H, W) int64 with 0..K-1 known, K OOD, 255 ignored; in evaluation
                optionally ``height`` and ``width`` of the original image.

        Returns:
            In training a dict of losses. In evaluation, per input, ``sem_seg`` (K, H, W) float32,
            the averaged S of the known classes at original size; ``ood_score`` (H, W) float32,
            larger = more anomalous; ``ood_scores``, further scores by name.
        """
        if self.training:
            return self._losses(batched_inputs)
        return [self._infer(x) for x in batched_inputs]

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [self._normalise(x["image"]) for x in batched_inputs]
        images = ImageList.from_tensors(images, self.size_divisibility)
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        labels = ImageList.from_tensors(labels, self.size_divisibility, IGNORE).tensor
        class_logits, mask_logits, score_map = self._merged(*self._segment(images.tensor))
        return self.criterion(class_logits, mask_logits, score_map, labels)

    def _infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image = self._normalise(inputs["image"])
        maps = slide(image, self._predict, **self.window)
        size = (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
        maps = _resize(maps[None], size)[0]
        scores = dict(zip(self.scores, maps[self.num_known :], strict=True))
        output = {"sem_seg": maps[: self.num_known], "ood_score": scores[self.score_name]}
        if len(scores) > 1:
            del scores[self.score_name]
            output["ood_scores"] = scores
        return output

    def _predict(self, windows: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, K + number of scores, h, w): S of the known classes, then scores."""
        h, w = windows.shape[-2:]
        d = self.size_divisibility
        padded = F.pad(windows, (0, -w % d, 0, -h % d))
        class_logits, mask_logits, _ = self._merged(*self._segment(padded))
        outputs = class_logits[-1].float(), mask_logits[-1].float()
        scores = [score(*outputs) for score in self.scores.values()]
        maps = torch.cat([known_scores(*outputs), torch.stack(scores, dim=1)], dim=1)
        return _resize(maps, padded.shape[-2:])[..., :h, :w]

    def _segment(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> class logits (O, B, N, K + 2), masks (O, B, N, ...), cosines."""
        features = self.backbone(images)
        dense = self.image_projection(features["dense"].flatten(2).transpose(1, 2))
        embedding = self.image_projection(features["embedding"])
        visual = torch.cat([embedding[:, None], dense], dim=1)
        text = self.context_decoder(self.text(), visual)
        score_map = F.normalize(text, dim=-1) @ F.normalize(dense, dim=-1).transpose(1, 2)
        levels = self.neck([features[tap] for tap in TAPS])
        memory, mask_features = self.pixel_decoder(levels, text)
        class_logits, mask_logits = self.transformer_decoder(memory, mask_features, text)
        return class_logits, mask_logits, score_map.unflatten(2, features["dense"].shape[-2:])

    def _merged(
        self, class_logits: Tensor, mask_logits: Tensor, score_map: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with K + 1 queries."""
        return (
            merge_classes(class_logits, self.num_known),
            merge_maps(mask_logits, self.num_known, self.merge),
            merge_maps(score_map, self.num_known, self.merge),
        )

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std


def _projection(in_dim: int, out_dim: int) -> nn.Module:
    """Image space to text space: nothing where both are CLIP's, learned where the text is not."""
    return nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
