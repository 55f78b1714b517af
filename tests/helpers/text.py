"""Models from ONNX text, and a normal form in which two models can be compared by reading."""

from __future__ import annotations

import difflib
import hashlib
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
# Weights up to this size are written out in the normal form, larger ones as a digest.
LITERAL_ELEMENTS = 16


def model(text: str) -> ModelProto:
    """Parses ONNX text.

    A header is put before text that has none. Values declared between `<` and `>` without contents
    (`<float[3, 4] w>`) become initializers with contents seeded by their name, so that two texts
    share weights whatever their order.
    """
    text = text.strip()
    proto = onnx.parser.parse_model(text if text.startswith("<") else f"{HEADER}\n{text}")
    proto.producer_name = ""
    for graph in graphs(proto.graph):
        _fill(graph)
    return proto


def weight(name: str, dtype: int, shape: tuple[int, ...]) -> TensorProto:
    """Returns a tensor whose contents follow from its name."""
    rng = np.random.default_rng(crc32(name.encode()))
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    if dtype == TensorProto.STRING:
        raise ValueError(f"give string tensor {name} its contents")
    if kind.kind == "b":
        array = rng.integers(0, 2, shape).astype(bool)
    elif kind.kind in "iu":
        array = rng.integers(0, 8, shape).astype(kind)
    else:
        array = rng.normal(size=shape).astype(np.float32).astype(kind)
    return numpy_helper.from_array(array, name)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yields a graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                yield from graphs(inner)


def _fill(graph: GraphProto) -> None:
    made = {name for node in graph.node for name in node.output}
    made.update(value.name for value in (*graph.input, *graph.initializer))
    keep = []
    for info in graph.value_info:
        if info.name in made:
            keep.append(info)
            continue
        dims = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        graph.initializer.append(weight(info.name, info.type.tensor_type.elem_type, dims))
    del graph.value_info[:]
    graph.value_info.extend(keep)


def normal_form(proto: ModelProto) -> str:
    """Returns a text that is equal for models which differ in names and order of nodes only."""
    imports = sorted((entry.domain, entry.version) for entry in proto.opset_import)
    lines = [f"opsets {imports}", *_graph_lines(proto.graph, {}, _Counter())]
    for function in sorted(proto.functions, key=lambda f: (f.domain, f.name, f.overload)):
        lines.append(f"function {function.domain}::{function.name}:{function.overload}")
        names = {name: f"${index}" for index, name in enumerate(function.input)}
        names = {**names, "": "_"}
        lines += _node_lines(list(function.node), list(function.output), names, _Counter())
        lines.append(f"  returns {', '.join(names.get(n, n) for n in function.output)}")
    return "\n".join(lines)


def difference(first: ModelProto, second: ModelProto) -> str:
    """Returns a unified diff of the normal forms, empty when they are equal."""
    a, b = normal_form(first).splitlines(), normal_form(second).splitlines()
    return "\n".join(difflib.unified_diff(a, b, "expected", "got", lineterm="", n=30))


class _Counter:
    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> str:
        self.value += 1
        return f"%{self.value}"


def _graph_lines(
    graph: GraphProto, outer: dict[str, str], counter: _Counter, *, main: bool = True
) -> list[str]:
    names = {**outer, "": "_"}
    defaults = {tensor.name: tensor for tensor in graph.initializer}
    inputs = []
    for value in graph.input:
        names[value.name] = value.name if main else counter()
        default = f" = {_tensor(defaults[value.name])}" if value.name in defaults else ""
        inputs.append(f"{_type(value)} {names[value.name]}{default}")
    for name, tensor in defaults.items():
        if name not in {value.name for value in graph.input}:
            names[name] = _tensor(tensor)
    outputs = [value.name for value in graph.output]
    if main:
        interface = {n: n for n in outputs if n not in defaults}
        names.update({n: text for n, text in interface.items() if n not in names})
    lines = [f"  inputs {', '.join(inputs)}"]
    lines += _node_lines(list(graph.node), outputs, names, counter)
    for value in graph.output:
        kind = _type(value) if main else ""
        lines.append(f"  output {kind} {value.name if main else ''} <- {names[value.name]}")
    used = {name for node in _all_nodes(graph) for name in node.input} | set(outputs)
    inputs_set = {value.name for value in graph.input}
    unused = [t for n, t in defaults.items() if n not in used and n not in inputs_set]
    lines += sorted(f"  unused {_tensor(tensor)}" for tensor in unused)
    return lines


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for inner in graphs(graph):
        yield from inner.node


def _node_lines(
    nodes: list[NodeProto], outputs: list[str], names: dict[str, str], counter: _Counter
) -> list[str]:
    lines = []
    for node in _ordered(nodes, outputs):
        body: list[str] = []
        attributes = []
        for attr in sorted(node.attribute, key=lambda a: a.name):
            if attr.type == AttributeProto.GRAPH:
                inner = _graph_lines(attr.g, names, counter, main=False)
                body += [f"    {attr.name}:", *(f"    {line}" for line in inner)]
            else:
                attributes.append(f"{attr.name}={_attribute(attr)}")
        arguments = ", ".join(names.get(name, f"?{name}") for name in node.input)
        for name in node.output:
            if name and name not in names:
                names[name] = counter()
        results = ", ".join(names[name] if name else "_" for name in node.output)
        domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        overload = f":{node.overload}" if node.overload else ""
        options = f" <{', '.join(attributes)}>" if attributes else ""
        lines.append(f"  {results} = {domain}{node.op_type}{overload}{options}({arguments})")
        lines += body
    return lines


def _ordered(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """Nodes in the order in which the outputs need them; those that nobody needs come last."""
    makers = {name: node for node in nodes for name in node.output if name}
    done: dict[int, NodeProto] = {}
    for name in outputs:
        _visit(makers.get(name), makers, done)
    for node in nodes:
        _visit(node, makers, done)
    return list(done.values())


def _visit(
    node: NodeProto | None, makers: dict[str, NodeProto], done: dict[int, NodeProto]
) -> None:
    stack = [(node, False)]
    while stack:
        current, ready = stack.pop()
        if current is None or id(current) in done:
            continue
        if ready:
            done[id(current)] = current
            continue
        stack.append((current, True))
        stack.extend((makers[n], False) for n in reversed(_reads(current)) if n in makers)


def _reads(node: NodeProto) -> list[str]:
    names = list(node.input)
    for attr in node.attribute:
        for inner in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
            names += [name for inside in _all_nodes(inner) for name in inside.input]
            names += [value.name for value in inner.output]
    return [name for name in names if name]


def _attribute(attr: AttributeProto) -> str:
    if attr.ref_attr_name:
        return f"@{attr.ref_attr_name}"
    value = onnx.helper.get_attribute_value(attr)
    if isinstance(value, TensorProto):
        return _tensor(value)
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    return repr(list(value) if not isinstance(value, (int, float)) else value)


def _tensor(tensor: TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    kind = TensorProto.DataType.Name(tensor.data_type).lower()
    shape = ",".join(str(dim) for dim in tensor.dims)
    if array.size <= LITERAL_ELEMENTS:
        items = ", ".join(str(item) for item in array.reshape(-1).tolist())
        return f"{kind}[{shape}]{{{items}}}"
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
    return f"{kind}[{shape}]#{digest}"


def _type(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value"))
    tensor = value.type.tensor_type
    kind: str = TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return kind
    dims = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
        for d in tensor.shape.dim
    ]
    return f"{kind}[{','.join(dims)}]"
