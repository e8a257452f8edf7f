"""The count network as ONNX: one pass over spike counts, in any runtime.

    x → Conv → z → Floor(z · L/θ + …) → Clip(0, L) → counts · amplitude → Conv → …

A parallel network becomes a graph of real numbers; its neurons are products, floors and clips. A network in whole
numbers (`parspike.lower.integers`) becomes a quantised graph: weights are int8 (int16 beyond 8 bits) behind
`DequantizeLinear` with scale 1, biases int32, counts pass through `QuantizeLinear` to uint8 and back. Every number in
it is whole and below 2^24, so a runtime that adds float32 numbers in any order gives the bits of parspike's own run.
Where numbers go beyond 2^24, they are float64 in the file, below 2^53, behind weights that are integers still; its
convolutions are of float32, a few bits of the numbers at a time (`onnx_layers`).

The batch is free; other sizes are those of the example. Opset 21, which brought int16 to these operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from parspike.errors import UnsupportedError
from parspike.export.onnx_layers import LAYERS
from parspike.export.onnx_layout import LAYOUT
from parspike.export.onnx_model import Model, Rule, Written, onnx_package
from parspike.export.onnx_values import VALUES
from parspike.snn import SNN

__all__ = ["RULES", "Written", "load", "session", "write"]

RULES: Mapping[str, Rule] = LAYERS | LAYOUT | VALUES
"""By the operators of the graph."""


def write(snn: SNN) -> Written:
    """The ONNX model of a network of parallel neurons.

    Raises `UnsupportedError` that lists every operator and kind of neurons without a rule here.
    """
    whole = snn.provenance.get("lowered") == "integers"
    largest = snn.provenance.get("largest", 0)
    if any(i.dtype is torch.bfloat16 for i in snn.graph.inputs):
        raise UnsupportedError(
            "this network takes bfloat16, which runtimes of ONNX files are not given: export snn.float(), whose file "
            "takes float32"
        )
    graph = snn.graph.at_example("an exported file has one size of its inputs")
    made = Model(graph, snn.tensors(), snn.counting(), RULES, whole=whole, largest=largest)
    for node in graph.nodes:
        made.add(node)
    return made.finished()


def load(path: Path) -> Any:
    """The model of a file that `write` made."""
    return onnx_package().load(path, format="protobuf", load_external_data=False)


def session(model: Any, wanted: Sequence[str] = ()) -> Callable[[list[str], Mapping[str, Any]], list[Any]]:
    """run(names, inputs) → values of a model, by onnxruntime, or by onnx's own reference where that is not installed.
    wanted: names of values that are no outputs, and may be asked for too."""
    onnx = onnx_package()
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in wanted:
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference = ReferenceEvaluator(shown)
        return lambda names, feed: list(reference.run(names, dict(feed)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        engine = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(
            f"onnxruntime refuses the file ({(str(error).splitlines() or [type(error).__name__])[0]}): please report "
            "it, with the network"
        ) from error
    return lambda names, feed: list(engine.run(names, dict(feed)))
