"""Conversion of an exported model to OpenVINO's format (IR), and quantisation to INT8 by NNCF."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..evaluation.tables import to_json
from ..files import atomic_write

if TYPE_CHECKING:
    import openvino

# Products take most of the time; quantising other operators costs accuracy and gains no speed.
_QUANTISED = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
# Otherwise the plugin chooses the precision by the processor: bfloat16 where it is supported.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def check_openvino_packages(*, int8: bool = False) -> None:
    """Raise UserError if a package of the extra "openvino" is missing."""
    needed = ["openvino", *(["nncf"] if int8 else [])]
    absent = [name for name in needed if find_spec(name) is None]
    if absent:
        raise UserError(f"OpenVINO needs {', '.join(absent)}: pip install 'tdos_d2[openvino]'")


def to_openvino(onnx: bytes, metadata: Mapping[str, Any]) -> openvino.Model:
    """An ONNX model as OpenVINO's, FP32, with the metadata as ``rt_info`` below "tdos"."""
    import openvino

    model = openvino.Core().read_model(onnx)
    for key, value in metadata.items():
        model.set_rt_info(value if isinstance(value, str) else to_json(value, None), ["tdos", key])
    return model


def quantise(model: openvino.Model, inputs: Sequence[np.ndarray]) -> openvino.Model:
    """The model with convolutions and matrix products in INT8, calibrated on ``inputs``.

    Args:
        model: from :func:`to_openvino`.
        inputs: inputs of the model that are representative of its later use.
    """
    import nncf

    others = {op.get_type_name() for op in model.get_ordered_ops()} - _QUANTISED
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
    )


def save_openvino(model: openvino.Model, output: Path) -> int:
    """Write ``output`` (.xml) and uncompressed weights (.bin) beside it; returns the size in bytes.

    Each file is written completely or not at all.
    """
    import openvino

    total = 0
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        openvino.save_model(model, made, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            content = made.with_suffix(suffix).read_bytes()
            with atomic_write(output.with_suffix(suffix)) as file:
                file.write(content)
            total += len(content)
    return total


def openvino_outputs(
    model: openvino.Model, inputs: Iterable[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """The model's outputs for each input, on the CPU, in FP32."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", EXACT)
    return [tuple(np.array(x) for x in compiled(values).values()) for values in inputs]
