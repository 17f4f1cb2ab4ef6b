"""Implementation of tools/predict.py: predict on images, folders and videos, write the results."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ..data import read_image
from ..data.reading import read_values
from ..errors import UserError, printable
from ..evaluation.tables import to_json
from ..files import check_output
from ..loading.config_files import load_config, use_shipped_weights
from ..modeling.text.word_embeddings import split_words
from .events import TABLE as EVENTS
from .events import write_page
from .frame_predictor import FramePredictor, class_colours
from .hand_over import HandOver
from .media import (
    TABLE,
    group_sequences,
    list_inputs,
    live_inputs,
    read_names,
    read_results,
    result_files,
    write_picture,
    write_score,
)
from .predictor import OODPredictor
from .shards import Shard
from .sources import Input, live_source
from .thresholds import choose_threshold
from .video_options import video_options
from .video_prediction import VideoOptions, VideoPrediction

_INTERRUPTED = 130  # exit code, as in shells


class PredictionRun:
    """Predicts all inputs and writes the results; skips inputs that cannot be read.

    Results of earlier runs in the same folder are kept: predictions.jsonl is appended to.

    Args:
        predict_frame: computes the results of a frame.
        output: folder to write to.
        raw: "png", "npy" or "none"; None: "png" for images, "none" for frames of videos.
        hand_over: collects each frame for annotators; None: no hand-over.
        how: options for videos.
        shard: selects its part of the inputs; None: all are predicted.

    Attributes:
        done: number of inputs that were predicted.
        failed: number of inputs that failed.
        images: number of single images among the predicted inputs.
    """

    def __init__(
        self,
        predict_frame: FramePredictor,
        output: Path,
        raw: str | None = None,
        hand_over: HandOver | None = None,
        how: VideoOptions | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.predict_frame, self.output, self.raw = predict_frame, output, raw
        self.shard = shard
        self.hand_over, self.how = hand_over, how or VideoOptions()
        self.done, self.failed, self.images = 0, 0, 0
        self._written: list[Path] = []  # files of the current input

    def __call__(self, given: Sequence[str], lines: IO[str]) -> None:
        """Predict all inputs that ``--input`` names; each gets a line in predictions.jsonl."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / TABLE
        results = read_results(path)
        if results:
            print(f"{path} has lines of earlier runs: more are added", file=sys.stderr)
        live = list(live_inputs(given, self.output))
        if live and self.shard is not None:
            raise UserError("--shard: live input cannot be divided")
        inputs = self._inputs(given, lines, results)
        total = None
        if not live and "-" not in given:
            inputs = list(inputs)
            total = sum(map(self._length, inputs))
        predict_video = VideoPrediction(
            self.predict_frame, self.output, self.raw or "none", self.how, self.hand_over
        )
        # Unbuffered: each line is one system call, so it is written completely or not at all.
        with (
            open(path, "a+b", buffering=0) as table,
            tqdm(desc="Predicting", total=total, unit="frame") as bar,
        ):
            if table.tell() and table.seek(-1, os.SEEK_END) and table.read() != b"\n":
                table.write(b"\n")  # the last line is incomplete: the disk was full
            for item in chain(inputs, live):
                write = partial(_write_line, table, self._names(item))
                record = self._try(item, predict_video, write, bar)
                results |= result_files(record, self.output)
                write(record)
                if record.get("interrupted"):
                    raise KeyboardInterrupt
                if "error" in record:
                    self.failed += 1
                    said = f"not predicted: {item.label}: {record['error']}"
                    bar.write(printable(said), file=sys.stderr)
                else:
                    self.done += 1
                if record.get("dropped"):
                    said = f"{item.label}: {record['dropped']} frames dropped"
                    bar.write(printable(said), file=sys.stderr)

    def _inputs(
        self, given: Sequence[str], lines: IO[str], results: set[str]
    ) -> Iterable[Input]:
        files = [word for word in given if live_source(word) is None]
        listed = list_inputs(files, lines, self.output, results)
        if self.how.rate is not None:
            inputs = group_sequences(listed, self.output)
        else:
            inputs = (Input(path, name) for path, name in listed)
        return inputs if self.shard is None else self.shard.part(inputs)

    def _names(self, item: Input) -> dict[str, str]:
        """How records name an input; joined tables also tell relative paths apart."""
        relative = isinstance(item.source, Path) and not item.source.is_absolute()
        folder = {"folder": os.getcwd()} if self.shard is not None and relative else {}
        return {"input": item.label, **folder}

    def _length(self, item: Input) -> int:
        """Frames of a video, as its file states; 1 for an image or an unreadable input."""
        try:
            source = item.open(self.how.span, self.how.rate)
        except UserError:
            return 1
        return (source and source.length) or 1

    def _try(
        self, item: Input, predict_video: VideoPrediction, write: Callable[..., None], bar: tqdm
    ) -> dict[str, Any]:
        """The record of an input. If the prediction fails, its files are deleted."""
        self._written.clear()
        taken = 0 if self.hand_over is None else len(self.hand_over)
        try:
            target = self.output / item.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = item.open(self.how.span, self.how.rate)
            if source is not None:
                return predict_video(source, item.label, target, write, bar)
            return self._predict(item.source, target, bar)
        except BaseException as error:
            for file in self._written:
                file.unlink()
            if self.hand_over is not None:
                self.hand_over.truncate(taken)
            if not isinstance(error, (UserError, OSError)):
                raise
            bar.update()
            return {"error": str(error)}

    def _predict(self, path: Path, target: Path, bar: tqdm) -> dict[str, Any]:
        image = read_image(path, "BGR")
        found = self.predict_frame(image)
        record: dict[str, Any] = {**found.record, "files": {}}
        raw = self.raw or "png"
        if raw != "none":
            file = target.with_name(f"{target.name}_raw.{raw}")
            record |= write_score(file, found.score)
            record["files"]["raw"] = self._relative(file)
        pictures = found.pictures()
        for i, (word, picture) in enumerate(found.word_pictures.items(), start=1):
            pictures[f"word{i}_{re.sub(r'[^0-9a-zA-Z]+', '-', word)}"] = picture
        for kind, picture in pictures.items():
            file = target.with_name(f"{target.name}_{kind}.png")
            write_picture(file, picture)
            record["files"][kind] = self._relative(file)
        if self.hand_over is not None:
            name = target.relative_to(self.output).as_posix()
            self.hand_over.add(path, name, None, image, found)
        self.images += 1
        bar.update()
        return record

    def _relative(self, file: Path) -> str:
        self._written.append(file)
        return file.relative_to(self.output).as_posix()


