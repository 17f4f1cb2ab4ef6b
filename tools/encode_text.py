#!/usr/bin/env python
"""Encode names and words with CLIP into an .npz file for MODEL.TEXT.EMBEDDINGS.

With this file a model needs no text encoder for training or inference. List the known classes, the
OOD word if its embedding is to be used, the words of MODEL.PROMPTS.GROUPS, and all words that are
to be looked for later: only words in the file can be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

EXAMPLES = """examples:
  encode_text.py --clip-weights pretrained/CLIP-ViT-B-16.pt --output text.npz \\
      --names road sidewalk "traffic sign" ood --words-file cityscapes
  encode_text.py --clip-weights openai --words-file my_words.txt --output text.npz
"""


def main(args: argparse.Namespace) -> None:
    """Encode and write."""
    import numpy as np

    from tdos_d2.errors import UserError
    from tdos_d2.files import atomic_write, check_output
    from tdos_d2.modeling.clip import TextTower, build_clip
    from tdos_d2.modeling.text import TextEncoder
    from tdos_d2.ood_words.prototypes import embed_words

    output = Path(args.output)
    if output.suffix != ".npz":
        raise UserError(f"--output: {output} must end in .npz")
    check_output(output, "--output")
    if not args.clip_weights:
        raise UserError("--clip-weights is empty: random weights give no text embeddings of use")
    texts = [*args.names, *(read_words(args.words_file) if args.words_file else [])]
    names = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not names:
        raise UserError("nothing to encode: give --names or --words-file")
    clip, _ = build_clip(args.clip_name, args.clip_weights)
    embeddings = embed_words(names, TextEncoder(TextTower(clip).eval()).array, args.template)
    with atomic_write(output) as file:
        np.savez_compressed(file, names=np.array(names), embeddings=embeddings)
    print(f"{len(names)} embeddings of {embeddings.shape[1]} channels: {output}")


def read_words(given: str) -> list[str]:
    """The words of a list that ships with tdos_d2, of a JSON file of this form, or of a text file.

    Raises:
        UserError: the list or file does not exist or cannot be read.
    """
    from tdos_d2.errors import UserError
    from tdos_d2.ood_words import load_groups
    from tdos_d2.untrusted import read_text

    path = Path(given).expanduser()
    if path.suffix == ".json" or not path.is_file():
        return list(load_groups(given).words)
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--words-file: {path} is no text file ({error})") from error


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--names", nargs="+", default=[], metavar="NAME", help="names or words")
    add(
        "--words-file", type=options.path_text, metavar="FILE",
        help="one word or phrase per line, a JSON word list, or the name of one that ships "
        "(cityscapes)",
    )  # fmt: skip
    add("--clip-name", default="ViT-B-16", help="default: ViT-B-16")
    add(
        "--clip-weights", type=options.path_text, required=True, metavar="FILE",
        help="file or open_clip tag",
    )
    add("--template", default="a photo of a {}", help="default: 'a photo of a {}'")
    add("--output", type=options.path, required=True, metavar="FILE", help=".npz to write")
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()
    exit_with_one_line(lambda: main(arguments))
