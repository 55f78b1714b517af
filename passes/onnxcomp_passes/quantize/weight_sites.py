"""Which weights of a model can be stored in few bits, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Literal

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, is_op
from onnxcomp_passes.simplify.scopes import nested

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnxcomp.ir import Model

# How a reader sees the weight: a matrix of K rows, one of K columns, a table of rows, anything else.
Kind = Literal["columns", "rows", "table", "other"]
Orientation = Literal["columns", "rows"]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, eq=False)
class Use:
    """One reader of a weight.

    Attributes:
        node: The node; behind a Transpose of the weight, the MatMul that reads that.
        index: Which input of `node` it is.
        kind: What the weight is to it.
        transpose: The Transpose in between.
    """

    node: ir.Node
    index: int
    kind: Kind
    transpose: ir.Node | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """A weight with everything that reads it.

    Attributes:
        value: The weight: an initializer, or the output of a Constant node.
        tensor: Its contents, which may lie on disk.
        uses: Its readers.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.tensor.shape.numpy())

    @property
    def kinds(self) -> frozenset[Kind]:
        """What it is to its readers."""
        return frozenset(use.kind for use in self.uses)

    @property
    def is_matrix(self) -> bool:
        """Whether every reader multiplies rows with it, so that the provider can keep it packed."""
        return self.kinds in ({"columns"}, {"rows"})

    @property
    def is_table(self) -> bool:
        """Whether every reader picks rows of it."""
        return self.kinds == {"table"}

    @property
    def is_tied(self) -> bool:
        """Whether it is a table and a matrix: an embedding that is the last layer too."""
        return self.kinds == {"table", "rows"}

    @property
    def orientation(self) -> Orientation:
        """Whether one output of a layer is a column of the weight, or a row (the first axis)."""
        if self.kinds == {"columns"}:
            return "columns"
        stacked = all(is_op(use.node, "MatMul") and use.index == 1 for use in self.uses)
        return "columns" if stacked and self.kinds == {"other"} else "rows"

    @property
    def depth(self) -> int:
        """Numbers that share an output, which scales are taken along."""
        if self.orientation == "columns":
            return self.shape[-2]
        return prod(self.shape[self.leading :])

    @property
    def leading(self) -> int:
        """Axes in front that number the outputs, where an output is not a column."""
        kernel = any(is_op(use.node, "Conv", "ConvTranspose") for use in self.uses)
        return 1 if kernel else len(self.shape) - 1


def find_sites(
    model: Model, operators: Iterable[str], smallest: int
) -> tuple[list[Site], list[ir.Value]]:
    """Returns the weights that may be stored in few bits, and those that something else reads too.

    Weights in local functions are not looked at.

    Args:
        model: The model.
        operators: Operators whose weights are wanted; every reader has to be one of them.
        smallest: Elements below which a weight is not worth it.
    """
    wanted = frozenset(operators)
    sites, refused = [], []
    for value, tensor in _weights(model):
        if tensor.dtype not in FLOATS or tensor.size < max(smallest, 1):
            continue
        shape = tuple(tensor.shape.numpy())
        uses = tuple(_uses(value, shape))
        known = [is_op(use.node, *wanted) for use in uses]
        if not any(known):
            continue
        if not all(known) or value.is_graph_output() or len(shape) < 2:
            refused.append(value)
            continue
        sites.append(Site(value, tensor, uses))
    return sites, refused


def chosen(site: Site, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits the weight's name, or that of a reader or its output."""
    names = [site.name]
    for use in site.uses:
        names += [use.node.name or "", *(value.name or "" for value in use.node.outputs)]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _weights(model: Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in nested(model.graph):
        constants = [node.outputs[0] for node in graph if is_op(node, "Constant")]
        for value in (*graph.initializers.values(), *constants):
            tensor = constant(value)
            if tensor is not None:
                yield value, tensor


def _uses(value: ir.Value, shape: tuple[int, ...]) -> Iterator[Use]:
    for usage in value.uses():
        node, index = usage.node, usage.idx
        behind = _behind_transpose(node) if len(shape) == 2 else []
        if behind:
            yield from (Use(reader, 1, "rows", node) for reader in behind)
        else:
            yield Use(node, index, _kind(node, index, shape))


def _behind_transpose(node: ir.Node) -> list[ir.Node]:
    """Returns the MatMuls behind a Transpose of a weight, when nothing else reads it."""
    if not is_op(node, "Transpose") or node.outputs[0].is_graph_output():
        return []
    if tuple(attribute(node, "perm", (1, 0))) != (1, 0):
        return []
    usages = node.outputs[0].uses()
    fits = all(is_op(usage.node, "MatMul") and usage.idx == 1 for usage in usages)
    return [usage.node for usage in usages] if fits else []


def _kind(node: ir.Node, index: int, shape: tuple[int, ...]) -> Kind:
    if len(shape) != 2 or any(attr.is_ref() for attr in node.attributes.values()):
        return "other"
    if is_op(node, "MatMul") and index == 1:
        return "columns"
    if is_op(node, "Gemm") and index == 1 and _is_plain(node, shape):
        return "rows" if attribute(node, "transB", 0) else "columns"
    if is_op(node, "Gather") and index == 0 and attribute(node, "axis", 0) in (0, -2):
        return "table"
    return "other"


def _is_plain(gemm: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a Gemm is a product and a bias for each column, which onnxruntime has one kernel for."""
    if attribute(gemm, "transA", 0) != 0:
        return False
    if (attribute(gemm, "alpha", 1.0), attribute(gemm, "beta", 1.0)) != (1.0, 1.0):
        return False
    bias = input_at(gemm, 2)
    if bias is None:
        return True
    columns = shape[0 if attribute(gemm, "transB", 0) else 1]
    return bias.shape is not None and tuple(bias.shape) == (columns,)
