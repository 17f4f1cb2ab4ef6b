"""Every config key of tdos_d2: ``add_tdos_config(cfg)`` adds them to a Detectron2 config."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN

# A wheel brings the configs as tdos_d2.configs; in a checkout they are beside the package.
_PACKAGE = Path(__file__).resolve().parent
_CONFIG_DIR = _PACKAGE / "configs"
if not _CONFIG_DIR.is_dir():
    _CONFIG_DIR = _PACKAGE.parent / "configs"


def add_tdos_config(cfg: CN) -> None:
    """Add the TDOS keys, with the defaults of the published recipe, to ``cfg`` in place."""
    _add_model(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def get_config_file(name: str) -> str:
    """Path of a config that ships with the project.

    Args:
        name: path below ``configs/``, such as ``"tdos_vitb.yaml"`` or ``"camvid/tdos_tiny.yaml"``.

    Raises:
        FileNotFoundError: no such config; the message lists those there are.
    """
    path = _CONFIG_DIR / name
    if path.is_file():
        return str(path)
    known = sorted(str(p.relative_to(_CONFIG_DIR)) for p in _CONFIG_DIR.rglob("*.yaml"))
    raise FileNotFoundError(f"no config '{name}' in {_CONFIG_DIR}; there are: {', '.join(known)}")


def set_key(cfg: CN, key: str, value: Any) -> None:
    """Set ``cfg.<key>`` in place, also where the config is frozen (and then stays so)."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    *sections, name = key.split(".")
    reduce(CN.__getitem__, sections, cfg)[name] = value
    if frozen:
        cfg.freeze()


def _add_model(cfg: CN) -> None:
    # Python modules to import before anything is built, such as ["my_project.parts"]: they register
    # parts, backbones and datasets of your own. They are run as they are: name trusted code only.
    cfg.MODEL.IMPORTS = []
    # Let GPUs that can (A100 and later) round the factors of float32 products to 10 bits: faster
    # where mixed precision is off, and scores differ in the third digit or so.
    cfg.MODEL.TF32 = False
    _add_clip(cfg)
    _add_timm(cfg)
    _add_memory(cfg)
    _add_text(cfg)
    _add_tdos(cfg)
    _add_augmentation(cfg)
    _add_regularization(cfg)
    _add_decoders(cfg)


def _add_clip(cfg: CN) -> None:
    cfg.MODEL.CLIP = CN()
    # An open_clip model name ("ViT-B-16", "RN50"), or "tiny" (a four-block ViT) or "tiny-rn" (a
    # four-block ResNet), for tests and the demo. MODEL.BACKBONE.NAME must fit:
    # CLIPVisionTransformer or CLIPModifiedResNet.
    cfg.MODEL.CLIP.NAME = "ViT-B-16"
    # A file (OpenAI TorchScript .pt, state dict, safetensors, open_clip checkpoint), an open_clip
    # tag such as "openai", or "" for random weights.
    cfg.MODEL.CLIP.WEIGHTS = "pretrained/CLIP-ViT-B-16.pt"
    # "gelu", "quick_gelu" (OpenAI's models), or "auto" = the latter where NAME, an archive of
    # OpenAI's or the tag asks for it; the log says which. A checkpoint keeps the one it has.
    cfg.MODEL.CLIP.ACTIVATION = "auto"
    # Keep the image encoder as it is (the published recipe). Random weights are always trained.
    cfg.MODEL.CLIP.FREEZE_IMAGE = True
    # Keep the BatchNorm layers of a CLIP ResNet that is loaded and fine-tuned as they are: their
    # statistics and weights. Those of random weights are always trained.
    cfg.MODEL.BACKBONE.FREEZE_NORM = True


def _add_timm(cfg: CN) -> None:
    node = cfg.MODEL.TIMM = CN()
    # For MODEL.BACKBONE.NAME TimmBackbone: the image encoder, any timm model that gives feature
    # maps. The text side stays as it is (MODEL.CLIP or MODEL.TEXT).
    node.NAME = "tf_efficientnet_lite2"
    # A file, "timm" (timm's own download), "package" (weights that a package of the extra "lite"
    # brings) or "" for random weights. They bring PIXEL_MEAN and PIXEL_STD with them.
    node.WEIGHTS = "package"
    # Four indices into the encoder's levels, finest first; empty = strides 4, 8, 16 and 32, or of
    # a ViT blocks at 4, 6, 8 and 12 twelfths of its depth.
    node.LEVELS = []
    # Keep the image encoder as it is. Random weights are always trained.
    node.FREEZE = True