def _config(args: argparse.Namespace) -> CfgNode:
    _check_inputs(args.input)  # first: a config takes seconds
    cfg = load_config(args.config_file, args.opts)
    use_shipped_weights(cfg, args.config_file)
    return cfg


def _check_inputs(given: Sequence[str]) -> None:
    """Raise UserError if ``--input`` has only paths and patterns and none of them exists."""
    for word in given:
        path = os.path.expanduser(word)
        if word == "-" or live_source(word) is not None or os.path.exists(path):
            return
        if any(glob.iglob(path, recursive=True)):
            return
    what = "nothing fits the pattern" if glob.has_magic(given[0]) else "no file or folder"
    raise UserError(f"--input: {what} {given[0]}")


def run(args: argparse.Namespace) -> None:
    """Predict with the options of tools/predict.py.

    Raises:
        UserError: an option or the model is invalid.
        SystemExit: 1 = some inputs could not be read, or read a second time; 130 = interrupted.
    """
    how = video_options(args)
    words = _check(args)
    ego_mask = None if args.ego_mask is None else read_values(args.ego_mask, "ego mask") != 0
    cfg = _config(args)
    predictor = OODPredictor(cfg, half=not args.full_precision)
    for flag, given in (("--words", words), ("--nearest-words", args.nearest_words)):
        if given and not predictor.takes_words:
            raise UserError(
                f"{flag}: a {cfg.MODEL.META_ARCHITECTURE} has no text side to compare words with"
            )
    num_nearest = 3 if args.nearest_words is None else args.nearest_words
    if words:
        predictor.embed_words(words)  # an invalid word fails here, not with every input
    threshold = choose_threshold(
        predictor, args.threshold,
        min_area=args.min_area, combine=args.combine_words, ego_mask=args.ego_mask,
        smoothed=how.temporal != "off",
    )  # fmt: skip
    notes = [*predictor.notes, threshold.note, *_word_notes(predictor, words, num_nearest)]
    print("\n".join(notes), file=sys.stderr)
    if args.format and threshold.value is None:
        raise UserError(f"--format {args.format[0]}: {threshold.note}")
    shard = args.shard and Shard(Path(args.output), *args.shard)
    output = shard.folder if shard else Path(args.output)
    hand_over = None
    if args.format or args.select:
        hand_over = HandOver(
            predictor, output, args.format or (), select=args.select, words=words or (),
            valid=None if ego_mask is None else ~ego_mask,
        )  # fmt: skip
    if how.alarm and threshold.value is None:
        raise UserError(f"--events: {threshold.note}")
    task = PredictionRun(
        FramePredictor(
            predictor,
            class_colours(cfg, len(predictor.class_names)),
            threshold=threshold.value,
            words=words,
            combine=args.combine_words,
            num_nearest=num_nearest,
            min_area=threshold.min_area,
            limits=args.score_range and tuple(args.score_range),
            ego_mask=ego_mask,
            draw=not args.no_pictures,
        ),
        output,
        args.raw,
        hand_over,
        how,
        shard,
    )
    interrupted = False
    try:
        task(args.input, read_names(sys.stdin))
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {task.done} inputs are complete in {output}", file=sys.stderr)
    lost = _finish(hand_over) if hand_over is not None else False
    if how.alarm and (task.output / EVENTS).is_file():
        print(f"events: {write_page(task.output)}")
    if task.images and how != VideoOptions(rate=how.rate):
        print(f"{task.images} images were predicted one by one: options of videos do not change "
              "them (--sequence makes a video of a folder)", file=sys.stderr)  # fmt: skip
    if interrupted:
        sys.exit(_INTERRUPTED)
    joined = shard.finish() if shard else None
    print(f"{task.done} inputs predicted, {task.failed} not; results in {output}")
    if joined:
        print(f"tables of all {shard.count} shards joined: {joined}")
    if task.failed or lost:
        sys.exit(1)


