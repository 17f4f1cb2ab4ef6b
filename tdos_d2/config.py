"""All config keys of tdos_d2: ``add_tdos_config(cfg)`` adds them to a Detectron2 config."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN

# A wheel contains the configs as tdos_d2.configs; in a checkout they are beside the package.
_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "configs"
if not CONFIG_DIR.is_dir():
    CONFIG_DIR = _PACKAGE.parent / "configs"
WEIGHTS_DIR = _PACKAGE / "weights"


def add_tdos_config(cfg: CN) -> None:
    """Add the TDOS keys, with the defaults of the published recipe, to ``cfg`` in place."""
    _add_model(cfg)
    _add_tdos(cfg)
    _add_augmentation(cfg)
    _add_decoders(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def get_config_file(name: str) -> str:
    """Path of a config that ships with the project.

    Args:
        name: path below ``configs/``, such as ``"tdos_vitb.yaml"`` or ``"camvid/tdos_tiny.yaml"``.

    Raises:
        FileNotFoundError: no such config; the message lists the existing ones.
    """
    path = CONFIG_DIR / name
    if path.is_file():
        return str(path)
    known = sorted(str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob("*.yaml"))
    raise FileNotFoundError(f"no config '{name}' in {CONFIG_DIR}; there are: {', '.join(known)}")


def get_checkpoint_file(name: str) -> str:
    """Path of trained weights that ship with the project (see MODEL_CARD.md beside them).

    Args:
        name: the config's path below ``configs/``, such as ``"camvid/tdos_lite2"``; the weights of
            ``"camvid/tdos_lite2_memory"`` are in the same file.

    Raises:
        FileNotFoundError: no such weights; the message lists the existing ones.
    """
    name = name.removesuffix(".yaml").removesuffix("_memory")
    path = WEIGHTS_DIR / f"{name}.safetensors"
    if path.is_file():
        return str(path)
    files = sorted(WEIGHTS_DIR.rglob("*.safetensors"))
    known = ", ".join(file.relative_to(WEIGHTS_DIR).with_suffix("").as_posix() for file in files)
    raise FileNotFoundError(f"no weights of '{name}' ship with tdos_d2, only of: {known}")


def set_key(cfg: CN, key: str, value: Any) -> None:
    """Set ``cfg.<key>`` in place, even if the config is frozen (it stays frozen)."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    *sections, name = key.split(".")
    reduce(CN.__getitem__, sections, cfg)[name] = value
    if frozen:
        cfg.freeze()


