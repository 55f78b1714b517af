"""What a model is made of: where its bytes and its arithmetic are, and what a provider makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp import registry
from onnxcomp.analysis.cost import costs
from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import UserError, quoted
from onnxcomp.ir import Edit, Model, ir
from onnxcomp.ir.ops import STANDARD_DOMAINS
from onnxcomp.ir.scopes import proto_graphs
from onnxcomp.ir.storage import attribute_tensors
from onnxcomp.passbase import QUIET
from onnxcomp.pipeline import Pipeline
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from onnxcomp.analysis.cost import NodeCost
    from onnxcomp.ir.model import Source
    from onnxcomp.model_diff import ModelDiff
    from onnxcomp.passbase import Progress
    from onnxcomp.signature import Signature

# Zeros are counted in pieces of this many elements, so that a mapped weight is never held whole.
_PIECE = 1 << 22


@dataclass(frozen=True)
class OperatorRow:
    """All nodes of one operator together.

    Attributes:
        operator: `Conv`, or `com.microsoft.FusedConv`.
        nodes: How many there are.
        weights: Bytes of weights whose first reader is such a node.
        flops: Arithmetic operations of those whose shapes are known, each node once.
        traffic: Bytes read and written by those.
        unknown: Nodes whose arithmetic is not known.
    """

    operator: str
    nodes: int
    weights: int
    flops: int
    traffic: int
    unknown: int


@dataclass(frozen=True)
class WeightRow:
    """All weights of one element type together; the share of zeros is over all elements."""

    dtype: str
    tensors: int
    elements: int
    bytes: int
    zeros: float


@dataclass(frozen=True)
class Fused:
    """The operators before and after a provider rewrote the graph.

    Attributes:
        provider: The execution provider.
        before: Nodes by operator as they came.
        after: Nodes by operator as they run.
        problem: Why the provider does not load the model, empty when it does.
    """

    provider: str
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What a model is made of.

    Attributes:
        signature: Inputs and outputs.
        header: IR version, operator sets, producer and the like.
        operators: By operator, those with most arithmetic first.
        weights: By element type, the largest first.
        scopes: Nodes of each graph: the main one, bodies, functions.
        foreign: Nodes by domain that is not ONNX's own.
        assumed: Sizes that were taken for open dimensions.
        fused: What providers make of it.
    """

    signature: Signature
    header: Mapping[str, Any]
    operators: tuple[OperatorRow, ...]
    weights: tuple[WeightRow, ...]
    scopes: tuple[tuple[str, int], ...]
    foreign: Mapping[str, int]
    assumed: Mapping[str, int]
    fused: tuple[Fused, ...] = ()

    @property
    def flops(self) -> int:
        """Arithmetic operations of the nodes whose shapes are known."""
        return sum(row.flops for row in self.operators)

    @property
    def unknown(self) -> int:
        """Nodes whose arithmetic is not known."""
        return sum(row.unknown for row in self.operators)


def inspect_model(
    model: Model,
    *,
    dims: Mapping[str, int] | None = None,
    sparsity: bool = True,
    progress: Progress = QUIET,
) -> Inspection:
    """Looks at a model without changing it.

    Args:
        model: The model.
        dims: Sizes for open dimensions, by symbol, or `input:axis` for one without a symbol. An open
            first dimension of an input that is not given counts as 1.
        sparsity: Whether to count zeros, for which all weights are read once.
        progress: Progress bars.

    Raises:
        UserError: If a dimension is given that no input has.
    """
    sized, assumed = sized_model(model, dict(dims or {}))
    foreign = Counter(node.domain for node in model.nodes() if node.domain not in STANDARD_DOMAINS)
    return Inspection(
        signature=model.signature(),
        header=header_of(model),
        operators=_operators(sized),
        weights=_weights(model, sparsity=sparsity, progress=progress),
        scopes=tuple((graph.name or "", sum(1 for _ in graph)) for graph in model.graphs()),
        foreign=dict(sorted(foreign.items())),
        assumed=assumed,
    )


def diff_models(before: Source, after: Source, *, progress: Progress = QUIET) -> ModelDiff:
    """Compares two models without running them, see `onnxcomp.model_diff`.

    Args:
        before: A model, or where it is.
        after: Another one.
        progress: Progress bars.

    Raises:
        UserError: If one of them cannot be read.
    """
    from onnxcomp import model_diff

    return model_diff.diff_models(before, after, progress=progress)


def fused_by(path: Path, provider: str) -> Fused:
    """Returns what a provider makes of a model."""
    from onnxcomp.ir.guard import read_structure
    from onnxcomp.runtime import optimized_model, require_provider

    require_provider(provider)
    before = _histogram(read_structure(path))
    try:
        with stage("asking the runtime for its graph; --no-fusions leaves that out"):
            after = optimized_model(path, provider=provider, weights=False)
    except UserError as error:
        return Fused(provider, before, problem=error.message)
    return Fused(provider, before, _histogram(after))


