"""A predictor: class labels and OOD scores of images in one call."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import Tensor

from ..data import TDOSDatasetMapper
from ..errors import UserError
from ..evaluation.evaluators import score_settings
from ..evaluation.frames import check_finite
from ..evaluation.operating_point import OperatingPoint, load_operating_point
from ..labels import VOID
from ..loading.checkpoint import TDOSCheckpointer
from ..loading.config_checks import check_model
from ..loading.config_files import holds_encoders, local_weights
from ..modeling.fusion import fuse_for_prediction
from ..modeling.sliding_window import windows_at_once
from ..modeling.text.stored import StoredText
from ..modeling.text.word_embeddings import WordEmbeddings, split_words
from ..modeling.weight_files import weights_follow
from ..ood_words import load_groups
from .score_units import chance_as_score

logger = logging.getLogger(__name__)

# CLIP's input size; and margin: an object's box covers about two thirds of its crop.
_CROP, _CROP_MARGIN = 224, 0.25
_OF_WORDS = ("word_scores", "word_chances")
_OUTPUTS = ("sem_seg", "ood_score", *_OF_WORDS)


class OODPredictor:
    """Counterpart of Detectron2's DefaultPredictor for TDOS and NormalityMemory.

    Class names and architecture come from the checkpoint in ``MODEL.WEIGHTS``, as in evaluation.
    Text embeddings are computed once. Calls from several threads are safe and give the same results
    as sequential calls.

    Words need no training. Their scores are meaningful if the text embeddings are: with a
    checkpoint that was trained from CLIP's weights, or with ``MODEL.TEXT.EMBEDDINGS``, and then
    only for the words of that file. With random weights, as in the demo, they are meaningless.
    A NormalityMemory has neither words nor known classes.

    Attributes:
        model: the model.
        class_names: names of the K known classes.
        score: name of the score in ``ood_score``.
        takes_words: whether the model has text embeddings that words can be compared with.
        words_have_meaning: whether the scores of words are meaningful.
        weights: file of the checkpoint; None if there is none, or it is a URL.
        channels: "RGB" or "BGR", the channel order that the model was trained with.
        settings: by config key, what the scores depend on beside the checkpoint.
        notes: lines for a log: settings taken from the checkpoint or the machine.
    """

    def __init__(self, cfg: CfgNode, *, half: bool = True) -> None:
        """
        Args:
            cfg: the complete config; it is not changed.
            half: half precision on a GPU, and on a CPU with ``TEST.BFLOAT16``; False = float32.

        Raises:
            UserError: a file or key of the config is wrong, or the checkpoint does not fit it.
        """
        self._groups = cfg.MODEL.PROMPTS.GROUPS
        cfg = cfg.clone()
        self.notes = check_model(cfg)
        self.weights = local_weights(cfg)
        with weights_follow(holds_encoders(cfg, self.weights)):
            self.model = build_model(cfg).eval()
        on_gpu = self.model.device.type == "cuda"
        half = half and (on_gpu or cfg.TEST.BFLOAT16)
        self._precision = (torch.float16 if on_gpu else torch.bfloat16) if half else None
        if cfg.MODEL.WEIGHTS:
            self._load(cfg.MODEL.WEIGHTS)
        else:
            self.notes.append("MODEL.WEIGHTS is empty: the model is untrained")
            logger.warning(self.notes[-1])
        fuse_for_prediction(self.model)
        self.class_names, self.score = self.model.class_names, self.model.score_name
        self.settings = score_settings(cfg)
        # True for float16: existing threshold files have it, from when float16 was the only type.
        self.settings["half precision"] = bool(half) if on_gpu or not half else "bfloat16"
        mapper = TDOSDatasetMapper(cfg, is_train=False)
        self._augmentations, self.channels = mapper.augmentations, mapper.image_format
        text = getattr(self.model, "text", None)
        self.takes_words = text is not None
        self.words_have_meaning = (
            self.takes_words
            and not isinstance(text, StoredText)
            and bool(cfg.MODEL.CLIP.WEIGHTS or cfg.MODEL.TEXT.EMBEDDINGS)
        )
        self._list: list[str] | None = None if self.takes_words else []
        if not self.takes_words:
            return
        with torch.no_grad():
            self.model.text()  # kept by the model
        self._words = WordEmbeddings(self.model.text, cfg.MODEL.TEXT.EMBEDDINGS)

    def __call__(
        self, bgr_image: np.ndarray | Sequence[np.ndarray], words: str | Sequence[str] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Predict on an image or on a list of images of any sizes.

        Args:
            bgr_image: (H, W, 3) uint8 in OpenCV's channel order, or a list of such.
            words: concepts to look for, such as ``["deer", "lost cargo"]`` or "deer, lost cargo".
                They do not change the other results.

        Returns:
            Per image, a dict of arrays of its size: ``labels`` (H, W) uint8, the known class with
            the largest S, 255 if there are no known classes; ``sem_seg`` (K, H, W) float32, S of
            the known classes; ``ood_score`` (H, W) float32, larger = more anomalous;
            ``word_scores``, by word the (H, W) float32 cosines in [-1, 1] of its text embedding
            with the dense visual embedding; with words also ``word_chances``, by word (H, W)
            float32 in [0, 1]: above 1/2 the word fits better than every known name (see
            ``modeling.word_maps``).

        Raises:
            ValueError: an image has another shape or type.
            UserError: ``words`` is empty; a word is too long for the text encoder, or
                ``MODEL.TEXT.EMBEDDINGS`` lacks it; the model takes no words; the model gives NaN
                or infinity.
        """
        names = None if words is None else split_words(words)
        if bgr_image is None or isinstance(bgr_image, (np.ndarray, str, os.PathLike)):
            return self._predict(bgr_image, names)
        return [self._predict(image, names) for image in bgr_image]

    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Plain text embeddings, (n, D) float32, unit length.

        Raises:
            UserError: a word is too long for the text encoder, or ``MODEL.TEXT.EMBEDDINGS`` lacks
                it; the model has no text embeddings.
        """
        if not self.takes_words:
            raise UserError(
                f"a {type(self.model).__name__} has no text side that words could be compared with"
            )
        return self._words(words)

    @cached_property
    def operating_point(self) -> OperatingPoint | None:
        """The threshold saved beside the checkpoint; None if there is none.

        Raises:
            UserError: it belongs to another checkpoint, or is damaged.
        """
        return self.weights and load_operating_point(self.weights)

    def combined_score(self, result: dict[str, Any]) -> np.ndarray:
        """Maximum of ``ood_score`` and the words' chances in its unit, (H, W) float32.

        S_ood approximates the share of a pixel that OOD claims, and a word's chance is calibrated
        to the same range by the known names, so the default score gives max(log S_ood, log chance).
        For other scores see ``score_units``. Without words the result is ``ood_score``.

        Args:
            result: the result of a call.
        """
        score = result["ood_score"]
        for chance in result.get("word_chances", {}).values():
            as_score = chance_as_score(chance, self.score, len(self.class_names))
            score = np.maximum(score, as_score)
        return score

    def nearest_words(
        self,
        bgr_image: np.ndarray,
        regions: np.ndarray,
        boxes: Sequence[tuple[int, int, int, int]],
        number: int = 3,
    ) -> list[list[tuple[str, float]]]:
        """The OOD words nearest to each region by text-image similarity.

        Each region is cropped with its surroundings; its mean dense visual embedding is compared
        with plain text embeddings: those of the list in ``MODEL.PROMPTS.GROUPS`` or, with
        ``MODEL.TEXT.EMBEDDINGS``, of all names in that file except the known ones.

        Args:
            bgr_image: (H, W, 3) uint8.
            regions: (H, W) int, i in region number i, from 1.
            boxes: x0, y0, x1, y1 of each region.
            number: number of words per region.

        Returns:
            Per region (word, cosine), nearest first; empty if ``words_have_meaning`` is False or
            the config names no list.
        """
        words, embeddings = self._word_list()
        if not words:
            return [[] for _ in boxes]
        step = windows_at_once(self.model.window["batch"], self.model.device)
        found = []
        for start in range(0, len(boxes), step):
            crops = [
                _crop(bgr_image, regions == i + 1, boxes[i], self.channels)
                for i in range(start, min(start + step, len(boxes)))
            ]
            images, masks = (torch.stack(parts) for parts in zip(*crops, strict=True))
            with torch.no_grad(), self._autocast():
                of_regions = self.model.embed(images, masks).float().cpu()
            cosines = F.normalize(of_regions, dim=1) @ embeddings.T
            self._check_finite(cosines.numpy(), "nearest words")
            best = cosines.topk(min(number, len(words)))
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                found.append([(words[j], v) for v, j in zip(values, places, strict=True)])
        return found

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which an image of that size is resized for the model."""
        aug_input = T.AugInput(np.zeros((height, width, 3), np.uint8))
        self._augmentations(aug_input)
        return aug_input.image.shape[:2]

    def _load(self, weights: str) -> None:
        whole = f"checkpoint {weights} is not of the config's model: it has"
        TDOSCheckpointer(self.model).load(weights, whole=whole)

    def _check_finite(self, values: np.ndarray, what: str) -> None:
        half = " (half precision may be the cause: --full-precision, or half=False)"
        check_finite(values, what, half if self._precision else "")

    def _autocast(self) -> torch.autocast:
        enabled = self._precision is not None
        return torch.autocast(self.model.device.type, self._precision, enabled=enabled)

    def _predict(self, image: np.ndarray, words: list[str] | None) -> dict[str, Any]:
        if not isinstance(image, np.ndarray):
            raise ValueError(
                f"(H, W, 3) uint8 expected, not {image!r:.60}: cv2.imread reads a file, and gives "
                "None if it is no image"
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"(H, W, 3) uint8 expected, not {image.shape} {image.dtype}")
        inputs: dict[str, Any] = {"height": image.shape[0], "width": image.shape[1]}
        rgb_or_bgr = image[..., ::-1] if self.channels == "RGB" else image
        aug_input = T.AugInput(np.ascontiguousarray(rgb_or_bgr))
        self._augmentations(aug_input)
        inputs["image"] = _tensor(aug_input.image)
        if words is not None:
            inputs["words"] = self.embed_words([*self.class_names, *words])
        with torch.no_grad(), self._autocast():
            (output,) = self.model([inputs])
        arrays = {key: output[key].float().cpu().numpy() for key in _OUTPUTS if key in output}
        for key, values in arrays.items():
            self._check_finite(values, f"the model's {key}")
        known = arrays["sem_seg"]
        labels = known.argmax(axis=0) if len(known) else np.full(image.shape[:2], VOID)
        result = {
            "labels": labels.astype(np.uint8),
            "sem_seg": known,
            # Copies: kept alone, a view would keep the maps of all classes and scores.
            "ood_score": arrays["ood_score"].copy(),
            "word_scores": {},
        }
        if words is not None:
            for key in _OF_WORDS:
                result[key] = dict(zip(words, arrays[key].copy(), strict=True))
        return result

    def _word_list(self) -> tuple[list[str], Tensor]:
        """OOD words to name regions with, and their embeddings."""
        if self._list is None:
            known = {name.lower() for name in (*self.class_names, self.model.ood_name)}
            words = self._words.words
            if not words and self._groups and self.words_have_meaning:
                words = load_groups(self._groups).words
            self._list = [word for word in words if word.lower() not in known]
        return self._list, self._words.of_list(self._list) if self._list else torch.zeros(0)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _crop(
    image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int], channels: str
) -> tuple[Tensor, Tensor]:
    """A square crop around a box, (3, 224, 224) uint8, and the mask's share of its pixels."""
    x0, y0, x1, y1 = box
    side = round(max(x1 - x0, y1 - y0) * (1 + 2 * _CROP_MARGIN))
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    inside = np.zeros((side, side), np.float32)
    inside[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0:y1, x0:x1]
    cut = image[rows[:, None], columns]
    cut = cut[..., ::-1] if channels == "RGB" else cut
    way = cv2.INTER_AREA if side > _CROP else cv2.INTER_LINEAR
    cut, inside = (cv2.resize(np.ascontiguousarray(x), (_CROP, _CROP), interpolation=way)
                   for x in (cut, inside))  # fmt: skip
    return _tensor(cut), torch.from_numpy(inside)
