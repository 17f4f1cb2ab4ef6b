"""The models that the page offers. All sessions share one instance of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from ...loading.config_files import load_config, use_shipped_weights
from ...modeling.text.stored import StoredText
from ..frame_predictor import class_colours
from ..predictor import OODPredictor
from ..score_units import score_range
from ..thresholds import Threshold, choose_threshold

# Configs with weights and a calibrated threshold that ship with the project.
SHIPPED = (
    "memory_lite2.yaml", "camvid/tdos_lite2_cutouts_memory.yaml", "camvid/tdos_lite2_memory.yaml",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AppModel:
    """A loaded model.

    Attributes:
        name: its entry in the page's list of models.
        predictor: the model.
        colours: (K, 3) RGB of the known classes.
        saved: the threshold saved beside the checkpoint; its value is None if there is none.
        busy: lock, held while the model computes, so that it processes one frame at a time.
    """

    name: str
    predictor: OODPredictor
    colours: np.ndarray
    saved: Threshold
    busy: Lock

    @property
    def slider(self) -> tuple[float, float, float]:
        """Lowest, highest and initial threshold; initial is the saved one, else the middle."""
        low, high = score_range(self.predictor.score, len(self.predictor.class_names))
        first = (low + high) / 2 if self.saved.value is None else self.saved.value
        return min(low, first), max(high, first), first

    @property
    def no_words(self) -> str:
        """Why the model takes no words; "" if it takes them."""
        if not self.predictor.takes_words:
            return "this model has no text side: it compares images with images"
        if isinstance(self.predictor.model.text, StoredText):
            return "this packed checkpoint holds no text encoder"
        if not self.predictor.words_have_meaning:
            return "this model's text encoder was never CLIP's: words have no meaning for it"
        return ""

    def about_threshold(self, value: float) -> str:
        """A line about a threshold: its origin and its guarantee."""
        if self.saved.value is None:
            return f"threshold {value:.4g}, as set: none is saved beside the checkpoint"
        if np.isclose(value, self.saved.value, rtol=1e-6, atol=0):
            return self.saved.note
        return f"threshold {value:.4g}, as set: the saved one is {self.saved.value:.4g}"


class Models:
    """The models by name; each is loaded when it is first asked for, and kept.

    Args:
        own: config and checkpoint of each model to list before those that ship.
        opts: alternating config keys and values that override all configs.
        half: half precision on a GPU.

    Attributes:
        names: of all models, in the order of the list.

    Raises:
        UserError: a config cannot be read.
    """

    def __init__(
        self, own: Sequence[tuple[str, str]] = (), opts: Sequence[str] = (), half: bool = True
    ) -> None:
        self._half = half
        self._configs = {
            f"{config} with {checkpoint}": load_config(config, [*opts, "MODEL.WEIGHTS", checkpoint])
            for config, checkpoint in own
        }
        for config in SHIPPED:
            cfg = load_config(f"configs/{config}", opts)
            use_shipped_weights(cfg, f"configs/{config}")
            self._configs[f"{config.removesuffix('.yaml')} (shipped)"] = cfg
        self.names = list(self._configs)
        self._loaded: dict[str, AppModel] = {}
        self._loading = Lock()

    def __call__(self, name: str) -> AppModel:
        """The model called ``name``.

        Raises:
            UserError: the model cannot be loaded.
            KeyError: no model has that name.
        """
        cfg = self._configs[name]
        with self._loading:
            if name not in self._loaded:
                predictor = OODPredictor(cfg, half=self._half)
                colours = class_colours(cfg, len(predictor.class_names))
                saved = choose_threshold(predictor)
                self._loaded[name] = AppModel(name, predictor, colours, saved, Lock())
            return self._loaded[name]