def _add_model(cfg: CN) -> None:
    # Python modules to import before anything is built, such as ["my_project.parts"]: they register
    # custom parts, backbones and datasets. Importing runs their code, so a config file that is not
    # part of this project may name modules only with TDOS_TRUST_IMPORTS=1 in the environment.
    cfg.MODEL.IMPORTS = []
    # Use TF32 for float32 matrix products and convolutions on GPUs that have it (A100 and later).
    # Faster without mixed precision; scores differ from about the third digit on.
    cfg.MODEL.TF32 = False

    cfg.MODEL.CLIP = CN()
    # An open_clip model name ("ViT-B-16", "RN50"), or "tiny" (a four-block ViT) or "tiny-rn" (a
    # four-block ResNet), for tests and the demo. MODEL.BACKBONE.NAME must fit:
    # CLIPVisionTransformer or CLIPModifiedResNet.
    cfg.MODEL.CLIP.NAME = "ViT-B-16"
    # A file (OpenAI TorchScript .pt, state dict, safetensors, open_clip checkpoint), an open_clip
    # tag such as "openai", or "" for random weights.
    cfg.MODEL.CLIP.WEIGHTS = "pretrained/CLIP-ViT-B-16.pt"
    # Activation: "gelu", "quick_gelu" (OpenAI's models), or "auto" = chosen from NAME and WEIGHTS
    # and written to the log. A trained checkpoint keeps the activation that it was trained with.
    cfg.MODEL.CLIP.ACTIVATION = "auto"
    # Freeze the image encoder, as in the published recipe. Random weights are always trained.
    cfg.MODEL.CLIP.FREEZE_IMAGE = True
    # Freeze the BatchNorm layers (statistics and weights) of a pretrained CLIP ResNet that is
    # fine-tuned. Those of a randomly initialised ResNet are always trained.
    cfg.MODEL.BACKBONE.FREEZE_NORM = True

    timm = cfg.MODEL.TIMM = CN()
    # Image encoder for MODEL.BACKBONE.NAME TimmBackbone: any timm model that returns feature maps.
    # The text encoder is still chosen by MODEL.CLIP and MODEL.TEXT.
    timm.NAME = "tf_efficientnet_lite2"
    # A file, "timm" (timm's own download), "package" (weights in a package of the extra "lite") or
    # "" for random weights. PIXEL_MEAN and PIXEL_STD are taken from the weights.
    timm.WEIGHTS = "package"
    # Four indices into the encoder's levels, finest first; empty = strides 4, 8, 16 and 32 or, for
    # a ViT, the blocks at 4/12, 6/12, 8/12 and 12/12 of its depth.
    timm.LEVELS = []
    # Freeze the image encoder. Random weights are always trained.
    timm.FREEZE = True

    memory = cfg.MODEL.MEMORY = CN()
    # For MODEL.META_ARCHITECTURE NormalityMemory, and TDOS's scores "memory" and "combined":
    # feature maps of the encoder that are used in the memory; the score has the first one's grid.
    memory.LEVELS = ["tap3", "tap4"]
    # Largest number of feature vectors in the memory; number of nearest neighbours in the score.
    memory.SIZE = 20000
    memory.NEIGHBOURS = 3

    cfg.MODEL.TEXT = CN()
    # Source of the text queries: "PromptedText" (CLIP's text encoder with learnable prompts),
    # "FixedText" (the vectors of EMBEDDINGS) or "" = FixedText if EMBEDDINGS is set, else
    # PromptedText.
    cfg.MODEL.TEXT.NAME = ""
    # A .npz file with "names" and "embeddings" (n, D) instead of the text encoder; "" = encode the
    # class names with CLIP. Vectors are scaled to norm 10, about that of CLIP's text embeddings.
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
    # Standard deviation of the initial learnable tokens (CLIP's token embeddings have about 0.02).
    node.PROMPT_STD = 0.02
    # Initial value of gamma, the weight of the context decoder's output in the text embeddings.
    node.GAMMA_INIT = 1e-4
    # How the masks and score maps of the M + 1 OOD queries are merged: "max", "mean", or
    # "score_weighted" (mean weighted by p(ood | query)).
    node.MERGE = "max"
    # How their class logits are merged: "mean" (weighted if MERGE is "score_weighted") or
    # "strongest" (the logits of the query with the largest p(ood | query)).
    node.CLASS_MERGE = "mean"
    # OOD score: "log_s_ood" (logarithm of S_ood), "s_ood_softmax" (S_ood after the released code's
    # softmax over S), "max_logit" (1 - max_c S_c), "energy" (-logsumexp_c S_c), "rba"
    # (-sum_c tanh S_c), "text_only" (logarithm of the OOD probability in the score map), "memory"
    # (distance to features of normal frames, see MODEL.MEMORY) or "combined" (log_s_ood + memory,
    # each in units of its tail on normal frames). The last two need tools/fit_memory.py after
    # training.
    node.SCORE = "log_s_ood"
    # Further scores for the output "ood_scores", each evaluated as task ood_<name>.
    node.EXTRA_SCORES = []
    # Train only prompts, class and mask heads and the queries' position embeddings; all other
    # weights stay as in the checkpoint of MODEL.WEIGHTS.
    node.HEADS_ONLY = False
    # Weights of the loss terms (SCORE_MAP_WEIGHT 0 = no such term).
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.SCORE_MAP_WEIGHT = 1.0
    # Weights of the OOD class and of "no object" in the class cross entropy (known classes: 1).
    node.OOD_WEIGHT = 10.0
    node.NO_OBJECT_WEIGHT = 0.1
    # Points per mask in the mask losses, at most one per pixel of the predicted mask.
    node.NUM_POINTS = 12544
    # PointRend's sampling: candidates per point, and the share of points taken where the mask is
    # least certain; the others are uniformly distributed.
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Temperature of the score map's cross entropy.
    node.SCORE_MAP_TEMPERATURE = 0.07
    # Leave pixels labelled void (255, also padding) out of the mask and dice losses; False = void
    # is outside of every mask, also that of OOD, as in the released code.
    node.IGNORE_VOID = True