def _add_memory(cfg: CN) -> None:
    node = cfg.MODEL.MEMORY = CN()
    # For MODEL.META_ARCHITECTURE NormalityMemory: the maps of the encoder that are remembered; the
    # grid of the first one is that of the score.
    node.LEVELS = ["tap3", "tap4"]
    # Vectors in the memory at most, and how many of the nearest count.
    node.SIZE = 20000
    node.NEIGHBOURS = 3


def _add_text(cfg: CN) -> None:
    cfg.MODEL.TEXT = CN()
    # The text side: "PromptedText" (CLIP's text encoder with learnable prompts), "FixedText" (the
    # vectors of EMBEDDINGS) or "" = what EMBEDDINGS asks for.
    cfg.MODEL.TEXT.NAME = ""
    # A .npz with "names" and "embeddings" (n, D) that takes the place of the text encoder;
    # "" = encode the class names with CLIP. Vectors are brought to length 10, CLIP's own.
    cfg.MODEL.TEXT.EMBEDDINGS = ""


def _add_tdos(cfg: CN) -> None:
    node = cfg.MODEL.TDOS = CN()
    # Names of the K known classes; empty = those of the first dataset in DATASETS.TRAIN.
    node.CLASS_NAMES = []
    # The word that stands for "none of the known classes"; label K.
    node.OOD_NAME = "ood"
    # Learnable context tokens, shared by all prompts.
    node.CONTEXT_LENGTH = 20
    # M: learnable negative prompts beside OOD_NAME (0 = none).
    node.NUM_NEGATIVE = 50
    # Learnable tokens of one negative prompt.
    node.NEGATIVE_LENGTH = 20
    # Standard deviation that learnable tokens start with (CLIP's token embeddings have ~0.02).
    node.PROMPT_STD = 0.02
    # Start of gamma, the share of the context decoder in the text embeddings.
    node.GAMMA_INIT = 1e-4
    # How the M + 1 masks and score maps of OOD queries become one: "max", "mean", or
    # "score_weighted" (mean weighted with p(ood | query)).
    node.MERGE = "max"
    # How their class logits become one: "mean" (weighted with MERGE "score_weighted") or
    # "strongest" (those of the query with the largest p(ood | query)).
    node.CLASS_MERGE = "mean"
    # Score in "ood_score": "log_s_ood" (logarithm of S_ood), "s_ood_softmax" (S_ood after the
    # released code's softmax over S), "max_logit" (1 - max_c S_c), "energy" (-logsumexp_c S_c),
    # "rba" (-sum_c tanh S_c) or "text_only" (logarithm of OOD's share in the score map).
    node.SCORE = "log_s_ood"
    # Further scores to put in "ood_scores" and to evaluate as task ood_<name>.
    node.EXTRA_SCORES = []
    # Train only prompts, class and mask heads and the queries' own position tables; the rest stays
    # as in the checkpoint of MODEL.WEIGHTS.
    node.HEADS_ONLY = False
    # Weights of the loss terms (SCORE_MAP_WEIGHT 0 = without that term).
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.SCORE_MAP_WEIGHT = 1.0
    # Weight of the OOD class and of "no object" in the class cross entropy (known classes: 1).
    node.OOD_WEIGHT = 10.0
    node.NO_OBJECT_WEIGHT = 0.1
    # Points per mask in the mask losses; at most one per cell of the mask.
    node.NUM_POINTS = 12544
    # Candidates per point, and the share of the points that is taken where the mask is least
    # certain; the rest is taken anywhere.
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Temperature of the score map's cross entropy.
    node.SCORE_MAP_TEMPERATURE = 0.07
    # Points on void (label 255, padding too) count in no mask and dice loss; False = void is
    # outside of every mask, OOD's too, as in the released code.
    node.IGNORE_VOID = True


