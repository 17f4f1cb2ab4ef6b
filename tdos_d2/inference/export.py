"""Export of the model of one window: a torch.export program, or ONNX for use without PyTorch.

The program includes normalisation, padding and text embeddings, but not the text encoder. It takes
any number of windows of any size, or one window of a fixed size.
``examples/onnx_sliding_window.py`` cuts an image into windows and averages the outputs, as the
model does; ``export_predictor.py`` exports a program that includes this step.
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
_OPSET = 18  # GridSample needs 16 or more
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
# Shape of the windows for tracing; the program takes other shapes. No two numbers are equal and
# none gives a grid of one cell: the tracer would take either for a property of all inputs.
_TRACED = (2, 3, 136, 200)


class WindowModel(nn.Module):
    """A model's outputs for windows, with its text embeddings as constants.

    Args:
        model: TDOS or NormalityMemory, in eval mode, float32; it shares its submodules with this
            module and is not changed.
        bgr: the model was trained with ``INPUT.FORMAT`` BGR; this module still takes RGB.

    Raises:
        UserError: the model's score can only be computed after windows have been averaged.
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
        # A NormalityMemory has no classes, and not every runtime supports arrays without channels.
        self.outputs = OUTPUTS if self.num_known else OUTPUTS[1:]
        self.eval()

    def forward(self, windows: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            windows: (B, 3, h, w) RGB in [0, 255], of any type.

        Returns:
            S of the known classes (B, K, h, w) and the OOD score (B, h, w), float32, both to be
            averaged over windows; for a NormalityMemory only the score.
        """
        images = windows.flip(1) if self.bgr else windows
        maps = self.model._predict(self.model._normalise(images))
        score = maps[:, -1]
        if self.model.score_name == "combined":  # linear, so averaging over windows is valid
            score = self.model.scores.combine(maps[:, -2:].unbind(1))
        return (maps[:, : self.num_known], score)[-len(self.outputs) :]


def without_text_encoder(model: TDOS) -> TDOS:
    """A new model that shares the submodules but lacks those that windows do not need."""
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
    """``model`` as a torch.export program.

    Args:
        model: on the CPU.
        input_type: type of the windows.
        size: (h, w) of the one window (1, 3, h, w) that the program takes; None: any number of
            windows of any size; this takes minutes if :func:`pads_by_size`.
    """
    any_size = torch.export.Dim.AUTO
    shapes = None if size else {"windows": {0: any_size, 2: any_size, 3: any_size}}
    windows = torch.zeros((1, 3, *size) if size else _TRACED, dtype=input_type)
    with torch.no_grad():
        return torch.export.export(model, (windows,), dynamic_shapes=shapes, strict=False)


def pads_by_size(model: nn.Module) -> bool:
    """Whether the padding of a layer depends on the image's size, as in timm's ``tf_`` models."""
    return any(type(layer).__name__.endswith("2dSame") for layer in model.modules())


def check_onnx_packages() -> None:
    """Raise UserError if a package of the extra "export" is missing."""
    absent = [name for name in _ONNX_NEEDS if find_spec(name) is None]
    if absent:
        raise UserError(f"ONNX needs {', '.join(absent)}: pip install 'tdos_d2[export]'")


def export_predictor(model: nn.Module, frame: tuple[int, int]) -> torch.export.ExportedProgram:
    """A ``PredictorModel`` as a torch.export program, for frames (H, W, 3) uint8 of one size."""
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
        program: from :func:`export_program` or :func:`export_predictor`.
        metadata: metadata of the file; values that are not strings are written as JSON.
        name: name of the input.
        outputs: names of the outputs; if the program has fewer outputs, the last names are used.
    """
    count = len(program.graph_signature.user_outputs)
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=[name],
        output_names=list(outputs[-count:]),
        optimize=False,  # takes minutes, and ONNX Runtime optimises on loading
        verbose=False,
    )
    made.model.metadata_props.update(
        {k: v if isinstance(v, str) else to_json(v, None) for k, v in metadata.items()}
    )
    return made.model_proto.SerializeToString()


def expected_outputs(
    model: nn.Module, inputs: Iterable[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """PyTorch's outputs of a module (with ``outputs``, their names) for each input.

    Raises:
        UserError: an output is not finite.
    """
    with torch.no_grad():
        results = [tuple(map(Tensor.numpy, model(torch.from_numpy(x)))) for x in inputs]
    for result in results:
        for name, values in zip(model.outputs, result, strict=True):
            check_finite(values, f"MODEL.WEIGHTS: {name} of the model")
    return results


def onnx_outputs(onnx: bytes, inputs: Iterable[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """ONNX Runtime's outputs for each input, on the CPU.

    Args:
        onnx: from :func:`to_onnx`.
        inputs: inputs of the model.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return [tuple(session.run(None, {given.name: values})) for values in inputs]


def largest_difference(
    found: Iterable[tuple[np.ndarray, ...]], expected: Iterable[tuple[np.ndarray, ...]]
) -> float:
    """Largest absolute difference in any output; for integer outputs, the share that differs.

    Returns:
        NaN where either is NaN.
    """
    differences = [
        np.abs(ours - theirs).max() if ours.dtype.kind == "f" else (ours != theirs).mean()
        for result, other in zip(found, expected, strict=True)
        for ours, theirs in zip(result, other, strict=True)
    ]
    return float(np.max(differences))  # unlike max(), keeps NaN
