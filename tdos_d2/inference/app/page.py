"""Layout and event handlers of the web page, which is built with gradio."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ...data.demo_scenes.scenes import render_scene
from ...errors import UserError
from ..sources import IMAGES, VIDEOS
from .models import AppModel, Models
from .trial import COLUMNS, Limits, Trial, predict

INSTALL = 'pip install "gradio>=6,<7"'
# Number of sessions whose frames and scores are kept, and seconds that they and files are kept.
_SESSIONS, _KEPT = 16, 3600
_AT_ONCE = 4  # requests handled at the same time; the model processes one frame at a time
_DOWNLOADS = "download-"
_DRAWN = ("animal", "sofa", "barrel", "boulder", "tyre", None)
_SIZE = (360, 640)  # H, W
_TITLE = "tdos_d2: what should not be on the road"
_WELCOME = (
    "Drop an image or a short video, or choose a drawn scene. To models of photographs drawings "
    "look odd all over: they show how the page works, not how good a model is."
)
# gradio's label covers the first scene, a phone has no room for its columns of 100 pixels, and its
# arrow covers long names of models.
_CSS = """
.drawn .grid-wrap {padding-top: 2rem}
.drawn .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr))}
.model .secondary-wrap {padding-right: 2rem}
.model input {text-overflow: ellipsis}
"""


def run(args: argparse.Namespace) -> None:
    """Serve the page until interrupted, with the options of tools/app.py.

    Raises:
        UserError: gradio is not installed, a model cannot be loaded, the port is taken.
    """
    # So that SIGTERM, too, deletes the uploaded files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="tdos_app_") as folder:
        gr = import_gradio(folder)
        models = Models(args.model, args.opts, half=not args.full_precision)
        for note in models(models.names[0]).predictor.notes:
            print(note)
        limits = Limits(args.max_upload, args.max_seconds)
        page = make_page(gr, models, limits, Path(folder))
        try:
            page.launch(**launch_options(gr, limits), server_name=args.host, server_port=args.port)
        except OSError as error:
            raise UserError(f"--host {args.host} --port {args.port}: {error}") from error


def import_gradio(folder: str) -> ModuleType:
    """Import gradio with its analytics off and its files in ``folder``.

    Raises:
        UserError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError(f"the page needs gradio: {INSTALL}") from error
    return gradio


def launch_options(gr: ModuleType, limits: Limits) -> dict[str, Any]:
    """Options of ``Blocks.launch``: nothing leaves the machine."""
    return {
        "share": False, "ssr_mode": False, "mcp_server": False, "footer_links": ["api"],
        "max_file_size": f"{limits.upload_mb}mb", "state_session_capacity": _SESSIONS,
        # gradio's grey of notes is too light to read.
        "theme": gr.themes.Default().set(body_text_color_subdued="*neutral_500"), "css": _CSS,
    }  # fmt: skip


def draw_examples(folder: Path) -> list[str]:
    """Write drawn scenes with different objects, the last one without objects; return the files."""
    folder.mkdir()
    paths = []
    for i, kind in enumerate(_DRAWN):
        paths.append(str(folder / f"{kind or 'street'}.png"))
        image, _ = render_scene(np.random.default_rng([3, i]), _SIZE, kind)
        Image.fromarray(image).save(paths[-1])
    return paths


def make_page(gr: ModuleType, models: Models, limits: Limits, folder: Path) -> Any:
    """Build the page without launching it.

    Args:
        gr: gradio.
        models: the models to choose from; the first one is loaded.
        limits: limits of a session.
        folder: for the examples and the files to download.

    Returns:
        ``gradio.Blocks``.
    """
    examples = draw_examples(folder / "examples")
    with gr.Blocks(
        title=_TITLE, analytics_enabled=False, delete_cache=(_KEPT, _KEPT), fill_width=True
    ) as page:
        gr.Markdown(f"# {_TITLE}")
        parts = _lay_out(gr, models, limits, examples)
        _connect(gr, parts, _Callbacks(gr, models, limits, folder, examples))
    return page.queue(max_size=_SESSIONS)


