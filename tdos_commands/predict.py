"""tools/predict.py and tdos-predict: options of prediction."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import exit_with_one_line, options
from .shards import add_shard_options, run_shards
from .video_options import add_video_options

_DESCRIPTION = """\
Find what should not be on the road, in images and videos.

For an image a/b.jpg DIR gets b_score.png (score over the image, OOD objects outlined),
b_segmentation.png (known classes), b_raw.png (the score with 16 bits; offset and step that give it
back are in the file and in predictions.jsonl) and, with --words, a picture per word. For a video,
b_score.mp4 and b_segmentation.mp4. predictions.jsonl has a line per image and per frame of a video:
size, threshold, objects (box x0 y0 x1 y1, area, mean and maximum of the score, words); after its
frames a line about the video. Live input is the number of a camera or an address (rtsp://,
http://); it is read until it ends, or --end, or Ctrl-C; frames that come too fast are dropped. What
earlier runs wrote to DIR stays: names that are taken get a number, lines are added; results are no
inputs, wherever DIR lies. A NormalityMemory has no known classes and takes no words: its objects
are found by the score alone."""
_EPILOG = """\
words:
  A word is compared with the image encoder's dense embedding, without training; known classes
  and OOD score stay as they are. word_scores are cosines; word_chances say how the word does
  against the names of the known classes, 1/2 = as well as the best of them; an object's word is
  the likeliest one above 1/2. --combine-words raises the score where a word's chance is higher.
  This needs CLIP's weights: a model that was trained from them (MODEL.CLIP.WEIGHTS), or one with
  MODEL.TEXT.EMBEDDINGS, and then only words of that file. The text encoders of
  configs/demo.yaml and configs/camvid have random weights: their prompts have no language meaning,
  and no nearest words are named.

exit status: 0 = all inputs predicted; 1 = some could not be read, or the model gave NaN (reported
  on standard error and in predictions.jsonl); 2 = a wrong option or model; 130 = interrupted, all
  files there are complete.

examples:
  python tools/predict.py --config-file configs/demo.yaml --input street.png --output out \\
      --opts MODEL.WEIGHTS output/demo/model_final.pth
  find . -name '*.jpg' | python tools/predict.py --config-file configs/tdos_vitb.yaml --input - \\
      --output out --words "deer, lost cargo" --opts MODEL.WEIGHTS model_final.pth"""


def main() -> None:
    """The command."""
    exit_with_one_line(run)


def run(argv: Sequence[str] | None = None) -> None:
    """Predict with the options of the command line; errors as of ``predict_command.run``."""
    args = parser().parse_args(argv)
    if args.processes > 1 and args.shard is None:
        sys.exit(run_shards(sys.argv[1:] if argv is None else argv, args.processes))
    from tdos_d2.inference import predict_command

    predict_command.run(args)


def threshold_option(text: str) -> float | str:
    """Type of ``--threshold``: a number, "calibrated", "best-f1" or a file ``*.json``."""
    if text in ("calibrated", "best-f1"):
        return text
    if text.endswith(".json"):
        return options.path_text(text)
    try:
        return options.number()(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            "a number, calibrated, best-f1 or a .json file of calibrate.py is needed, "
            f"not '{text}'"
        ) from None


def select_option(text: str) -> int:
    """Type of ``--select``: the number in "worst:N"."""
    rule, _, number = text.partition(":")
    if rule != "worst" or not number:
        raise argparse.ArgumentTypeError(f"worst:N is needed, such as worst:200, not '{text}'")
    return options.whole(1)(number)


def parser() -> options.Parser:
    """The command line of tools/predict.py."""
    made = options.Parser(
        description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    add = made.add_argument
    add("--config-file", type=options.config_file, required=True, metavar="FILE",
        help="config that the model was trained with")
    add("--input", type=options.path_text, required=True, nargs="+", metavar="PATH",
        help="images, videos, folders of them, quoted patterns such as 'drive/**/*.jpg', lists\n"
        "(.txt, a path per line), or - for a path per line of standard input")
    add(
        "--output", type=options.path_text, required=True, metavar="DIR",
        help="folder for the results",
    )
    add("--threshold", type=threshold_option, metavar="T",
        help="pixels with a score of T or more are OOD: a number, or the one of a file beside the\n"
        "checkpoint: calibrated (tools/calibrate.py wrote it) or best-f1 (an evaluation did), or\n"
        "a .json file of calibrate.py elsewhere (default: calibrated, else best-f1; without\n"
        "either, no objects are looked for)")
    add("--min-area", type=options.whole(1), metavar="N",
        help="smallest object in pixels (default: that of a calibrated threshold, if one is\n"
        "used, else 100 in a frame of 1280x720, scaled by area)")
    add("--words", metavar="LIST", help='concepts to look for, such as "deer, lost cargo, sofa"')
    add("--combine-words", action="store_true",
        help="objects and pictures are of max(OOD score, chances of the words)")
    add("--nearest-words", type=options.whole(0), metavar="N",
        help="nearest OOD words named per object (default: 3)")
    add("--ego-mask", type=options.path_text, metavar="FILE",
        help="picture with one channel, as large as the frames: no objects where it is not 0")
    add("--raw", choices=["png", "npy", "none"],
        help="raw scores: 16-bit PNG, NumPy's format or none (default: png, of videos none)")
    add("--no-pictures", action="store_true",
        help="no pictures and videos: predictions.jsonl, and what --raw, --format and --events\n"
        "ask for")
    add("--format", choices=["coco", "label-studio"], nargs="+",
        help="write the objects as pre-annotations, too, with the pictures that they are of, to\n"
        "DIR/hand_over: COCO (for CVAT, FiftyOne and others) or tasks of Label Studio")
    add("--select", type=select_option, metavar="worst:N",
        help="list the N frames most worth labelling in DIR/hand_over/selected.txt, of one event\n"
        "one rather than all; --format then is of these frames only")
    add("--score-range", type=options.number(), nargs=2, metavar=("LOW", "HIGH"),
        help="scores of the darkest and the brightest colour (default: by the kind of score)")
    add_video_options(add)
    add_shard_options(add)
    add("--full-precision", action="store_true",
        help="no half precision on a GPU, no TEST.BFLOAT16 on a CPU")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes to the config, last on the line; MODEL.WEIGHTS names the checkpoint\n"
        "(default: the weights that ship for the config, if any do)")
    return made  # fmt: skip