def _histogram(proto: Any) -> dict[str, int]:  # noqa: ANN401 - an onnx.ModelProto
    counts = Counter(
        _name(node.domain, node.op_type) for graph in proto_graphs(proto) for node in graph.node
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _name(domain: str, op_type: str) -> str:
    return op_type if domain in STANDARD_DOMAINS else f"{domain}.{op_type}"


def header_of(model: Model) -> dict[str, Any]:
    """Returns versions, operator sets, producer and the like."""
    core = model.core
    return {
        "graph": core.graph.name or "",
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": number for domain, number in model.opset_imports.items()},
        "producer": " ".join(filter(None, (core.producer_name, core.producer_version))),
        "domain": core.domain or "",
        "model_version": core.model_version or 0,
        "description": core.doc_string or "",
        "metadata": dict(core.metadata_props),
        "functions": len(core.functions),
        "external_data": model.external,
    }


def sized_model(model: Model, dims: dict[str, int]) -> tuple[Model, dict[str, int]]:
    """Returns a copy of the model with sizes for open dimensions, and those that were used."""
    model = model.copy()
    edit = Edit(model)
    used: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.is_initializer():
            continue
        shape: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            size: int | str | None = dim if isinstance(dim, int) else dim.value
            if not isinstance(size, int):
                size = _size_of(f"{value.name}:{axis}", size, axis, dims, used)
            shape.append(size)
        edit.set_type(value, shape=shape)
    unused = dims.keys() - used.keys()
    if unused:
        raise UserError(
            f"no input has an open dimension {quoted(min(unused))}", hint=_open_dims(model, used)
        )
    return model, used


def _size_of(
    place: str, symbol: str | None, axis: int, dims: dict[str, int], used: dict[str, int]
) -> int | str | None:
    for name in (place, symbol):
        if name is not None and name in dims:
            used[name] = dims[name]
            return dims[name]
    if axis == 0:
        used[symbol or place] = 1
        return 1
    return used.get(symbol or place, symbol)


def _open_dims(model: Model, used: Mapping[str, int]) -> str:
    open_ones = list(used)
    for spec in model.signature().inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, int):
                open_ones.append(dim or f"{spec.name}:{axis}")
    names = ", ".join(dict.fromkeys(quoted(name)[1:-1] for name in open_ones))
    return f"open are: {names}" if names else "all are fixed"


def _costs(model: Model) -> dict[ir.Node, NodeCost]:
    """Returns the cost of each node, with shapes that follow only when constants are folded.

    Exporters compute shapes in the graph, where inference loses them. Folding finds them, as all
    sizes of the inputs are numbers by now; what keeps its name through that keeps its shape.
    """
    shapes = Facts(model).get(Shapes())
    values = {
        value.name: value
        for node in model.graph
        for value in node.outputs
        if value.name and shapes.static(value) is None
    }
    if values:
        folded = folded_model(model)
        found = Facts(folded).get(Shapes())
        for node in folded.graph:
            for value in node.outputs:
                if value.name in values and (shape := found.static(value)) is not None:
                    shapes.record(values[value.name], found.dtype(value), shape)
    return costs(model, shapes)


def folded_model(model: Model) -> Model:
    """Returns the model with its constants folded, so that shapes follow that are computed in it."""
    if "fold-constants" not in registry.passes():
        return model
    return Pipeline.parse("fold-constants").run(model, on_failure="skip").model


def _operators(model: Model) -> tuple[OperatorRow, ...]:
    count: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    traffic: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for node, cost in _costs(model).items():
        name = _name(node.domain, node.op_type)
        count[name] += 1
        flops[name] += cost.flops or 0
        traffic[name] += (cost.bytes_read or 0) + (cost.bytes_written or 0)
        unknown[name] += cost.flops is None
    weights = _weights_by_reader(model)
    rows = [
        OperatorRow(name, count[name], weights[name], flops[name], traffic[name], unknown[name])
        for name in count
    ]
    return tuple(sorted(rows, key=lambda row: (-row.flops, -row.weights, -row.nodes, row.operator)))


def _weights_by_reader(model: Model) -> Counter[str]:
    found: Counter[str] = Counter()
    for value in model.initializers():
        reader = next((use.node for use in value.uses()), None)
        if reader is not None and value.const_value is not None:
            found[_name(reader.domain, reader.op_type)] += value.const_value.nbytes
    found["Constant"] += sum(tensor.nbytes for tensor in attribute_tensors(model))
    return found


def _weights(model: Model, *, sparsity: bool, progress: Progress) -> tuple[WeightRow, ...]:
    groups: dict[str, list[ir.TensorProtocol]] = {}
    for tensor in _tensors(model):
        groups.setdefault(tensor.dtype.name.lower(), []).append(tensor)
    rows = []
    total = sum(tensor.nbytes for group in groups.values() for tensor in group)
    with stage("counting zeros"), progress(total, "counting zeros") as task:
        for dtype, group in groups.items():
            elements = sum(tensor.size for tensor in group)
            zeros = 0
            for tensor in group:
                zeros += _zeros(tensor) if sparsity else 0
                task.advance(tensor.nbytes)
            size = sum(tensor.nbytes for tensor in group)
            share = zeros / elements if elements and sparsity else float("nan")
            rows.append(WeightRow(dtype, len(group), elements, size, share))
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.dtype)))


def _tensors(model: Model) -> Iterator[ir.TensorProtocol]:
    """Yields every tensor once, those that several values share too."""
    seen: set[int] = set()
    for value in model.initializers():
        tensor = value.const_value
        if tensor is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
    yield from attribute_tensors(model)


def _zeros(tensor: ir.TensorProtocol) -> int:
    if tensor.dtype == ir.DataType.STRING:
        return 0
    flat = tensor.numpy().reshape(-1)
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    return sum(int(np.count_nonzero(piece == 0)) for piece in pieces)
