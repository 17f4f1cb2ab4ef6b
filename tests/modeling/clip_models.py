"""Small CLIPs with random weights, and their weight files, for several test modules."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tdos_d2.modeling.clip import build_clip

# Widths are multiples of 64 because OpenAI's files do not name the number of heads.
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
SMALL_VIT = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": _TEXT,
}
SMALL_RESNET = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": [2, 1, 2, 1], "width": 16, "head_width": 64},
    "text_cfg": _TEXT,
}


def random_clip(name: str = "tiny", seed: int = 0) -> nn.Module:
    """A CLIP in which no layer is at a start value (zero or one) that would hide an omission."""
    clip, _ = build_clip(name, "")
    generator = torch.Generator().manual_seed(seed)
    norms = {f"{prefix}.weight" for prefix, m in clip.named_modules() if "Norm" in type(m).__name__}
    for key, value in clip.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        new = torch.randn(value.shape, generator=generator)
        if key.endswith("running_var"):
            new = 0.5 + new.abs()
        elif key in norms:
            new = 1 + 0.2 * new
        elif "token_embedding" in key:
            new = 0.02 * new
        elif value.ndim > 1 and key.endswith("weight"):  # keeps many layers in range
            new = new / value[0].numel() ** 0.5
        else:
            new = 0.2 * new
        # representable in half precision, which OpenAI's files are rounded to
        value.copy_(new.half().float())
    return clip.eval()


def images(height: int, width: int) -> torch.Tensor:
    """Two images."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def openai_archive(clip: nn.Module, path: Path) -> None:
    """Write ``clip`` as OpenAI does: a TorchScript archive, three numbers beside the weights."""
    side = clip.visual.image_size
    side = side if isinstance(side, int) else side[0]

    class Archive(nn.Module):
        def __init__(self):
            super().__init__()
            for key, value in openai_numbers(side).items():
                self.register_buffer(key, value)
            self.visual, self.transformer = clip.visual, clip.transformer
            self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
            self.positional_embedding = clip.positional_embedding
            self.text_projection, self.logit_scale = clip.text_projection, clip.logit_scale

        def forward(self, x):
            return self.visual(x)

    torch.jit.trace(Archive().eval(), images(side, side), check_trace=False).save(str(path))


def openai_numbers(side: int) -> dict[str, torch.Tensor]:
    """What OpenAI's archives hold beside the weights."""
    numbers = {"input_resolution": side, "context_length": 77, "vocab_size": 49408}
    return {key: torch.tensor(value) for key, value in numbers.items()}


def write(clip: nn.Module, kind: str, folder: Path) -> str:
    """Write ``clip`` as one of the kinds of weight file that there are; gives the path."""
    state = clip.state_dict()
    path = folder / f"{kind}.pt"
    if kind == "archive":
        openai_archive(clip, path)
    elif kind == "openai_state":
        torch.save({**state, **openai_numbers(32)}, path)
    elif kind == "openai_mixed":  # what OpenAI's own loader gives on a GPU: matrices in half
        torch.save({k: v.half() if v.ndim > 1 else v for k, v in state.items()}, path)
    elif kind == "state":
        torch.save(state, path)
    elif kind == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        from safetensors.torch import save_file

        path = folder / "weights.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, str(path))
    return str(path)