def _add_augmentation(cfg: CN) -> None:
    noise = cfg.MODEL.SEM_AUG = CN()
    # OOD semantic augmentation: perturb the image encoder's features in a region during training.
    noise.ENABLED = True
    # The region: "labelled" (pixels labelled OOD), "random" (random ellipses of known pixels, which
    # become OOD targets, so that no pasted object is needed), or "both".
    noise.REGION = "labelled"
    # Probability that a sample is perturbed.
    noise.PROB = 0.5
    # ViT: blocks whose attention queries get noise (counted from 1; negative = from the end), and
    # the strength of the noise relative to a token's mean and standard deviation.
    noise.BLOCKS = [-1]
    noise.NOISE = 1.0
    # ResNet: how far the region's feature statistics after stage 1 are moved towards those of the
    # rest of the image (1 = fully).
    noise.ALPHA = 0.2
    # ResNet: deviation of a random change of these statistics, in units of each channel's deviation
    # over the rest; 0 = none, as published.
    noise.STYLE_NOISE = 0.0
    # Ranges of the number of random ellipses and of their larger diameter, relative to the crop's
    # shorter side.
    noise.NUM = (1, 3)
    noise.SIZE = (0.1, 0.5)
    # Random regions are whole ellipses ("ellipse"), or the part of an ellipse that has the class of
    # its centre ("segment").
    noise.SHAPE = "ellipse"

    prompts = cfg.MODEL.PROMPTS = CN()
    # OOD words in M groups, from near to far: a list that ships with the project ("cityscapes"), a
    # JSON file from tools/mine_ood_words.py, a .txt file with a word per line (neighbours share a
    # group), or "" = negative prompts without words.
    prompts.GROUPS = "cityscapes"
    # Initial negative prompts: "random", or from the words of their "group".
    prompts.INIT = "random"

    reg = cfg.MODEL.REG = CN()
    # Language regularizer, which keeps the text queries close to their words: its weight (0 = off),
    # the template for words, and the temperature of the cosine similarities.
    reg.LANGUAGE_WEIGHT = 1.0
    reg.TEMPLATE = "a clean origami of a {}"
    reg.TEMPERATURE = 0.07
    # Vision regularizer, which keeps a fine-tuned image encoder close to the pretrained one:
    # weights of the squared and the cosine distance of image embeddings (both 0 = off).
    reg.VISION_MSE_WEIGHT = 10.0
    reg.VISION_COSINE_WEIGHT = 2.0


def _add_decoders(cfg: CN) -> None:
    neck = cfg.MODEL.NECK = CN()
    # "ScaleNeck" (deconvolutions, for a ViT), "FPNNeck" (feature pyramid with the score map as an
    # input, for a ResNet) or "" = the one that fits the backbone.
    neck.NAME = ""
    # Channels of FPNNeck's levels; ScaleNeck's have the encoder's width.
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
    # The pixel decoder; custom ones are registered in tdos_d2.modeling.registry.
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
    # Masked-attention layers, their heads and the width inside their feed-forward blocks. The
    # decoder's width is PIXEL_DECODER.HIDDEN_DIM.
    query.NUM_LAYERS = 9
    query.NUM_HEADS = 8
    query.FFN_DIM = 2048


