#!/usr/bin/env python
"""Export a model, including its text embeddings, as ONNX, for OpenVINO or for torch.export.load.

The suffix of --output chooses the format: .onnx, .xml (OpenVINO, with a .bin beside it) or .pt2.
Before a file is written, its results in ONNX Runtime or OpenVINO on the CPU are compared with
PyTorch's. Running it needs neither tdos_d2 nor Detectron2 nor, unless it is a .pt2, PyTorch.

--form predictor exports all of the predictor for frames of one size (--size): "image" (H, W, 3)
uint8 in; "ood_score" (H, W) float32, "labels" (H, W) uint8 if there are known classes and, with a
threshold, "ood_mask" (H, W) uint8 out. See docs/deployment.md.

--form window, the default, exports the model of one window. The input is windows (B, 3, h, w), RGB,
of any number and size; the outputs are sem_seg (B, K, h, w) and ood_score (B, h, w), to be averaged
over windows; a NormalityMemory has no classes and no sem_seg. The file's metadata describe the
predictor's other steps, which examples/onnx_sliding_window.py implements. With --size WxH the
program takes only one window of that size: the graph is simpler, and encoders whose padding depends
on the size (timm's tf_ models) need this option. If the model takes whole images, they must be
resized to that size; else it is that of TEST.WINDOW.SIZE.

A .pt2 file is used as torch.export.load(FILE).module(check_guards=False): the guards restrict the
memory layout of tensors to that in tracing, not their sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options
from tdos_commands.predict import threshold_option

if TYPE_CHECKING:
    import argparse

    import torch
    from detectron2.config import CfgNode
    from torch import nn

    from tdos_d2.inference import OODPredictor

EXAMPLES = """examples:
  export_model.py --config-file configs/demo.yaml --output demo.onnx \\
      MODEL.WEIGHTS output/demo/model_final.pth
  export_model.py --config-file configs/memory_lite2.yaml --form predictor --size 1280x720 \\
      --output memory.onnx
  export_model.py --config-file configs/memory_lite2.yaml --form predictor --size 1280x720 \\
      --output memory.xml --int8 my_frames MODEL.WEIGHTS memory.pth
