"""Summary of a model: parameters, multiply-adds, prompts, and the origin of its weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from ..config import set_key
from ..loading.checkpoint import TDOSCheckpointer
from ..loading.config_checks import check_model
from ..loading.config_files import local_weights
from ..modeling.clip import missing_weights_file
from ..ood_words import load_groups
from ..tdos import TDOS


@dataclass
class ModelPart:
    """A direct child of the model that has tensors.

    Attributes:
        name: such as "pixel_decoder".
        trainable: number of trained parameters.
        frozen: number of frozen parameters.
        sources: number of tensors (parameters and statistics) by their origin.
        multiply_adds: number per window; None: the part does not process windows.
    """

    name: str
    trainable: int
    frozen: int
    sources: Counter[str]
    multiply_adds: int | None = None


def load_model(cfg: CfgNode, random: bool = False) -> tuple[TDOS, list[ModelPart], list[str]]:
    """Build the model of ``cfg`` on the CPU and load its weights.

    Args:
        cfg: the complete config; it is not changed.
        random: use random weights instead of CLIP weights and checkpoints that are not on disk;
            the same parameters are frozen as with those weights.

    Returns:
        The model in eval mode, its parts without multiply-adds, and lines for the user.

    Raises:
        UserError: a file or key of the config is wrong.
    """
    cfg = cfg.clone()
    notes = []
    of_timm = cfg.MODEL.BACKBONE.NAME == "TimmBackbone"
    frozen = not of_timm and cfg.MODEL.CLIP.FREEZE_IMAGE and bool(cfg.MODEL.CLIP.WEIGHTS)
    if random:
        path = local_weights(cfg)
        missing = {
            "MODEL.CLIP.WEIGHTS": missing_weights_file(cfg.MODEL.CLIP.WEIGHTS),
            "MODEL.WEIGHTS": path is not None and not path.is_file(),
        }
        for key in filter(missing.get, missing):
            notes.append(f"{key} is not there: random weights take its place")
            set_key(cfg, key, "")
    set_key(cfg, "MODEL.DEVICE", "cpu")
    notes += check_model(cfg)
    model = build_model(cfg).eval()
    if frozen:
        model.backbone.requires_grad_(False)
    not_loaded = set(model.state_dict())
    if cfg.MODEL.WEIGHTS:
        checkpointer = TDOSCheckpointer(model)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        not_loaded = set(checkpointer.not_loaded)
    return model, _parts(model, cfg, not_loaded), notes


def _parts(model: TDOS, cfg: CfgNode, not_loaded: set[str]) -> list[ModelPart]:
    parts = []
    for name, module in model.named_children():
        sources = Counter(
            _start(key, cfg) if key in not_loaded else f"checkpoint {cfg.MODEL.WEIGHTS}"
            for key in (f"{name}.{key}" for key in module.state_dict())
        )
        numbers = Counter()
        for parameter in module.parameters():
            numbers[parameter.requires_grad] += parameter.numel()
        if sources:
            parts.append(ModelPart(name, numbers[True], numbers[False], sources))
    return parts


def _start(key: str, cfg: CfgNode) -> str:
    """Origin of a tensor's values before a checkpoint is loaded."""
    clip, embeddings = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.TEXT.EMBEDDINGS
    if key == "text.vectors" and embeddings:
        return f"text embeddings {embeddings}"
    if key.startswith("backbone.network."):
        weights = cfg.MODEL.TIMM.WEIGHTS
        return f"{cfg.MODEL.TIMM.NAME} ({weights})" if weights else "random"
    of_clip = key.startswith(("backbone.tower.visual.", "text.tower."))
    return f"CLIP {clip}" if of_clip and clip else "random"


def count_multiply_adds(model: TDOS, parts: list[ModelPart], size: tuple[int, int]) -> int:
    """fvcore's count for one window, per part (written into ``parts``) and in total.

    fvcore calls them flops and counts a multiply-add as one. Matrix products, convolutions,
    attention, normalisation and resampling count; activations and sums do not. The text encoder is
    not counted: the text embeddings are computed once.

    Args:
        model: in eval mode, on the CPU.
        parts: from :func:`load_model`.
        size: (height, width) of the window in pixels.
    """
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operation that fvcore cannot count
    try:
        with torch.no_grad():
            if isinstance(model, TDOS):
                model.text()  # the model keeps the embeddings
            counts = flops(_Windows(model), torch.zeros(1, 3, *size))
            by_module = counts.by_module()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    for part in parts:
        if part.name != "text":
            part.multiply_adds = round(by_module[f"model.{part.name}"])
    return round(by_module[""])


class _Windows(nn.Module):
    """The computation for windows (B, 3, h, w), as a separate module for fvcore."""

    def __init__(self, model: TDOS) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.model._predict(windows)


def flops(module: nn.Module, *inputs: torch.Tensor) -> FlopCountAnalysis:
    """fvcore's analysis, which also counts ``scaled_dot_product_attention``."""
    counts = FlopCountAnalysis(module.eval(), inputs)
    counts.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts.tracer_warnings("none")
    return counts


def _attention_flops(inputs: list, outputs: list) -> Counter[str]:
    *batch, queries, width = inputs[0].type().sizes()
    keys, value_width = inputs[2].type().sizes()[-2:]
    return Counter(attention=math.prod(batch) * queries * keys * (width + value_width))


def describe_prompts(cfg: CfgNode, model: TDOS, num_words: int = 6) -> list[str]:
    """Lines about known names, prompts, negatives and groups of OOD words.

    Args:
        cfg: the config before changes by the checkpoint, which clears the list of words.
        model: its model.
        num_words: number of words shown per group.
    """
    node, prompts, fixed = cfg.MODEL.TDOS, cfg.MODEL.PROMPTS, cfg.MODEL.TEXT.EMBEDDINGS
    if fixed:
        text, length = f"text: fixed embeddings of {fixed}, each with a learnable residual", ""
    else:
        text = f"prompt of a name: {node.CONTEXT_LENGTH} learnable tokens, then the name"
        length = f" of {node.NEGATIVE_LENGTH} learnable tokens"
    lines = [
        f"{model.num_known} known classes: {', '.join(model.class_names)}",
        f"OOD word: {model.ood_name}",
        text,
        f"negatives: {node.NUM_NEGATIVE}{length}",
    ]
    if not prompts.GROUPS or not node.NUM_NEGATIVE:
        return [*lines, "no groups of OOD words"]
    groups, uses = load_groups(prompts.GROUPS, node.NUM_NEGATIVE), []
    if prompts.INIT == "group":
        uses.append("negatives start at them")
    if cfg.MODEL.REG.LANGUAGE_WEIGHT:
        uses.append(f"the language term (weight {cfg.MODEL.REG.LANGUAGE_WEIGHT:g}) holds to them")
    lines.append(
        f"OOD words: {len(groups.words)} in {len(groups.groups)} groups of '{prompts.GROUPS}'; "
        f"in training {' and '.join(uses) or 'nothing uses them'}"
    )
    for number, words in enumerate(groups.groups, start=1):
        more = f", ... ({len(words)} words)" if len(words) > num_words else ""
        lines.append(f"  {number:3d}: {', '.join(words[:num_words])}{more}")
    return lines