def _lay_out(
    gr: ModuleType, models: Models, limits: Limits, examples: list[str]
) -> SimpleNamespace:
    """The components of the page by name."""
    first = models(models.names[0])
    settings, parts = _settings(first), SimpleNamespace()
    parts.kept = gr.State(None, time_to_live=_KEPT)
    parts.turn = gr.State(_Turn())  # each session has a copy
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            parts.file = gr.File(
                label=f"Image or video: to {limits.upload_mb} MiB, {limits.seconds:g} seconds",
                file_types=sorted(IMAGES | VIDEOS), height=170,
            )  # fmt: skip
            parts.examples = gr.Gallery(
                examples, label="Or a drawn scene", columns=3, height=260, allow_preview=False,
                interactive=False, buttons=[], elem_classes="drawn",
            )  # fmt: skip
            parts.name = gr.Dropdown(
                models.names, value=models.names[0], label="Model", elem_classes="model"
            )
            parts.threshold = gr.Slider(label="Threshold", buttons=["reset"], **settings[0])
            parts.words = gr.Textbox(label="Words to look for (Enter)", **settings[1])
            parts.combine = gr.Checkbox(label="Words raise the score", **settings[2])
        with gr.Column(scale=3, min_width=320):
            parts.text = gr.Markdown(_WELCOME)
            parts.frame = gr.Slider(0, 1, 0, step=1, label="Frame of the video", visible=False)
            with gr.Tab("Score and objects"):
                parts.overlay = _picture(gr)
            with gr.Tab("Segmentation", **settings[3]) as parts.of_classes:
                parts.segmentation = _picture(gr)
            with gr.Tab("Words", **settings[4]) as parts.of_words:
                parts.chances = gr.Gallery(
                    label="Chance of each word", columns=2, format="jpeg", interactive=False
                )
            parts.table = gr.Dataframe(headers=list(COLUMNS), label="Objects", interactive=False)
            parts.make = gr.Button("Make files: mask, raw score, JSON")
            parts.files = gr.File(
                label="Files", file_count="multiple", interactive=False, visible=False
            )
    return parts


def _connect(gr: ModuleType, parts: SimpleNamespace, calls: _Callbacks) -> None:
    """Connect the events to their handlers."""
    results = [parts.overlay, parts.segmentation, parts.chances, parts.table, parts.text]
    to_show = {
        "fn": calls.show, "inputs": [parts.kept, parts.frame, parts.threshold, parts.combine],
        "outputs": results, "show_progress": "hidden",
        "concurrency_id": "show", "concurrency_limit": _AT_ONCE,
    }  # fmt: skip
    to_find = {"concurrency_id": "find", "concurrency_limit": _AT_ONCE}
    hidden = {"api_visibility": "private"}

    def find(
        path: str | None, name: str, words: str, threshold: float, turn: _Turn,
        progress=gr.Progress(),  # noqa: B008
    ):  # fmt: skip
        return calls.find(path, name, words, threshold, turn, progress)

    def find_at(event: Callable[..., Any], **api: Any) -> None:
        nothing = (None, *calls.show(None, 0, 0, False), gr.update(value=None, visible=False))

        def clear(turn: _Turn) -> tuple[Any, ...]:
            turn.next()
            return nothing

        cleared = event(
            clear, parts.turn, [parts.kept, *results, parts.files], queue=False, **hidden
        )
        # "multiple": a new file is not left out while an earlier one is still computed.
        cleared.then(
            find, [parts.file, parts.name, parts.words, parts.threshold, parts.turn],
            [parts.kept, parts.frame], show_progress_on=parts.overlay, trigger_mode="multiple",
            **to_find, **api,
        ).success(**to_show, **hidden)  # fmt: skip

    # "always_last": the final position of a slider is always shown. This event is registered first:
    # otherwise events that the API does not offer take its name.
    parts.threshold.change(**to_show, api_name="show", trigger_mode="always_last")
    find_at(parts.file.change, api_name="find")
    find_at(parts.words.submit, **hidden)
    parts.examples.select(calls.example, None, parts.file, queue=False, **hidden)
    chosen = parts.name.change(
        calls.choose, parts.name,
        [parts.threshold, parts.words, parts.combine, parts.of_classes, parts.of_words],
        api_name="choose", **to_find,
    )  # fmt: skip
    find_at(chosen.success, **hidden)
    parts.frame.change(**to_show, trigger_mode="always_last", **hidden)
    parts.combine.change(**to_show, **hidden)
    parts.make.click(
        calls.write, [parts.kept, parts.threshold, parts.combine], parts.files, api_name="write"
    ).success(lambda: gr.update(visible=True), None, parts.files, queue=False, **hidden)


