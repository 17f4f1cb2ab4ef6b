"""Results for one frame: objects with the words nearest to them, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import UserError
from ..visualization.drawing import palette, score_picture, segmentation_picture
from .objects import OODObject, default_min_area, find_objects, region_means
from .predictor import OODPredictor
from .score_units import score_range


@dataclass
class FrameResult:
    """Results for one frame.

    Attributes:
        record: the entries for its JSON line.
        score: (H, W) raw score.
        score_picture: RGB; None if nothing is drawn.
        segmentation_picture: RGB; None also if there are no known classes.
        word_pictures: RGB by word.
        regions: (H, W) int32, i on the object with ``id`` i, else 0; None without a threshold.
    """

    record: dict[str, Any]
    score: np.ndarray
    score_picture: np.ndarray | None
    segmentation_picture: np.ndarray | None
    word_pictures: dict[str, np.ndarray]
    regions: np.ndarray | None = None

    def pictures(self) -> dict[str, np.ndarray]:
        """The pictures other than those of words, by name."""
        made = {"score": self.score_picture, "segmentation": self.segmentation_picture}
        return {kind: picture for kind, picture in made.items() if picture is not None}


class FramePredictor:
    """Predicts on frames, finds objects and draws pictures.

    Args:
        predictor: the model.
        colours: (K, 3) RGB of the known classes.
        threshold: pixels with a score of this or more are OOD; None: no objects are looked for.
        words: concepts to look for; None: none.
        combine: whether words raise the score.
        num_nearest: nearest OOD words per object; none for a model without text embeddings.
        min_area: smallest object in pixels; None: by the size of the frame.
        limits: scores of the darkest and the brightest colour; None: by the kind of score.
        ego_mask: (H, W) bool, True on the ego vehicle; None: no mask.
        draw: draw pictures.
    """

    def __init__(
        self,
        predictor: OODPredictor,
        colours: np.ndarray,
        *,
        threshold: float | None = None,
        words: Sequence[str] | None = None,
        combine: bool = False,
        num_nearest: int = 3,
        min_area: int | None = None,
        limits: tuple[float, float] | None = None,
        ego_mask: np.ndarray | None = None,
        draw: bool = True,
    ) -> None:
        self.predictor, self.colours = predictor, colours
        self.threshold, self.words, self.combine = threshold, words, combine
        self.num_nearest = num_nearest if predictor.takes_words else 0
        self.min_area = min_area
        names = predictor.class_names
        self.limits = limits or score_range(predictor.score, len(names))
        self.ego_mask, self.draw = ego_mask, draw
        self._valid = None if ego_mask is None else ~ego_mask

    def __call__(
        self,
        image: np.ndarray,
        pictures_of_words: bool = True,
        *,
        result: dict[str, Any] | None = None,
        smooth: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        follow: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> FrameResult:
        """All results for a frame.

        Args:
            image: (H, W, 3) uint8 BGR.
            pictures_of_words: whether to draw the pictures of words.
            result: the predictor's result for the image and the words; None: it is computed.
            smooth: called with the image and its (H, W) score; objects, pictures and results use
                the score that it returns.
            follow: called with the objects of the frame; may add entries to them.

        Raises:
            UserError: the ego vehicle's mask has another size than the frame.
        """
        height, width = image.shape[:2]
        if self.ego_mask is not None and self.ego_mask.shape != (height, width):
            there = f"{self.ego_mask.shape[1]}x{self.ego_mask.shape[0]}"
            raise UserError(f"the frame is {width}x{height}, but --ego-mask is {there}")
        if result is None:
            result = self.predictor(image, self.words)
        score = self.predictor.combined_score(result) if self.combine else result["ood_score"]
        if smooth is not None:
            score = smooth(image, score)
        record: dict[str, Any] = {
            "width": width, "height": height, "score": self.predictor.score,
            "threshold": self.threshold, "objects": None,
        }  # fmt: skip
        objects, regions = [], None
        if self.threshold is not None:
            smallest = self.min_area or default_min_area((height, width))
            objects, regions = find_objects(
                score, self.threshold, min_area=smallest, valid=self._valid
            )
            record["objects"] = self._describe(image, result, objects, regions)
            if follow is not None:
                follow(record["objects"])
        if not self.draw:
            return FrameResult(record, score, None, None, {}, regions)
        rgb = np.ascontiguousarray(image[..., ::-1])
        heat, segmentation = self._draw(rgb, result, score, objects, regions, record)
        of_words = self._draw_words(rgb, result) if pictures_of_words else {}
        return FrameResult(record, score, heat, segmentation, of_words, regions)

    def _describe(
        self,
        image: np.ndarray,
        result: dict[str, Any],
        objects: Sequence[OODObject],
        regions: np.ndarray,
    ) -> list[dict[str, Any]]:
        described = [{"id": i, **asdict(item)} for i, item in enumerate(objects, start=1)]
        if self.words:
            of_objects = {
                key: {w: region_means(regions, m, len(objects)) for w, m in result[key].items()}
                for key in ("word_scores", "word_chances")
            }
            for i, entry in enumerate(described):
                for key, means in of_objects.items():
                    entry[key] = {word: round(float(mean[i]), 4) for word, mean in means.items()}
                chances = entry["word_chances"]
                best = max(chances, key=chances.get)
                entry["word"] = best if chances[best] > 0.5 else None
        if self.num_nearest:
            nearest = self.predictor.nearest_words(
                image, regions, [item.box for item in objects], self.num_nearest
            )
            for entry, found in zip(described, nearest, strict=True):
                entry["nearest_words"] = [[word, round(cosine, 4)] for word, cosine in found]
        return described

    def _draw(
        self,
        rgb: np.ndarray,
        result: dict[str, Any],
        score: np.ndarray,
        objects: Sequence[OODObject],
        regions: np.ndarray | None,
        record: dict[str, Any],
    ) -> tuple[np.ndarray, np.ndarray | None]:
        names = self.predictor.class_names
        entries = record["objects"] or []
        tags = [(item.box, _tag(entry)) for item, entry in zip(objects, entries, strict=True)]
        title = f"OOD score ({self.predictor.score}{', words' if self.combine else ''})"
        heat = score_picture(
            rgb, score, self.limits, title,
            threshold=self.threshold, regions=regions, tags=tags, valid=self._valid,
        )  # fmt: skip
        if not names:
            return heat, None
        label = result["labels"].copy()
        if regions is not None:
            label[regions > 0] = len(names)
        return heat, segmentation_picture(rgb, label, names, self.colours, self._valid)

    def _draw_words(self, rgb: np.ndarray, result: dict[str, Any]) -> dict[str, np.ndarray]:
        chances = result.get("word_chances", {})
        return {
            word: score_picture(rgb, chance, (0.0, 1.0), f'chance of "{word}"')
            for word, chance in chances.items()
        }


def class_colours(cfg: CfgNode, number: int) -> np.ndarray:
    """(K, 3) uint8 RGB colours of the known classes, from the training set if it has colours.

    Args:
        cfg: the model's config.
        number: number K of known classes.
    """
    train = cfg.DATASETS.TRAIN
    given = MetadataCatalog.get(train[0]).get("stuff_colors") if train else None
    return palette(number, given)


def _tag(entry: dict[str, Any]) -> str:
    """The label drawn at an object: its number (in a video, its track's) and its word."""
    number = f"track {entry['track']}" if "track" in entry else str(entry["id"])
    alarm = "ALARM" if entry.get("alarm") else None
    return " ".join(filter(None, [number, alarm, entry.get("word")]))
