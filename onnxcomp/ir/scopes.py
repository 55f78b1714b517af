"""Walking every scope of a model in one fixed order, in the IR and in the protobuf alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnxcomp.ir.backend import ir


def ir_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yields the main graph, function bodies, and every graph nested in them, outer before inner."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    stack = list(reversed(roots))
    while stack:
        graph = stack.pop()
        yield graph
        inner = [body for node in graph for body in subgraphs(node)]
        stack.extend(reversed(inner))


def proto_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yields the scopes of a protobuf in the order of `ir_graphs`."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [*reversed(model.functions), model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        inner = [body for node in graph.node for body in proto_subgraphs(node)]
        stack.extend(reversed(inner))


def proto_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yields the graphs that a protobuf node carries as attributes."""
    for attr in node.attribute:
        if attr.type == onnx.AttributeProto.GRAPH and not attr.ref_attr_name:
            yield attr.g
        elif attr.type == onnx.AttributeProto.GRAPHS:
            yield from attr.graphs


def proto_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every dense tensor: initializers and attributes of all scopes."""
    for graph in proto_graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.TENSOR:
                yield attr.t
            elif attr.type == onnx.AttributeProto.TENSORS:
                yield from attr.tensors