def _finish(hand_over: HandOver) -> bool:
    """Write the folder for annotators; returns whether it lacks an input."""
    print(hand_over.finish())
    for said in hand_over.lost:
        print(printable(f"not handed over: {said}"), file=sys.stderr)
    return bool(hand_over.lost)


def _check(args: argparse.Namespace) -> list[str] | None:
    """Check the options before the model is loaded; returns the words."""
    check_output(args.output, "--output", folder=True)
    if Path(args.output).is_dir():
        check_output(Path(args.output, TABLE), "--output")
    words = split_words(args.words) if args.words is not None else None
    if args.combine_words and not words:
        raise UserError("--combine-words needs --words")
    if args.score_range and not args.score_range[0] < args.score_range[1]:
        raise UserError("--score-range: the lower end first")
    return words


def _word_notes(predictor: OODPredictor, words: Sequence[str] | None, nearest: int) -> list[str]:
    if predictor.words_have_meaning or not (predictor.takes_words and (words or nearest)):
        return []
    what = "--words are numbers without a meaning" if words else "no nearest words are named"
    return [f"this model's text encoder was never CLIP's (MODEL.CLIP.WEIGHTS is empty): {what}"]


def _write_line(table: IO[bytes], names: dict[str, str], record: dict[str, Any]) -> None:
    table.write(f"{to_json({**names, **record}, None)}\n".encode())