"""

TOLERANCE = 1e-3
SUFFIXES = (".onnx", ".xml", ".pt2")


class _Exported(NamedTuple):
    """An export: the module, the function that traces it, metadata, inputs for the comparison."""

    module: nn.Module
    export: Callable[[], torch.export.ExportedProgram]
    metadata: dict[str, Any]
    inputs: list[np.ndarray]
    input_name: str


def run() -> None:
    """Export with the options of the command line."""
    args = _parser().parse_args()
    from tdos_d2.config import set_key
    from tdos_d2.engine import load_config
    from tdos_d2.errors import UserError
    from tdos_d2.inference import OODPredictor
    from tdos_d2.loading.config_files import use_shipped_weights

    _check(args)
    cfg = load_config(args.config_file, args.opts)
    with suppress(UserError):  # if there are none, the predictor's notes say so
        use_shipped_weights(cfg, args.config_file)
    set_key(cfg, "MODEL.DEVICE", "cpu")
    # In full precision, as the exported program is: so that the notes are about it.
    predictor = OODPredictor(cfg, half=False)
    for note in predictor.notes:
        print(note)
    make = _predictor if args.form == "predictor" else _window
    exported = make(args, cfg, predictor)
    _write(exported, args.output, _frames(args.int8, args.size) if args.int8 else None)


def _check(args: argparse.Namespace) -> None:
    """Check the options before anything is loaded."""
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output
    from tdos_d2.inference.export import check_onnx_packages
    from tdos_d2.inference.export_openvino import check_openvino_packages

    for output in args.output:
        if output.suffix not in SUFFIXES:
            raise UserError(f"--output: {output} must end in {', '.join(SUFFIXES)}")
        check_output(output, "--output")
        if output.suffix != ".pt2":
            check_onnx_packages()
        if output.suffix == ".xml":
            check_openvino_packages(int8=args.int8 is not None)
    whole = args.form == "predictor"
    if whole and not args.size:
        raise UserError("--form predictor needs --size, that of the frames")
    if whole and args.input_type != "uint8":
        raise UserError("--input-type: --form predictor takes uint8")
    if args.int8 and not (whole and any(x.suffix == ".xml" for x in args.output)):
        raise UserError("--int8 needs --form predictor and an --output that ends in .xml")
    if args.threshold is not None and not whole:
        raise UserError("--threshold needs --form predictor")


def _window(args: argparse.Namespace, cfg: CfgNode, predictor: OODPredictor) -> _Exported:
    from tdos_d2.errors import UserError
    from tdos_d2.inference.export import (
        INPUT,
        INPUT_TYPES,
        WindowModel,
        export_program,
        pads_by_size,
    )

    if predictor.model.decode_once and cfg.TEST.WINDOW.SIZE:
        raise UserError(
            "--form window: TEST.WINDOW.DECODE is image, which decodes the whole image at once: "
            "--form predictor has it, or set it to window"
        )
    module = WindowModel(predictor.model, bgr=cfg.INPUT.FORMAT == "BGR")
    metadata, shapes, side = describe(cfg, predictor), _shapes(cfg), cfg.TEST.WINDOW.SIZE
    if args.size:
        width, height = args.size
        if side and args.size != (side, side):
            raise UserError(f"--size: TEST.WINDOW.SIZE makes it {side}x{side}, no other")
        shapes = [(1, 3, height, width)]
        if not side:
            metadata |= {"input_size": {"size": [width, height]}, "test_sizes": {}}
    elif pads_by_size(module):
        print("the padding of this encoder depends on the size: without --size this takes minutes")
    inputs = [_noise(shape, args.input_type) for shape in shapes]
    inputs.append(_gradient(*shapes[0][2:], args.input_type).transpose(2, 0, 1)[None])
    export = partial(
        export_program, module, INPUT_TYPES[args.input_type], args.size and args.size[::-1]
    )
    return _Exported(module, export, metadata, inputs, INPUT)


def _predictor(args: argparse.Namespace, cfg: CfgNode, predictor: OODPredictor) -> _Exported:
    from tdos_d2.inference.export import export_predictor
    from tdos_d2.inference.export_predictor import INPUT, PredictorModel
    from tdos_d2.inference.thresholds import choose_threshold

    threshold = choose_threshold(predictor, args.threshold)
    print(threshold.note if threshold.value is not None else "no threshold, so no ood_mask")
    frame = args.size[::-1]
    module = PredictorModel(
        predictor, frame, channels=args.channels, threshold=threshold.value,
        labels=not args.no_labels,
    )  # fmt: skip
    metadata = {
        "class_names": list(predictor.class_names),
        "ood_score": predictor.score,
        "threshold": threshold.value,
        "channels": args.channels.upper(),
        "frame_size": list(args.size),
        "model_size": list(predictor.input_size(*frame))[::-1],
    }
    inputs = [_noise((*frame, 3), "uint8"), _gradient(*frame, "uint8")]
    return _Exported(module, partial(export_predictor, module, frame), metadata, inputs, INPUT)


def _write(exported: _Exported, outputs: Sequence[Path], frames: list[np.ndarray] | None) -> None:
    import torch

    from tdos_d2.evaluation.tables import to_json
    from tdos_d2.files import atomic_write
    from tdos_d2.inference.export import expected_outputs, onnx_outputs, to_onnx
    from tdos_d2.inference.export_openvino import openvino_outputs, save_openvino, to_openvino

    module, metadata, inputs = exported.module, exported.metadata, exported.inputs
    expected = expected_outputs(module, inputs)  # first: export takes minutes
    program = exported.export()
    if any(output.suffix != ".pt2" for output in outputs):
        onnx = to_onnx(program, metadata, exported.input_name, module.outputs)
    for output in outputs:
        if output.suffix == ".xml":
            model = to_openvino(onnx, metadata)
            _compare("OpenVINO", openvino_outputs(model, inputs), expected, output)
            size = save_openvino(model, output)
            if frames:
                smaller = output.with_stem(f"{output.stem}_int8")
                of_int8 = save_openvino(_quantised(model, frames), smaller)
                print(f"{smaller}: {of_int8 / 1e6:.1f} MB")
        elif output.suffix == ".onnx":
            _compare("ONNX Runtime", onnx_outputs(onnx, inputs), expected, output)
            with atomic_write(output) as file:
                file.write(onnx)
            size = len(onnx)
        else:
            extra = {"tdos.json": to_json(metadata, None)}
            with atomic_write(output) as file:
                torch.export.save(program, file, extra_files=extra)
            size = output.stat().st_size
        print(f"{output}: {size / 1e6:.1f} MB")


def _quantised(model: Any, frames: list[np.ndarray]) -> Any:
    """The model in INT8, and a line about the difference on the first frame."""
    from tdos_d2.inference.export_openvino import openvino_outputs, quantise

    (before,) = openvino_outputs(model, frames[:1])
    made = quantise(model, frames)
    (after,) = openvino_outputs(made, frames[:1])
    difference = np.abs(after[0] - before[0])
    print(
        f"INT8, ranges of {len(frames)} frames; on the first of them the score (of deviation "
        f"{before[0].std():.3g}) differs by {difference.mean():.3g} on average"
    )
    return made


def _frames(folder: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """At most 100 normal frames, evenly spaced, resized to the size of the frames, BGR."""
    import cv2

    from tdos_d2.data import read_image
    from tdos_d2.inference.media import normal_frames

    names = normal_frames(folder, option="--int8")
    chosen = np.linspace(0, len(names) - 1, min(100, len(names))).round().astype(int)
    images = (read_image(names[i], "BGR") for i in chosen)
    return [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]


def describe(cfg: CfgNode, predictor: OODPredictor) -> dict[str, Any]:
    """The file's metadata: all steps of the predictor outside the program.

    ``pixel_mean`` and ``pixel_std`` are for information, in the order of ``channels``: the program
    applies them. ``input_size`` is the predictor's size rule, ``test_sizes`` those of evaluation by
    dataset.
    """
    from tdos_d2.data.dataset_mapper import size_rule, test_sizes
    from tdos_d2.inference.thresholds import choose_threshold

    rgb = slice(None, None, -1 if cfg.INPUT.FORMAT == "BGR" else 1)
    model = predictor.model  # its config was completed, by the weights
    return {
        "class_names": list(predictor.class_names),
        "ood_score": predictor.score,
        "threshold": choose_threshold(predictor).value,
        "window_size": cfg.TEST.WINDOW.SIZE,
        "window_stride": cfg.TEST.WINDOW.STRIDE,
        "channels": "RGB",
        "pixel_mean": [round(mean, 4) for mean in model.pixel_mean.flatten().tolist()[rgb]],
        "pixel_std": [round(std, 4) for std in model.pixel_std.flatten().tolist()[rgb]],
        "input_size": size_rule(cfg),
        "test_sizes": {
            name: rule
            for name in dict.fromkeys((*test_sizes(cfg), *cfg.DATASETS.TEST))
            if (rule := size_rule(cfg, name)) != size_rule(cfg)
        },
        "resizing": "bilinear over all pixels that become one (Pillow), to uint8; maps: bilinear",
    }


def _compare(
    whose: str,
    found: Sequence[tuple[np.ndarray, ...]],
    expected: Sequence[tuple[np.ndarray, ...]],
    output: Path,
) -> None:
    from tdos_d2.errors import UserError
    from tdos_d2.inference.export import largest_difference

    difference = largest_difference(found, expected)
    if not difference <= TOLERANCE:  # also for NaN
        raise UserError(
            f"{output} is not written: {whose}'s results differ from PyTorch's by "
            f"{difference:.1e}, more than {TOLERANCE:.0e}"
        )
    print(f"largest difference between {whose} and PyTorch: {difference:.1e}")


def _shapes(cfg: CfgNode) -> list[tuple[int, ...]]:
    """Shapes of a whole window, and of two whose sides are not divisible by strides."""
    side = cfg.TEST.WINDOW.SIZE or max(cfg.INPUT.CROP.SIZE)
    return [(1, 3, side, side), (2, 3, side // 2 + 3, side - 5)]


def _noise(shape: tuple[int, ...], input_type: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(input_type)


def _gradient(height: int, width: int, input_type: str) -> np.ndarray:
    """(H, W, 3), from bright to dark: a model is surer of smooth surfaces than of noise."""
    rows = np.linspace(255, 0, height).astype(input_type)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(rows, (height, width, 3)))


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of the model",
    )
    add(
        "--output", required=True, action="append", type=options.path, metavar="FILE",
        help="file to write, .onnx, .xml or .pt2; may be repeated",
    )
    add(
        "--input-type", choices=("float32", "uint8"), default="uint8",
        help="of the pixels, 0 to 255 in any case (default: uint8)",
    )  # fmt: skip
    add(
        "--form", choices=("window", "predictor"), default="window",
        help="model of one window, or all of the predictor (default: window)",
    )  # fmt: skip
    add(
        "--size", type=options.image_size, metavar="WxH",
        help="size in pixels of the one window or of the frames (default: windows of any size)",
    )  # fmt: skip
    add(
        "--channels", choices=("bgr", "rgb"), default="bgr",
        help="order in the frames of --form predictor (default: bgr)",
    )  # fmt: skip
    add(
        "--threshold", type=threshold_option, metavar="T",
        help="of ood_mask, as in predict.py (default: that beside the checkpoint, if any)",
    )  # fmt: skip
    add("--no-labels", action="store_true", help="leave the output labels out")
    add(
        "--int8", type=options.path, metavar="DIR",
        help="write FILE_int8.xml beside each FILE.xml: products in INT8, by the ranges that at "
        "most 100 of the images in DIR, ordinary frames of the camera, show",
    )  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config, as MODEL.WEIGHTS FILE")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
