"""Every config key of tdos_d2: ``add_tdos_config(cfg)`` adds them to a Detectron2 config."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode as CN

_CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


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


def _add_model(cfg: CN) -> None:
    _add_clip(cfg)
    _add_text(cfg)
    _add_tdos(cfg)
    _add_decoders(cfg)


def _add_clip(cfg: CN) -> None:
    cfg.MODEL.CLIP = CN()
    # An open_clip model name with a ViT image encoder ("ViT-B-16"), or "tiny": a four-block ViT
    # for tests and the demo.
    cfg.MODEL.CLIP.NAME = "ViT-B-16"
    # A file (OpenAI TorchScript .pt, state dict, safetensors, open_clip checkpoint), an open_clip
    # tag such as "openai", or "" for random weights.
    cfg.MODEL.CLIP.WEIGHTS = "pretrained/CLIP-ViT-B-16.pt"
    # Keep the image encoder as it is (the published recipe). Random weights are always trained.
    cfg.MODEL.CLIP.FREEZE_IMAGE = True


def _add_text(cfg: CN) -> None:
    cfg.MODEL.TEXT = CN()
    # A .npz with "names" and "embeddings" (n, D) that takes the place of the text encoder;
    # "" = encode the class names with CLIP.
    cfg.MODEL.TEXT.EMBEDDINGS = ""


def _add_tdos(cfg: CN) -> None:
    node = cfg.MODEL.TDOS = CN()
    # Names of the K known classes; empty = those of the first data set in DATASETS.TRAIN.
    node.CLASS_NAMES = []
    # The word that stands for "none of the known classes"; label K.
    node.OOD_NAME = "ood"
    # Learnable context tokens, shared by all prompts.
    node.CONTEXT_LENGTH = 20
    # M: learnable negative prompts beside OOD_NAME.
    node.NUM_NEGATIVE = 50
    # Learnable tokens of one negative prompt.
    node.NEGATIVE_LENGTH = 20
    # Standard deviation that learnable tokens start with (CLIP's token embeddings have ~0.02).
    node.PROMPT_STD = 0.02
    # Start of gamma, the share of the context decoder in the text embeddings.
    node.GAMMA_INIT = 1e-4
    # How the M + 1 masks of OOD queries become one: "max" or "mean" (class logits: mean).
    node.MERGE = "max"
    # Score in "ood_score": "log_s_ood" (logarithm of S_ood) or "max_logit" (1 - max_c S_c).
    node.SCORE = "log_s_ood"
    # Further scores to put in "ood_scores" and to evaluate as task ood_<name>.
    node.EXTRA_SCORES = []
    # Weights of the loss terms.
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.SCORE_MAP_WEIGHT = 1.0
    # Weight of the OOD class and of "no object" in the class cross entropy (known classes: 1).
    node.OOD_WEIGHT = 10.0
    node.NO_OBJECT_WEIGHT = 0.1
    # Points per mask in the mask losses; at most one per cell of the mask.
    node.NUM_POINTS = 12544
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Temperature of the score map's cross entropy.
    node.SCORE_MAP_TEMPERATURE = 0.07


def _add_decoders(cfg: CN) -> None:
    neck = cfg.MODEL.NECK = CN()
    # Normalization between the deconvolutions: "LN", "GN", "BN" or "SyncBN".
    neck.NORM = "LN"

    context = cfg.MODEL.CONTEXT_DECODER = CN()
    # Width, depth, heads and dropout of the text-to-image context decoder.
    context.HIDDEN_DIM = 256
    context.NUM_LAYERS = 3
    context.NUM_HEADS = 4
    context.DROPOUT = 0.1

    pixel = cfg.MODEL.PIXEL_DECODER = CN()
    # Width of the memory and of the mask features.
    pixel.HIDDEN_DIM = 256
    pixel.NUM_LAYERS = 6
    pixel.NUM_HEADS = 8
    # Sampling points per head and level of the deformable attention.
    pixel.NUM_SAMPLING_POINTS = 4
    pixel.FFN_DIM = 2048

    query = cfg.MODEL.TRANSFORMER_DECODER = CN()
    # Masked-attention layers; its width is that of the pixel decoder.
    query.NUM_LAYERS = 9
    query.NUM_HEADS = 8
    query.FFN_DIM = 2048


def _add_input(cfg: CN) -> None:
    # Training crops hold at most this share of one class (10 tries; 1.0 = any crop will do).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Random resize of a training image: range of the factor on its original size.
    cfg.INPUT.SCALE_RANGE = (0.5, 2.0)
    # Photometric distortion of training images (brightness, contrast, saturation, hue).
    cfg.INPUT.COLOR_AUG = True

    paste = cfg.INPUT.OOD_PASTE = CN()
    # Where pasted training outliers come from: "shapes" (drawn, needs no data) or "none".
    paste.SOURCE = "shapes"
    # Probability that a training crop gets outliers, and the range of their number.
    paste.PROB = 0.5
    paste.NUM = (1, 3)
    # Range of an object's larger side, as a share of the crop's shorter side.
    paste.SIZE = (0.05, 0.5)


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Polynomial decay with warm-up.
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    # Learning rate factors: [["module prefix", factor], ...]; the longest prefix that fits wins.
    cfg.SOLVER.MULTIPLIERS = [["backbone", 0.1]]
    # Power of the polynomial schedule and the learning rate that it ends at, as a share of BASE_LR.
    cfg.SOLVER.POLY_POWER = 0.9
    cfg.SOLVER.POLY_END = 0.01


def _add_test(cfg: CN) -> None:
    window = cfg.TEST.WINDOW = CN()
    # Side of the square sliding window in pixels (0 = whole image) and its step.
    window.SIZE = 512
    window.STRIDE = 341
    # Windows per forward pass.
    window.BATCH = 4
    # What to do about a test set that is not on disk: "error" or "skip" (with a line saying so).
    cfg.TEST.MISSING = "error"
    # Pictures per test set written to TensorBoard at each evaluation.
    cfg.TEST.NUM_PICTURES = 4
