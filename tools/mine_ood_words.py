#!/usr/bin/env python
"""Mine OOD words for your classes: nouns of WordNet, sorted by distance to the known classes.

Needs WordNet 3.0: NLTK's corpus (python -c "import nltk; nltk.download('wordnet')"), or a folder
with its dictionary files, for example /usr/share/wordnet of Debian's package wordnet-base. The tool
writes a JSON file for MODEL.PROMPTS.GROUPS; training with it needs no WordNet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdos_commands import exit_with_one_line, options

EXAMPLES = """examples:
  mine_ood_words.py --dataset cityscapes_fine_sem_seg_train --output words.json
  mine_ood_words.py --classes road car crane --sense crane=crane.n.04 --output words.json
  mine_ood_words.py --dataset camvid_train --distance clip --clip-weights ViT-B-16.pt \\
      --output words.json
"""


def main(args: argparse.Namespace) -> None:
    """Mine words, write the file and print a summary."""
    from tdos_d2.files import check_output
    from tdos_d2.modeling.clip import tokenize
    from tdos_d2.ood_words.grouping import build_groups
    from tdos_d2.ood_words.wordnet import open_wordnet

    output = Path(args.output)
    check_output(output, "--output")
    encode = _text_encoder(args) if args.distance == "clip" else None
    if args.register:
        from tdos_d2.data import register_from_file

        register_from_file(args.register)
    names = args.classes or _class_names(args.dataset)
    with open_wordnet(args.wordnet) as reader:
        groups = build_groups(
            reader,
            names,
            num_groups=args.groups,
            distance=args.distance,
            senses=_senses(args.sense),
            drop=args.drop,
            tokenize=tokenize,
            encode=encode,
            template=args.template,
            quantile=args.quantile,
        )
    groups.save(output)
    near, far = groups.groups[0], groups.groups[-1]
    print(f"{len(groups.words)} words in {len(groups.bounds)} groups: {output}")
    print(f"nearest ({groups.distances[0]:.3f}): {', '.join(near[:8])}")
    print(f"farthest ({groups.distances[-1]:.3f}): {', '.join(far[-8:])}")
    print("Read the list before you train with it: --drop takes out what is in the wrong place.")


def _class_names(dataset: str) -> list[str]:
    from detectron2.data import MetadataCatalog

    from tdos_d2.data.verify.quick import check_registered
    from tdos_d2.errors import UserError

    check_registered(dataset)
    names = MetadataCatalog.get(dataset).get("stuff_classes")
    if not names:
        raise UserError(f"dataset '{dataset}' names no classes (metadata 'stuff_classes')")
    return list(names)


def _senses(given: list[str]) -> dict[str, list[str]]:
    from tdos_d2.errors import UserError

    senses = {}
    for text in given:
        name, equals, synsets = text.partition("=")
        if not (name and equals and synsets):
            raise UserError(f"--sense: '{text}' is not of the form CLASS=SYNSET[,SYNSET...]")
        senses[name] = synsets.split(",")
    return senses


def _text_encoder(args: argparse.Namespace):
    from tdos_d2.errors import UserError
    from tdos_d2.modeling.clip import TextTower, build_clip
    from tdos_d2.modeling.text import TextEncoder

    if not args.clip_weights:
        raise UserError("--distance clip needs --clip-weights: random weights know no distances")
    clip, _ = build_clip(args.clip_name, args.clip_weights)
    return TextEncoder(TextTower(clip).eval()).array


def _parser() -> options.Parser:
    parser = options.Parser(description=__doc__, epilog=EXAMPLES)
    known = parser.add_mutually_exclusive_group(required=True)
    known.add_argument("--classes", nargs="+", metavar="NAME", help="names of the known classes")
    known.add_argument("--dataset", help="a registered dataset with these classes")
    parser.add_argument(
        "--register", type=options.path, metavar="FILE", help="YAML file with your own datasets"
    )
    parser.add_argument("--output", type=options.path, required=True, help="JSON file to write")
    parser.add_argument(
        "--wordnet", type=options.path, metavar="FOLDER", help="default: NLTK's own corpus"
    )
    parser.add_argument(
        "--distance",
        choices=("wup", "path", "clip"),
        default="wup",
        help="Wu-Palmer or path length in WordNet, or CLIP's text cosine (default: wup)",
    )
    parser.add_argument(
        "--groups", type=options.whole(1), default=50, metavar="M", help="default: 50"
    )
    parser.add_argument(
        "--sense",
        action="append",
        default=[],
        metavar="CLASS=SYNSET",
        help="what a class means (default: built in for the names of Cityscapes and CamVid, else "
        "the first sense of the noun); may be repeated",
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="SYNSET", help="leave out these and all below"
    )
    parser.add_argument("--clip-name", default="ViT-B-16", help="default: ViT-B-16")
    parser.add_argument(
        "--clip-weights", type=options.path_text, default="", help="file or open_clip tag"
    )
    parser.add_argument("--template", default="a photo of a {}", help="default: 'a photo of a {}'")
    parser.add_argument(
        "--quantile",
        type=options.number(0, 1),
        default=1.0,
        help="of the cosines to the known classes (default: 1.0, the maximum; NegLabel: 0.95)",
    )
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()
    exit_with_one_line(lambda: main(arguments))
