"""Quantize an ONNX network: 8-bit activations, 7-bit weights, eight of which are stored in seven bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_PERCENTILE = 99.99  # of an activation's values that its 8 bits cover
_FEWEST_PACKED = 2048  # smaller weights save fewer bytes than their unpacking takes

# Weights w + 64 have 7 bits. `packed`, uint8 [7, n], holds 7 n of them in its lower bits and n in its highest bits.
_UNPACK = """
<domain: "resfit", opset_import: ["" : OPSET]>
unpack (packed, shape) => (weights) {
    lower_bits = Constant <value = uint8 {127}> ()
    seven = Constant <value = uint8 {7}> ()
    powers = Constant <value = uint8[1, 7] {1, 2, 4, 8, 16, 32, 64}> ()
    offset = Constant <value = int32 {64}> ()
    lower = BitwiseAnd (packed, lower_bits)
    first = Cast <to = 6> (lower)
    bits = BitShift <direction = "RIGHT"> (packed, seven)
    last = MatMulInteger (powers, bits)
    shifted = Concat <axis = 0> (first, last)
    flat = Sub (shifted, offset)
    bytes = Cast <to = 3> (flat)
    weights = Reshape (bytes, shape)
}
"""


def quantized(model: onnx.ModelProto, batches: Sequence[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """Return `model` quantized for ONNX Runtime; `batches` are inputs to find the activations' ranges with.

    The model is in ONNX's operators of version 18 or later. The activations of one batch are in memory at a time.

    x86-64 CPUs without VNNI add two products of 8 bits in 16 bits, which overflow if the weights have all 8
    (onnxruntime.ai, "Quantize ONNX models"): with 7 bits a file is right on them, too.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.part = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.part, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},  # a batch at a time
        )
        return with_packed_weights(onnx.load(file))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the quantization prints, and its advice on a preprocessing step that the graph does not need."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def with_packed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store eight weights in seven bytes. A session unpacks them once, as it folds constants."""
    from onnx import TensorProto, helper, numpy_helper, parser

    graph, unpacking = model.graph, []
    for tensor in list(graph.initializer):
        weights = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.INT8 or weights.size < _FEWEST_PACKED or weights.size % 8:
            continue
        packed, shape = f"{tensor.name}_packed", f"{tensor.name}_shape"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(pack(weights), packed))
        graph.initializer.append(numpy_helper.from_array(np.array(weights.shape), shape))
        unpacking.append(helper.make_node("unpack", [packed, shape], [tensor.name], domain="resfit"))
    if unpacking:
        nodes = (*unpacking, *graph.node)
        graph.ClearField("node")
        graph.node.extend(nodes)
        opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        model.functions.append(parser.parse_function(_UNPACK.replace("OPSET", str(opset))))
        model.opset_import.append(helper.make_opsetid("resfit", 1))
    return model


def pack(weights: np.ndarray) -> np.ndarray:
    """Return 8 n weights, int8 from -64 to 64, as uint8 [7, n]; 64, the largest weight of a filter, becomes 63."""
    assert np.abs(weights.astype(np.int16)).max() <= 64, "the weights have more than 7 bits"
    values = (weights.reshape(8, -1).clip(-64, 63).astype(np.int16) + 64).astype(np.uint8)
    bits: np.ndarray = values[7] >> np.arange(7, dtype=np.uint8)[:, None] & 1
    return values[:7] | bits << 7
