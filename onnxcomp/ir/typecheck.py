"""Types of values, checked by the standard's own inference on a copy without weights.

This runs native code on the model: callers that must survive any file do it in a child process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, shape_inference

from onnxcomp.diagnostics import Diagnostic, Severity
from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir.fragile import make_inferable
from onnxcomp.ir.operators import ALWAYS_IMPORTED
from onnxcomp.ir.tensors import BITS, byte_count
from onnxcomp.ir.walk import scopes, tensors

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# Shapes, axes and repeats are read by inference and stay; nothing that is this large is one.
_STUB_ABOVE_BYTES = 1024
_STUB_LOCATION = "stub"
_OWN_FAULT = re.compile(r"\(op_type:MeanVarianceNormalization\b.*\(op_type:Constant\)")
_UNKNOWN = re.compile(r"expected to have type but instead is null")
# Inference knows nothing of what the node reads: ignorance, not a contradiction.
_IGNORANCE = re.compile(r"Input type is null")
_OPERATOR_AND_NODE = re.compile(r"\(op_type:\s*([^,)\s]+)(?:,\s*node name:\s*([^)]*))?\)")


def without_weights(model: ModelProto, above: int = _STUB_ABOVE_BYTES) -> ModelProto:
    """Returns a copy in which large tensors have a type and a shape but no bytes.

    The weights of the main graph are never copied, not even for a moment.
    """
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            _copy_graph(model, copy, above)
        elif field.name == "training_info":
            continue
        elif field.is_repeated:
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    for _, tensor in tensors(copy):
        if _is_large(tensor, above):
            _strip(tensor)
    return copy


def _copy_graph(model: ModelProto, copy: ModelProto, above: int) -> None:
    source, target = model.graph, copy.graph
    target.SetInParent()
    for field, value in source.ListFields():
        if field.name == "initializer":
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
    for tensor in source.initializer:
        if _is_large(tensor, above):
            stub = target.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            _strip(stub)
        else:
            target.initializer.append(tensor)


def _is_large(tensor: TensorProto, above: int) -> bool:
    external = tensor.data_location == TensorProto.EXTERNAL
    return tensor.data_type in BITS and (external or byte_count(tensor) > above)


def _strip(tensor: TensorProto) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(field)
    tensor.ClearField("uint64_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_STUB_LOCATION)


def check_types(model: ModelProto) -> tuple[Diagnostic, ...]:
    """Checks that types and shapes of a model do not contradict each other.

    `check_structure` comes first. A model with sparse initializers is not looked at: inference
    knows nothing of them and refuses valid models. Nor is one at which native code could die.

    Returns:
        A remark when shapes are declared that cannot be: the model runs all the same.

    Raises:
        ModelError: Some node cannot work on what it is given.
    """
    for scope in scopes(model):
        if scope.graph is not None and scope.graph.sparse_initializer:
            return ()
    stripped = without_weights(model)
    if not make_inferable(stripped):
        return ()
    for domain in ALWAYS_IMPORTED - {entry.domain for entry in stripped.opset_import}:
        stripped.opset_import.add(domain=domain, version=1)
    declared = _contradiction(stripped)
    if not declared:
        return ()
    for scope in scopes(stripped):
        if scope.graph is not None:
            _forget_shapes(scope.graph)
    actual = _contradiction(stripped)
    if actual:
        raise ModelError(f"the types of the model do not fit: {actual}")
    hint = "the declaration is ignored, as onnxruntime does"
    return (
        Diagnostic("MDL106", Severity.NOTE, f"a declared shape is wrong: {declared}", hint=hint),
    )


def _contradiction(model: ModelProto) -> str:
    """Returns what strict inference says against a model, or nothing."""
    try:
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return _explain(str(error))
    return ""


def _forget_shapes(graph: GraphProto) -> None:
    """Removes what is declared about shapes of computed values, and leaves element types."""
    for value in (*graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _explain(text: str) -> str:
    """Makes one line of what inference says: the first error, and the node it is at."""
    # The expansion that onnx 1.23 has for this operator is itself not valid; see its test_mvn.
    lines = [line.strip() for line in text.splitlines() if not _OWN_FAULT.search(line)]
    if len(lines) < len(text.splitlines()):
        # What reads its result then meets a value of which inference knows nothing.
        lines = [line for line in lines if not _UNKNOWN.search(line)]
    lines = [line for line in lines if not _IGNORANCE.search(line)]
    if not any(lines):
        return ""
    first = next((line for line in lines if "(op_type" in line or "rror" in line), text.strip())
    first = re.sub(r"\[[A-Za-z]*InferenceError\]\s*|Inference error\(s\):\s*", "", first).strip()
    match = _OPERATOR_AND_NODE.match(first)
    if match:
        operator, name = match.groups()
        place = f"{operator} {quoted(name)}" if name else operator
        first = f"{place}: {first[match.end() :].lstrip(': ')}"
    return quoted(first, 300)[1:-1]