def _add_input(cfg: CN) -> None:
    # A YAML file with custom datasets: a list of mappings with the arguments of
    # register_segmentation_dataset (with classes or colours) or register_ood_dataset; "" = none.
    cfg.DATASETS.REGISTER = ""
    # Sampling weight of each dataset in DATASETS.TRAIN; empty = all frames are equally likely.
    cfg.DATASETS.TRAIN_WEIGHTS = []
    # Largest share of one class in a training crop (10 tries; 1.0 = no limit).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Random resize of training images: range of the factor on the original size.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    # Size of the model's input per test dataset: [["dataset", shorter side, largest longer side],
    # ...]. Overrides MIN_SIZE_TEST and MAX_SIZE_TEST, and is overridden by the dataset's test_size.
    # predict.py and calibrate.py, which know no datasets, use MIN_SIZE_TEST and MAX_SIZE_TEST.
    cfg.INPUT.TEST_SIZES = []
    # Photometric distortion of training images (brightness, contrast, saturation, hue), as in
    # PointRend. It comes after pasting, so that objects and their surroundings change alike.
    cfg.INPUT.COLOR_AUG_SSD = True

    paste = cfg.INPUT.OOD_PASTE = CN()
    # Source of the OOD objects pasted into training images: "shapes" (drawn, needs no data),
    # "pieces" (drawn outlines filled with recoloured pieces of the training images), "coco" (cut
    # out of COCO images), "cutouts" (see CUTOUTS), "auto" ("coco" if its list exists, else "shapes"
    # and "pieces" half and half, with a warning), "mix" (several, see MIX) or "none".
    paste.SOURCE = "shapes"
    # With SOURCE "mix": [["source", weight], ...], such as [["coco", 0.5], ["shapes", 0.5]].
    paste.MIX = []
    # List of COCO objects from datasets/prepare_coco_outliers.py; "" =
    # coco_outliers.json in $DETECTRON2_DATASETS.
    paste.COCO_LIST = ""
    # COCO categories to use from the list; empty = all.
    paste.COCO_CATEGORIES = []
    # Folder in $DETECTRON2_DATASETS of images with transparent background, without known classes.
    paste.CUTOUTS = "cutouts"
    # Probability that objects are pasted into a training crop, and the range of their number.
    paste.PROB = 0.5
    paste.NUM = (1, 3)
    # Range of an object's larger side relative to the crop's shorter side. COCO objects are scaled
    # down with the height of their position in the frame.
    paste.SIZE = (0.05, 0.5)
    # Classes that objects may stand on, such as ["road", "sidewalk"]; empty = any.
    paste.STAND_ON = []
    # Probability that an object casts a shadow: the ground (the classes of STAND_ON; empty = all)
    # is darkened around its foot.
    paste.SHADOW = 0.0

    # Rare class sampling: draw a class, then an image with this class, then a crop with it.
    rare = cfg.INPUT.RARE_CLASS = CN()
    # Use rare class sampling for training.
    rare.ENABLED = False
    # Classes are drawn with softmax((1 - share of pixels) / TEMPERATURE): 100 draws all classes
    # almost equally often, 0.01 (DAFormer) mostly the rare ones.
    rare.TEMPERATURE = 100.0
    # An image can be drawn for a class if it has more pixels of the class than this.
    rare.MIN_PIXELS = 3000
    # A crop is drawn again, up to 10 times, until it has more pixels of the class than this.
    rare.MIN_CROP_PIXELS = 1500