class _Outdated(Exception):
    """The session asked for something else in the meantime."""


class _Turn:
    """The number of the last request of a session: results of earlier ones are not shown."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        """Begin a request."""
        self.number += 1
        return self.number

    def check(self, number: int) -> None:
        """Raise _Outdated if a later request has begun."""
        if number != self.number:
            raise _Outdated


class _Callbacks:
    """The event handlers. A UserError becomes a message on the page."""

    def __init__(
        self, gr: ModuleType, models: Models, limits: Limits, folder: Path, examples: list[str]
    ) -> None:
        self._gr, self._models, self._limits = gr, models, limits
        self._folder, self._examples = folder, examples
        self.example = self._with_event(gr)

    def choose(self, name: str) -> list[dict[str, Any]]:
        """Updates of the components that depend on the model."""
        with self._messages():
            return [self._gr.update(**part) for part in _settings(self._models(name))]

    def find(
        self, path: str | None, name: str, words: str, threshold: float, turn: _Turn,
        progress: Callable[..., None],
    ) -> tuple[Trial | dict[str, Any] | None, dict[str, Any]]:  # fmt: skip
        """Run the model; returns the results and the slider over the frames of a video.

        If the session asks for something else meanwhile, this stops and changes nothing.
        """
        number = turn.next()
        if path is None:
            return None, self._gr.update(visible=False)

        def report(share: float) -> None:
            turn.check(number)
            progress(share)

        try:
            with self._messages():
                made = predict(self._models, name, Path(path), words, self._limits, report)
            turn.check(number)
        except _Outdated:
            return self._gr.skip(), self._gr.skip()
        seen = made.positions_with_objects(threshold) if made.is_video else []
        last = len(made.frames) - 1
        position = seen[0] if seen else 0
        return made, self._gr.update(maximum=max(1, last), value=position, visible=last > 0)

    def show(
        self, kept: Trial | None, frame: int, threshold: float, combine: bool
    ) -> tuple[Any, ...]:
        """Overlay, segmentation, word maps, table rows and text; without a forward pass."""
        if kept is None:
            return None, None, [], [], _WELCOME
        view = kept.view(frame, threshold, combine)
        words = [(picture, word) for word, picture in view.words.items()]
        return view.overlay, view.segmentation, words, view.rows, view.text

    def write(self, kept: Trial | None, threshold: float, combine: bool) -> list[str]:
        """Write the files to download; removes expired ones."""
        with self._messages():
            if kept is None:
                raise UserError("there is no result: drop a file first")
            for old in self._folder.glob(f"{_DOWNLOADS}*"):
                if time.time() - old.stat().st_mtime > _KEPT:
                    shutil.rmtree(old, ignore_errors=True)
            target = Path(tempfile.mkdtemp(prefix=_DOWNLOADS, dir=self._folder))
            return [str(path) for path in kept.write(target, threshold, combine)]

    def _with_event(self, gr: ModuleType) -> Callable[[Any], str]:
        def example(event: gr.SelectData) -> str:
            return self._examples[event.index]

        # Gradio reads the annotation, a string here; it cannot resolve the local name ``gr``.
        example.__annotations__["event"] = gr.SelectData
        return example

    @contextmanager
    def _messages(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise self._gr.Error(str(error), duration=None, print_exception=False) from error


def _settings(model: AppModel) -> list[dict[str, Any]]:
    """Updates for a model: threshold, words, whether words raise the score, and the two tabs."""
    low, high, value = model.slider
    info = "of " + model.predictor.score
    if model.saved.value is None:
        info += "; none is saved beside the checkpoint: the middle of the range is no advice"
    asks = not model.no_words
    return [
        {"minimum": low, "maximum": high, "value": value, "step": (high - low) / 1000,
         "info": info},
        {"value": "", "interactive": asks, "info": model.no_words or "such as: deer, lost cargo"},
        {"value": False, "visible": asks},
        {"visible": bool(model.predictor.class_names)},
        {"visible": asks},
    ]  # fmt: skip


def _picture(gr: ModuleType) -> Any:
    return gr.Image(show_label=False, format="jpeg", interactive=False, buttons=["fullscreen"])