def _add_augmentation(cfg: CN) -> None:
    node = cfg.MODEL.SEM_AUG = CN()
    # OOD semantic augmentation: in training, perturb the image encoder's features in a region.
    node.ENABLED = True
    # The region: "labelled" (pixels labelled OOD), "random" (random ellipses of known pixels,
    # which become OOD targets: no inserted object is needed), or "both".
    node.REGION = "labelled"
    # Probability that a sample is perturbed.
    node.PROB = 0.5
    # ViT: blocks whose attention gets noisy queries, counted from 1, or from the end where
    # negative; and the noise in units of a token's own mean and standard deviation.
    node.BLOCKS = [-1]
    node.NOISE = 1.0
    # ResNet: how far the region's style moves towards that of the rest after stage 1 (1 = fully).
    node.ALPHA = 0.2
    # Range of the number of random ellipses, and of their larger diameter as a share of the
    # crop's shorter side.
    node.NUM = (1, 3)
    node.SIZE = (0.1, 0.5)


def _add_regularization(cfg: CN) -> None:
    prompts = cfg.MODEL.PROMPTS = CN()
    # OOD words in M groups, from near to far: a list that ships with the project ("cityscapes"),
    # a JSON file of tools/mine_ood_words.py, or "" = negatives without words.
    prompts.GROUPS = "cityscapes"
    # Negatives start at "random" or from the words of their "group".
    prompts.INIT = "random"

    node = cfg.MODEL.REG = CN()
    # Weight of the language term, which holds the text queries to their words (0 = off), the text
    # that the words are put into for it, and the temperature of its cosines.
    node.LANGUAGE_WEIGHT = 1.0
    node.TEMPLATE = "a clean origami of a {}"
    node.TEMPERATURE = 0.07
    # Weights of the vision term, which holds a trained image encoder to the loaded one: of the
    # squared and of the cosine distance of image embeddings (both 0 = off).
    node.VISION_MSE_WEIGHT = 10.0
    node.VISION_COSINE_WEIGHT = 2.0


def _add_decoders(cfg: CN) -> None:
    neck = cfg.MODEL.NECK = CN()
    # "ScaleNeck" (deconvolutions, for a ViT), "FPNNeck" (feature pyramid that takes in the score
    # map, for a ResNet) or "" = what fits the backbone.
    neck.NAME = ""
    # Channels of FPNNeck's levels; those of ScaleNeck have the encoder's width.
    neck.CHANNELS = 768
    # Normalization between the convolutions: "LN", "GN", "BN", "SyncBN" or "" = none.
    neck.NORM = "LN"

    context = cfg.MODEL.CONTEXT_DECODER = CN()
    # The text-to-image context decoder.
    context.NAME = "ContextDecoder"
    # Width, depth (0 = off), heads and dropout of the text-to-image context decoder.
    context.HIDDEN_DIM = 256
    context.NUM_LAYERS = 3
    context.NUM_HEADS = 4
    context.DROPOUT = 0.1

    pixel = cfg.MODEL.PIXEL_DECODER = CN()
    # The pixel decoder; your own is registered in tdos_d2.modeling.registry.
    pixel.NAME = "TextPixelDecoder"
    # Width of the memory and of the mask features.
    pixel.HIDDEN_DIM = 256
    # Layers of self-attention and of attention to the text, and their heads.
    pixel.NUM_LAYERS = 6
    pixel.NUM_HEADS = 8
    # Sampling points per head and level of the deformable attention.
    pixel.NUM_SAMPLING_POINTS = 4
    # Width inside the feed-forward blocks.
    pixel.FFN_DIM = 2048

    query = cfg.MODEL.TRANSFORMER_DECODER = CN()
    # The query decoder.
    query.NAME = "TextQueryDecoder"
    # Masked-attention layers, their heads and the width inside their feed-forward blocks; the
    # decoder's own width is that of the pixel decoder.
    query.NUM_LAYERS = 9
    query.NUM_HEADS = 8
    query.FFN_DIM = 2048