def _add_solver(cfg: CN) -> None:
    # Optimizer; only AdamW is available.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Polynomial decay with warm-up, or one of Detectron2's schedules.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    # Learning rate factors: [["module prefix", factor], ...]; the longest matching prefix applies.
    cfg.SOLVER.MULTIPLIERS = [["backbone", 0.1]]
    # Mixed precision in bfloat16 on a CPU (AMP.ENABLED alone is for GPUs). Faster if the processor
    # supports bfloat16 (AVX-512 BF16 or AMX), else slower.
    cfg.SOLVER.AMP.CPU = False
    # Checkpoint from which --resume continues if OUTPUT_DIR has none, with its optimizer state and
    # iteration, and the learning rates and MAX_ITER of this config; "" = none.
    cfg.SOLVER.RESUME_FROM = ""
    # Seconds after which a run of several processes ends if one of them does not respond to the
    # others. Processes wait for the main one while it computes metrics and writes reports.
    cfg.SOLVER.PROCESS_TIMEOUT = 1800
    # Deterministic algorithms on GPUs: the same seed gives the same weights. Slower; for operations
    # without such an algorithm, the log has torch's warning with their name.
    cfg.SOLVER.DETERMINISTIC = False
    # Power of WarmupPolyLR, and its smallest value as a share of BASE_LR, as in DeepLab.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.01
    # Largest number of successive steps with a NaN or infinite loss or gradient that are skipped
    # and counted; one more stops training (0 = the first). The batch is saved in OUTPUT_DIR. With
    # AMP on a GPU, such gradients count once the loss scale has fallen below 1.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0


def _add_test(cfg: CN) -> None:
    window = cfg.TEST.WINDOW = CN()
    # Side of the square sliding window in pixels (0 = whole image), and its stride.
    window.SIZE = 512
    window.STRIDE = 341
    # Windows per forward pass. 0 = 1 on a CPU, where more need memory and save no time, 4 on a GPU.
    window.BATCH = 0
    # "window" decodes every window and averages the outputs, as published; "image" averages the
    # encoder's maps and decodes once, which is faster.
    window.DECODE = "window"
    # Predict and evaluate in bfloat16 on a CPU: faster if the processor supports it (AVX-512 BF16
    # or AMX); scores differ slightly.
    cfg.TEST.BFLOAT16 = False
    # What to do if a test dataset is not on disk: "error", or "skip" with a warning.
    cfg.TEST.MISSING = "error"
    # OOD dataset whose best pixel F1 sets the operating threshold, which is saved beside the
    # checkpoint after training and by --eval-only; "" = the first OOD dataset in DATASETS.TEST.
    cfg.TEST.THRESHOLD_DATASET = ""
    # Threshold of component metrics, report and pictures: "best-f1", "fpr:0.01" (the lowest with at
    # most that FPR), "tpr:0.95" (the highest with at least that TPR), "calibrated" (the file of
    # tools/calibrate.py beside MODEL.WEIGHTS; --eval-only), or another .json file of that tool.
    cfg.TEST.THRESHOLD = "best-f1"
    # Also measure instances, images, OOD objects by size and by distance to the lower edge and, if
    # labels have classes, open-IoU.
    cfg.TEST.BREAKDOWN = False
    # Write counts of each frame to OUTPUT_DIR/frame_counts, with which tools/compare_runs.py
    # compares runs frame by frame.
    cfg.TEST.FRAME_COUNTS = False
    export = cfg.TEST.EXPORT = CN()
    # Write score maps of all OOD datasets to OUTPUT_DIR/inference: "smiyc" (HDF5), "fishyscapes"
    # (pairs of .npy files) or "none"; and the name of the method in SMIYC's folder layout.
    export.FORMAT = "none"
    export.METHOD = "tdos_d2"
    # Write OUTPUT_DIR/report/index.html: curves, histograms, best and worst frames of OOD datasets.
    cfg.TEST.REPORT = False
    # Folder for visualizations of all evaluated frames, FOLDER/<dataset>/<frame>.jpg; "" = none.
    cfg.TEST.SHOW_DIR = ""
    # Visualized frames per test dataset in TensorBoard at each evaluation.
    cfg.TEST.NUM_PICTURES = 4
