#!/usr/bin/env python
"""Export the model of one window, text embeddings folded in, as ONNX or for torch.export.load.

The suffix of --output chooses: .onnx or .pt2. An ONNX file is compared with PyTorch through ONNX
Runtime on the CPU before it is written. It needs no tdos_d2, no Detectron2 and no PyTorch to run:
see examples/onnx_sliding_window.py. The input is windows (B, 3, h, w), RGB, of any number and size;
the outputs are sem_seg (B, K, h, w) and ood_score (B, h, w), to be averaged over windows; a
NormalityMemory has no classes and no sem_seg. The file's metadata say what the predictor does
around that: size of the image, windows, classes, score and threshold.

A .pt2 file is used as torch.export.load(FILE).module(check_guards=False): the guards tell how the
traced tensors lay in memory, not what sizes there may be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from tdos_d2.inference import OODPredictor

EXAMPLES = """examples:
  export_model.py --config-file configs/demo.yaml --output demo.onnx \\
      MODEL.WEIGHTS output/demo/model_final.pth
  export_model.py --config-file configs/tdos_vitb.yaml --output vitb.pt2 MODEL.WEIGHTS model.pth
"""

TOLERANCE = 1e-3


def run() -> None:
    """Export as the command line says."""
    args = _parser().parse_args()
    import torch

    from tdos_d2.config import set_key
    from tdos_d2.engine import load_config
    from tdos_d2.errors import UserError
    from tdos_d2.evaluation.tables import to_json
    from tdos_d2.files import atomic_write, check_output
    from tdos_d2.inference import OODPredictor
    from tdos_d2.inference.export import (
        INPUT_TYPES,
        WindowModel,
        check_onnx_packages,
        expected_outputs,
        export_program,
        to_onnx,
    )

    for output in args.output:
        if output.suffix not in (".onnx", ".pt2"):
            raise UserError(f"--output: {output} must end in .onnx or .pt2")
        check_output(output, "--output")
        if output.suffix == ".onnx":
            check_onnx_packages()
    cfg = load_config(args.config_file, args.opts)
    set_key(cfg, "MODEL.DEVICE", "cpu")
    predictor = OODPredictor(cfg)
    for note in predictor.notes:
        print(note)
    model = WindowModel(predictor.model, bgr=cfg.INPUT.FORMAT == "BGR")
    metadata = describe(cfg, predictor)
    inputs = _noise(cfg.TEST.WINDOW.SIZE or max(cfg.INPUT.CROP.SIZE), args.input_type)
    expected = expected_outputs(model, inputs)
    program = export_program(model, INPUT_TYPES[args.input_type])
    for output in args.output:
        if output.suffix == ".onnx":
            content = to_onnx(program, metadata)
            _compare(content, inputs, expected, output)
            with atomic_write(output) as file:
                file.write(content)
        else:
            extra = {"tdos.json": to_json(metadata, None)}
            with atomic_write(output) as file:
                torch.export.save(program, file, extra_files=extra)
        print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def describe(cfg: CfgNode, predictor: OODPredictor) -> dict[str, Any]:
    """What the file says of itself: all that the predictor does around the program.

    ``pixel_mean`` and ``pixel_std`` are for information, in the order of ``channels``: the program
    applies them. ``input_size`` is what the predictor resizes to, ``test_sizes`` what evaluation
    resizes the frames of a dataset to.
    """
    from tdos_d2.data.dataset_mapper import size_rule, test_sizes

    rgb = slice(None, None, -1 if cfg.INPUT.FORMAT == "BGR" else 1)
    point = predictor.operating_point
    same = point is not None and point.score == predictor.score
    return {
        "class_names": list(predictor.class_names),
        "ood_score": predictor.score,
        "threshold": point.threshold if same else None,
        "window_size": cfg.TEST.WINDOW.SIZE,
        "window_stride": cfg.TEST.WINDOW.STRIDE,
        "channels": "RGB",
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN)[rgb],
        "pixel_std": list(cfg.MODEL.PIXEL_STD)[rgb],
        "input_size": size_rule(cfg),
        "test_sizes": {
            name: rule
            for name in dict.fromkeys((*test_sizes(cfg), *cfg.DATASETS.TEST))
            if (rule := size_rule(cfg, name)) != size_rule(cfg)
        },
        "resizing": "bilinear over all pixels that become one (Pillow), to uint8; maps: bilinear",
    }


def _compare(
    content: bytes,
    inputs: Sequence[np.ndarray],
    expected: Sequence[tuple[np.ndarray, ...]],
    output: Path,
) -> None:
    from tdos_d2.errors import UserError
    from tdos_d2.inference.export import largest_difference

    difference = largest_difference(content, inputs, expected)
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise UserError(
            f"{output} is not written: ONNX Runtime's results differ from PyTorch's by "
            f"{difference:.1e}, more than {TOLERANCE:.0e}"
        )
    print(f"largest difference between ONNX Runtime and PyTorch: {difference:.1e}")


def _noise(side: int, input_type: str) -> list[np.ndarray]:
    """A whole window, and two whose sides are no multiples of anything."""
    rng = np.random.default_rng(0)
    sizes = [(1, 3, side, side), (2, 3, side // 2 + 3, side - 5)]
    return [rng.integers(0, 256, size).astype(input_type) for size in sizes]


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="config of the model")
    add(
        "--output", required=True, action="append", type=options.path, metavar="FILE",
        help="file to write, .onnx or .pt2; may be repeated",
    )
    add(
        "--input-type", choices=("float32", "uint8"), default="uint8",
        help="of the pixels, 0 to 255 in any case (default: uint8)",
    )  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config, as MODEL.WEIGHTS FILE")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