def _add_input(cfg: CN) -> None:
    # A YAML file that lists OOD test sets of your own, with the arguments of
    # register_ood_dataset; "" = none.
    cfg.DATASETS.REGISTER = ""
    # Weight of each set in DATASETS.TRAIN; empty = all frames of all sets equally often.
    cfg.DATASETS.TRAIN_WEIGHTS = []
    # Training crops hold at most this share of one class (10 tries; 1.0 = any crop will do).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Random resize of a training image: range of the factor on its original size.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    # Size of the model's input per test set: [["dataset", shorter side, longer side at most], ...],
    # before MIN_SIZE_TEST and MAX_SIZE_TEST, after the dataset's own test_size.
    cfg.INPUT.TEST_SIZES = []
    # Photometric distortion of training images (brightness, contrast, saturation, hue), after
    # pasting, so that a pasted object is distorted as its surroundings are.
    cfg.INPUT.COLOR_AUG = True

    paste = cfg.INPUT.OOD_PASTE = CN()
    # Where pasted training outliers come from: "shapes" (drawn, needs no data), "coco" (cut out of
    # COCO images), "auto" ("coco" where its list is there, else "shapes", with a warning),
    # "mix" (both, see MIX) or "none".
    paste.SOURCE = "shapes"
    # With SOURCE "mix": [["source", weight], ...], such as [["coco", 0.5], ["shapes", 0.5]].
    paste.MIX = []
    # The list of COCO objects that datasets/prepare_coco_outliers.py writes; "" =
    # coco_outliers.json in $DETECTRON2_DATASETS.
    paste.COCO_LIST = ""
    # COCO categories to take from the list; empty = all.
    paste.COCO_CATEGORIES = []
    # Probability that a training crop gets outliers, and the range of their number.
    paste.PROB = 0.5
    paste.NUM = (1, 3)
    # Range of an object's larger side, as a share of the crop's shorter side; COCO's objects are
    # made smaller the farther up in the frame they stand.
    paste.SIZE = (0.05, 0.5)
    # Classes that objects stand on, such as ["road", "sidewalk"]; empty = any.
    paste.STAND_ON = []
    # Probability that an object darkens the ground around its foot, as things that stand there do;
    # ground is what STAND_ON names, or all.
    paste.SHADOW = 0.0

    # Rare class sampling: draw a class, then an image that shows it, then a crop that does.
    rare = cfg.INPUT.RARE_CLASS = CN()
    # Whether to do so.
    rare.ENABLED = False
    # Classes are drawn with softmax((1 - share of the pixels) / TEMPERATURE): 100 draws them nearly
    # equally often, 0.01 (DAFormer) the rare ones above all.
    rare.TEMPERATURE = 100.0
    # An image counts as showing a class with more pixels than this, in its file ...
    rare.MIN_PIXELS = 3000
    # ... and a crop with more than this (10 further tries, then any crop will do).
    rare.MIN_CROP_PIXELS = 1500


def _add_solver(cfg: CN) -> None:
    # The only one there is: AdamW.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Polynomial decay with warm-up, or one of Detectron2's schedules.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    # Learning rate factors: [["module prefix", factor], ...]; the longest prefix that fits wins.
    cfg.SOLVER.MULTIPLIERS = [["backbone", 0.1]]
    # Power of WarmupPolyLR, and the share of BASE_LR below which it does not fall, as in DeepLab.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.01


def _add_test(cfg: CN) -> None:
    window = cfg.TEST.WINDOW = CN()
    # Side of the square sliding window in pixels (0 = whole image) and its step.
    window.SIZE = 512
    window.STRIDE = 341
    # Windows per forward pass.
    window.BATCH = 4
    # What to do about a test set that is not on disk: "error" or "skip" (with a line saying so).
    cfg.TEST.MISSING = "error"
    # OOD set whose best pixel F1 gives the operating threshold that is saved beside the checkpoint,
    # after training and by --eval-only; "" = the first OOD set in DATASETS.TEST.
    cfg.TEST.THRESHOLD_DATASET = ""
    export = cfg.TEST.EXPORT = CN()
    # Write score maps of all OOD sets to OUTPUT_DIR/inference: "smiyc" (HDF5), "fishyscapes" (pairs
    # of .npy) or "none"; and the name of the method in SMIYC's layout.
    export.FORMAT = "none"
    export.METHOD = "tdos_d2"
    # Write OUTPUT_DIR/report/index.html: curves, histograms, best and worst frames of OOD sets.
    cfg.TEST.REPORT = False
    # Folder for pictures of all evaluated frames, FOLDER/<dataset>/<frame>.jpg; "" = none.
    cfg.TEST.SHOW_DIR = ""
    # Pictures per test set written to TensorBoard at each evaluation.
    cfg.TEST.NUM_PICTURES = 4
