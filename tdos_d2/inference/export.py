"""The model of one window as a program: torch.export's, or ONNX for use without PyTorch.

Normalisation, padding and text embeddings are inside; the text encoder is not. The program takes
any number of windows of any size, or one of a fixed size; ``examples/onnx_sliding_window.py`` cuts
an image into windows and averages what comes out, as the model itself does. With that inside:
``export_predictor.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..evaluation.frames import check_finite
from ..evaluation.tables import to_json
from ..modeling.scores import PIXEL_SCORES, AnomalyScores
from ..modeling.text.stored import StoredText
from ..normality_memory import NormalityMemory
from ..tdos import TDOS

INPUT, OUTPUTS = "windows", ("sem_seg", "ood_score")
INPUT_TYPES = {"uint8": torch.uint8, "float32": torch.float32}
_OPSET = 18  # GridSample is there since 16
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
# Traced with this many windows of these pixels; the program takes others. No two numbers are equal
# and none stands for a grid of one cell, which would be taken for a property of all inputs.
_TRACED = (2, 3, 136, 200)


class WindowModel(nn.Module):
    """What a model says of windows, with its text embeddings as constants.

    Args:
        model: TDOS or NormalityMemory, in eval mode, float32; it shares its parts with this module
            and stays as it is.
        bgr: the model was trained with ``INPUT.FORMAT`` BGR; this module takes RGB nevertheless.

    Raises:
        UserError: a score that is made after windows have been averaged.
    """

    def __init__(self, model: TDOS | NormalityMemory, *, bgr: bool = False) -> None:
        super().__init__()
        if model.score_name in PIXEL_SCORES:
            raise UserError(
                f"MODEL.TDOS.SCORE: '{model.score_name}' is made of sem_seg after windows have "
                "been averaged; export log_s_ood, text_only, memory or combined"
            )
        self.bgr, self.num_known = bgr, len(model.class_names)
        self.model = without_text_encoder(model) if isinstance(model, TDOS) else model
        # A NormalityMemory knows no classes, and not every runtime has arrays without channels.
        self.outputs = OUTPUTS if self.num_known else OUTPUTS[1:]
        self.eval()

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            windows: (B, 3, h, w) RGB in [0, 255], of any type.

        Returns:
            S of the known classes (B, K, h, w) and the OOD score (B, h, w), float32, both to be
            averaged over windows; of a NormalityMemory the score alone.
        """
        images = windows.flip(1) if self.bgr else windows
        maps = self.model._predict(self.model._normalise(images))
        score = maps[:, -1]
        if self.model.score_name == "combined":  # linear, so that its average may be taken as well
            score = self.model.scores.combine(maps[:, -2:].unbind(1))
        return (maps[:, : self.num_known], score)[-len(self.outputs) :]


def without_text_encoder(model: TDOS) -> TDOS:
    """The same parts in a new model, but for those that windows do not need."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    with torch.no_grad():
        other.text = StoredText(model.text())
    other.criterion = other.semantic_augmentation = other.regularization = None
    other.scores = AnomalyScores((model.score_name,), model.scores.temperature)
    other.extra_scores = ()
    other.scores.load_state_dict(model.scores.state_dict(), strict=False)
    return other


def export_program(
    model: WindowModel,
    input_type: torch.dtype = torch.uint8,
    size: tuple[int, int] | None = None,
) -> torch.export.ExportedProgram:
    """``model`` as torch.export's program.

    Args:
        model: on the CPU.
        input_type: of the windows.
        size: (h, w) of the one window (1, 3, h, w) that the program takes; None: any number of
            windows of any size, which takes long for encoders whose padding depends on the size.
    """
    any_size = torch.export.Dim.AUTO
    shapes = None if size else {"windows": {0: any_size, 2: any_size, 3: any_size}}
    windows = torch.zeros((1, 3, *size) if size else _TRACED, dtype=input_type)
    with torch.no_grad():
        return torch.export.export(model, (windows,), dynamic_shapes=shapes, strict=False)


def check_onnx_packages() -> None:
    """Raise UserError if a package of the extra "export" is missing."""
    absent = [name for name in _ONNX_NEEDS if find_spec(name) is None]
    if absent:
        raise UserError(f"ONNX needs {', '.join(absent)}: pip install 'tdos_d2[export]'")


def export_predictor(model: nn.Module, frame: tuple[int, int]) -> torch.export.ExportedProgram:
    """A ``PredictorModel`` as torch.export's program, for frames (H, W, 3) uint8 of one size."""
    with torch.no_grad():
        image = torch.zeros((*frame, 3), dtype=torch.uint8)
        return torch.export.export(model, (image,), strict=False)


def to_onnx(
    program: torch.export.ExportedProgram,
    metadata: Mapping[str, Any],
    name: str = INPUT,
    outputs: Sequence[str] = OUTPUTS,
) -> bytes:
    """``program`` as the content of an ONNX file.

    Args:
        program: of :func:`export_program` or :func:`export_predictor`.
        metadata: what the file says of itself; values that are not text are written as JSON.
        name: of the input.
        outputs: names of the outputs; of more than there are, the last.
    """
    count = len(program.graph_signature.user_outputs)
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=[name],
        output_names=list(outputs[-count:]),
        optimize=False,  # takes minutes, and ONNX Runtime does it when it loads
        verbose=False,
    )
    made.model.metadata_props.update(
        {k: v if isinstance(v, str) else to_json(v, None) for k, v in metadata.items()}
    )
    return made.model_proto.SerializeToString()


def expected_outputs(
    model: nn.Module, inputs: Iterable[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """What PyTorch gives for each of some inputs of a module that names its ``outputs``, checked
    to be finite.

    Raises:
        UserError: it is not.
    """
    with torch.no_grad():
        results = [tuple(map(Tensor.numpy, model(torch.from_numpy(x)))) for x in inputs]
    for result in results:
        for name, values in zip(model.outputs, result, strict=True):
            check_finite(values, f"MODEL.WEIGHTS: {name} of the model")
    return results


def onnx_outputs(onnx: bytes, inputs: Iterable[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """What ONNX Runtime gives for each of some inputs, on the CPU.

    Args:
        onnx: of :func:`to_onnx`.
        inputs: of the model.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return [tuple(session.run(None, {given.name: values})) for values in inputs]


def largest_difference(
    found: Iterable[tuple[np.ndarray, ...]], expected: Iterable[tuple[np.ndarray, ...]]
) -> float:
    """Largest absolute difference in any output; of whole numbers the share that differs.

    Returns:
        NaN where either is NaN.
    """
    differences = [
        np.abs(ours - theirs).max() if ours.dtype.kind == "f" else (ours != theirs).mean()
        for result, other in zip(found, expected, strict=True)
        for ours, theirs in zip(result, other, strict=True)
    ]
    return float(np.max(differences))  # unlike max(), keeps NaN
