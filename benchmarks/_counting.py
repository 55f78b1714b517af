"""Weights and arithmetic of a model: one way to count them, whoever made it."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from _common import Feeds

Dims: TypeAlias = Sequence[int]

_NUMBERS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for each in node.attribute:
            if each.type == onnx.AttributeProto.GRAPH:
                yield from graphs(each.g)


def count_parameters(model: Path) -> int:
    """Numbers in weights and constants of all scopes; shapes, indices and masks are none."""
    proto = onnx.load(str(model), load_external_data=False)
    tensors = [t for graph in graphs(proto.graph) for t in _tensors(graph)]
    tensors += [t for function in proto.functions for t in _constants(function.node)]
    return sum(math.prod(t.dims) for t in tensors if t.data_type in _NUMBERS)


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [*graph.initializer, *_constants(graph.node)]


def _constants(nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
    return [
        each.t
        for n in nodes
        if n.op_type == "Constant"
        for each in n.attribute
        if each.name == "value"
    ]


def count_arithmetic(model: Path, feeds: Feeds) -> float:
    """Multiplications and additions of one run, of convolutions, products and recurrent layers.

    onnxruntime's profile says with which shapes each node ran, in bodies too and as often as it ran.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # A weight that a kernel keeps in a form of its own has no shape in the profile.
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return sum(arithmetic(event["args"]) for event in events if _is_kernel(event))


def _is_kernel(event: dict[str, Any]) -> bool:
    return event.get("cat") == "Node" and "output_type_shape" in event.get("args", {})


def arithmetic(ran: dict[str, Any]) -> float:
    """Operations of a node, from the shapes in its entry of the profile."""
    rule = _RULES.get(ran["op_name"])
    if rule is None:
        return 0.0
    shapes: list[list[Dims]] = [
        [next(iter(each.values()), []) for each in ran[key]]
        for key in ("input_type_shape", "output_type_shape")
    ]
    return 2.0 * rule(*shapes)


def _conv(inputs: list[Dims], outputs: list[Dims]) -> int:
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


def _conv_transpose(inputs: list[Dims], outputs: list[Dims]) -> int:
    del outputs
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matmul(inputs: list[Dims], outputs: list[Dims]) -> int:
    return math.prod(outputs[0]) * inputs[0][-1]


def _gemm(inputs: list[Dims], outputs: list[Dims]) -> int:
    # Whether it is transposed is not in the profile, but one side of the operand is the result's.
    return math.prod(inputs[0]) * outputs[0][-1]


def _recurrent(inputs: list[Dims], outputs: list[Dims]) -> int:
    del outputs
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


_RULES: dict[str, Callable[[list[Dims], list[Dims]], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}


def random_feeds(model: Path, seed: int = 0) -> Feeds:
    """Something that a network of ours can be run on."""
    generator = np.random.default_rng(seed)
    proto = onnx.load(str(model), load_external_data=False)
    made: Feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        drawn = generator.standard_normal(shape)
        made[value.name] = (
            np.abs(drawn * 20) if np.issubdtype(kind, np.integer) else drawn
        ).astype(kind)
    return made
