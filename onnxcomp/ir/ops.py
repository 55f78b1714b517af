"""Facts about operators and values that every pass asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np
from typing_extensions import override

from onnxcomp.ir.backend import ir

if TYPE_CHECKING:
    from collections.abc import Iterator

Default = TypeVar("Default")

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
_TENSOR = ir.AttributeType.TENSOR

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

# Marks in `Value.meta`, set when a model is loaded.
OVERRIDABLE = "onnxcomp.overridable"  # an initializer that the caller may replace at run time
PROTECTED = "onnxcomp.protected"  # an initializer that something outside the graph refers to

RELEASED = "onnxcomp.released"  # in `Graph.meta`: a body that went with the node that carried it

# Operators whose result differs from run to run, or that act beyond their outputs.
NONDETERMINISTIC = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})

# Exactly the operators that hand on their (first) input's elements: values kept, places may change.
REARRANGING = frozenset(
    {
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
    }
)


def standard_op(node: ir.Node) -> str | None:
    """Returns the operator's name when it is ONNX's own (`Conv`), None for every other domain."""
    return node.op_type if node.domain in STANDARD_DOMAINS else None


def is_op(node: ir.Node | None, *names: str) -> bool:
    """Whether a node is one of ONNX's own operators named."""
    return node is not None and node.domain in STANDARD_DOMAINS and node.op_type in names


def producer_of(value: ir.Value | None, *names: str) -> ir.Node | None:
    """Returns the node that makes a value if it is one of the standard operators named, else None."""
    node = None if value is None else value.producer()
    return node if is_op(node, *names) else None


def is_training(node: ir.Node) -> bool:
    """Whether a Dropout or BatchNormalization may behave as in training.

    Opset 12 gave Dropout a `training_mode` input, opset 14 gave BatchNormalization the attribute; before
    that (opset 7 to 13) a BatchNormalization with more than one output was the training form.
    """
    if is_op(node, "Dropout"):
        mode = node.inputs[2] if len(node.inputs) > 2 else None
        return mode is not None and not is_scalar(mode, 0)
    if is_op(node, "BatchNormalization"):
        used = sum(1 for value in node.outputs if value.name)
        return used > 1 or attribute(node, "training_mode", 0) != 0
    return False


def is_pure(node: ir.Node) -> bool:
    """Whether a node is a function of its inputs alone, so that equal calls may be merged or folded."""
    name = standard_op(node)
    if name is None or name in NONDETERMINISTIC or is_training(node):
        return False
    return all(is_pure(inner) for graph in subgraphs(node) for inner in graph)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the graphs that a node carries as attributes (bodies of If, Loop, Scan)."""
    # Asked of every node again and again: the plain dictionary, and types before anything else.
    for attr in node.attributes.data.values():
        kind = attr.type
        if kind is _GRAPH and not attr.is_ref():
            yield attr.as_graph()
        elif kind is _GRAPHS and not attr.is_ref():
            yield from attr.as_graphs()


@overload
def attribute(node: ir.Node, name: str) -> Any: ...  # noqa: ANN401
@overload
def attribute(node: ir.Node, name: str, default: Default) -> Default: ...
def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Returns an attribute as a plain Python value: int, float, str, tuple, tensor or graph.

    An attribute that refers to an attribute of the enclosing function has no value of its own; it
    comes back as `Unknown`, which compares equal to nothing, so that guards fail on it.
    """
    attr = node.attributes.get(name)
    if attr is None:
        return default
    return UNKNOWN if attr.is_ref() else attr.value


class Unknown:
    """The value of an attribute that only the caller of a function knows: equal to nothing."""

    @override
    def __eq__(self, other: object) -> bool:
        return False

    @override
    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        raise TypeError("the attribute's value depends on the caller of the function")


UNKNOWN = Unknown()


def has_reference_attribute(node: ir.Node) -> bool:
    """Whether some attribute of a node is bound by the enclosing function's caller."""
    return any(attr.is_ref() for attr in node.attributes.values())


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Returns the tensor of a value that is the same in every run, else None.

    That is an initializer which no caller can override, or the output of a Constant node with a dense
    tensor. An initializer which is also a graph input is a default, not a constant (IR version 4 on).
    """
    if value is None:
        return None
    if value.is_initializer():
        overridable = OVERRIDABLE in value.meta or PROTECTED in value.meta
        return None if overridable else value.const_value
    node = value.producer()
    if not is_op(node, "Constant") or node is None:
        return None
    return _constant_tensor(node)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attr in node.attributes.items():
        if attr.is_ref():
            return None
        if name == "value":
            # Not as_tensor(): it checks a protocol member by member, each time.
            return cast("ir.TensorProtocol", attr.value) if attr.type is _TENSOR else None
        if name in {"value_int", "value_ints"}:
            return ir.tensor(np.asarray(attr.value, np.int64))
        if name in {"value_float", "value_floats"}:
            return ir.tensor(np.asarray(attr.value, np.float32))
        if name == "value_string":
            return ir.StringTensor([attr.as_string().encode()], shape=ir.Shape(()))
        if name == "value_strings":
            strings = [text.encode() for text in attr.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape((len(strings),)))
    return None


def array(value: ir.Value | None, *, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """Returns the numpy array of a constant value, None when it is not constant.

    Args:
        value: The value asked about.
        limit: Elements above which None is returned as well, so that a guard never loads a weight.
    """
    tensor = constant(value)
    if tensor is None or (limit is not None and tensor.size > limit):
        return None
    return tensor.numpy()


def integers(value: ir.Value | None) -> list[int] | None:
    """Returns a small constant integer tensor (axes, shape, pads) as a list, None when not constant."""
    found = array(value, limit=1024)
    if found is None or found.dtype.kind not in "iu":
        return None
    return [int(item) for item in found.reshape(-1)]


def is_scalar(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant with one element that equals a number exactly."""
    found = array(value, limit=1)
    return found is not None and found.size == 1 and bool((found == number).all())


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Returns an input, None when it is left out (short list, empty name)."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_interface(value: ir.Value) -> bool:
    """Whether a value's name belongs to the interface of its graph (input or output)."""
    return value.is_graph_input() or value.is_graph_output()


def bit_width(dtype: ir.DataType | None) -> int:
    """Returns the bits of an element; texts count as eight letters, an unknown type as nothing."""
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return 0
    return 64 if dtype == ir.DataType.STRING else dtype.bitwidth


def following(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    """Returns the node after this one; onnx-ir keeps nodes in a linked list but has no public neighbour."""
    box = graph._nodes._value_ids_to_boxes[id(node)].next
    found: ir.Node | None = box.value
    return found


def single_use(value: ir.Value) -> ir.Node | None:
    """Returns the only node that reads a value once; None when there are more uses or it is an output."""
    if use_count(value) != 1 or value.is_graph_output():
        return None
    return next(iter(value.uses())).node


def use_count(value: ir.Value) -> int:
    """Returns how often nodes read a value; `value.uses()` copies what may be thousands of uses."""
    return len(value._uses)


def is_read(value: ir.Value) -> bool:
    """Returns whether some node reads a value, or it leaves the graph."""
    return use_count(value) > 0 or value.is_graph_output()
