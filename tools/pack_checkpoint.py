#!/usr/bin/env python
"""Write a packed checkpoint for inference: in half precision, without frozen encoders.

It is loaded like any other (MODEL.WEIGHTS) with the config of its training, which gives the source
of the encoder's weights. It cannot be trained further.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

EXAMPLES = """example:
  pack_checkpoint.py --config-file configs/camvid/tdos_lite2.yaml --output lite2.safetensors \\
    MODEL.WEIGHTS output/camvid_lite2/model_final.pth
"""


def run() -> None:
    """Pack with the options of the command line."""
    args = _parser().parse_args()
    from detectron2.modeling import build_model

    from tdos_d2.engine import TDOSCheckpointer, load_config, read_checkpoint_info
    from tdos_d2.errors import UserError
    from tdos_d2.files import check_output
    from tdos_d2.loading.config_checks import check_model
    from tdos_d2.loading.packing import pack

    if args.output.suffix != ".safetensors":
        raise UserError(f"--output: {args.output} must end in .safetensors")
    check_output(args.output, "--output")
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError("name the checkpoint to pack: MODEL.WEIGHTS FILE")
    for note in check_model(cfg):
        print(note)
    model = build_model(cfg).eval()
    TDOSCheckpointer(model).load(weights, whole=f"checkpoint {weights} is incomplete: it has")
    pack(model, args.output, read_checkpoint_info(weights))
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config of the model",
    )
    add("--output", type=options.path, required=True, metavar="FILE.safetensors", help="the file")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config, last on the line")
    return parser


if __name__ == "__main__":
    exit_with_one_line(run)
