"""Which version of ONNX's own operators holds in which scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnxcomp.ir import Model, ir


def scope_versions(model: Model) -> dict[ir.Graph, int]:
    """Returns the version of the standard operators for every scope: a function has its own."""
    found: dict[ir.Graph, int] = {}
    roots = [(model.graph, model.opset_imports)]
    roots += [(f.graph, f.opset_imports) for f in model.core.functions.values()]
    for root, imports in roots:
        version = _standard(imports) or model.opset
        for graph in nested(root):
            found[graph] = version
    return found


def _standard(imports: Mapping[str, int]) -> int:
    return imports.get("", imports.get("ai.onnx", 0))


def nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yields a graph and all graphs inside it, outer ones first."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        pending += [inner for node in current for inner in subgraphs(node)]
