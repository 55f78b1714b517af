"""What changed between two models: operators, weights, interface, versions; the largest differences first."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import ModelError, quoted
from onnxcomp.inspection import header_of
from onnxcomp.ir import Model, ir
from onnxcomp.ir.ops import STANDARD_DOMAINS, is_op
from onnxcomp.ir.storage import attribute_tensors
from onnxcomp.passbase import QUIET
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onnxcomp.ir.model import Source
    from onnxcomp.passbase import Progress, Task
    from onnxcomp.signature import TensorSpec

    Array = np.ndarray[Any, Any]

# Contents are compared in pieces of this many elements, so that mapped weights are never held whole.
_PIECE = 1 << 20
MAIN, BODIES = "main graph", "bodies of If, Loop and Scan"


@dataclass(frozen=True)
class OperatorChange:
    """Nodes of one operator in one scope, before and after.

    Attributes:
        scope: The main graph, the bodies in it, or a function; empty for all scopes together.
        operator: `Conv`, or `com.microsoft.FusedConv`.
        before: How many there were.
        after: How many there are.
    """

    scope: str
    operator: str
    before: int
    after: int

    @property
    def difference(self) -> int:
        """How many more there are."""
        return self.after - self.before


@dataclass(frozen=True)
class InterfaceChange:
    """An input or output that came, went or changed.

    Attributes:
        side: `input` or `output`.
        name: Its name.
        before: Type and shape before, None when it was not there.
        after: Type and shape after, None when it is gone.
    """

    side: str
    name: str
    before: TensorSpec | None
    after: TensorSpec | None


@dataclass(frozen=True)
class WeightChange:
    """A weight (initializer, or the output of a Constant) that is not the same as before.

    Attributes:
        change: `added`, `removed`, `renamed`, `retyped` (type or shape), `changed` (contents).
        name: Its name, the old one if it was renamed.
        before: Type and shape before, empty when it was not there.
        after: Type and shape after, empty when it is gone.
        bytes: How many bytes it takes more.
        size: Bytes of the larger one, by which changes are ranked.
        distance: For contents that changed, how far apart they are: the norm of the difference over that
            of the old contents; None where that says nothing.
        now: The new name if it was renamed.
    """

    change: str
    name: str
    before: str
    after: str
    bytes: int
    size: int
    distance: float | None = None
    now: str = ""


@dataclass(frozen=True)
class FunctionChange:
    """A local function that came, went or has other nodes; None where it is not there."""

    name: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class ModelDiff:
    """What changed between two models. Everything that is equal is left out, but for the totals.

    Attributes:
        totals: `nodes`, `parameters`, `weight_bytes`, and `quantized`, the share of parameters in types of
            8 bits and less; each before and after.
        header: What changed of versions, operator sets, producer, texts and metadata, before and after.
        interface: Inputs and outputs.
        order: Whether inputs or outputs that are in both are in another order.
        operators: By operator over all scopes.
        scopes: By operator and scope, if there is more than the main graph.
        weights: By name and contents.
        functions: Local functions.
    """

    totals: Mapping[str, tuple[float, float]]
    header: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    interface: tuple[InterfaceChange, ...] = ()
    order: bool = False
    operators: tuple[OperatorChange, ...] = ()
    scopes: tuple[OperatorChange, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    functions: tuple[FunctionChange, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing was found; connections of nodes and small attributes are not looked at."""
        found = (self.header, self.interface, self.operators, self.scopes, self.weights)
        return not any(found) and not self.functions and not self.order


def diff_models(before: Source, after: Source, *, progress: Progress = QUIET) -> ModelDiff:
    """Compares two models without running them; weights in external data are read in pieces.

    Args:
        before: A model, or where it is.
        after: Another one.
        progress: Progress bars.

    Raises:
        UserError: If one of them cannot be read.
    """
    old, new = Model.load(before), Model.load(after)
    old_counts, new_counts = _operators(old), _operators(new)
    old_totals, new_totals = _totals(old), _totals(new)
    scopes = _changes(old_counts, new_counts)
    names = {scope for scope, _ in (*old_counts, *new_counts)}
    return ModelDiff(
        totals={name: (value, new_totals[name]) for name, value in old_totals.items()},
        header=_header(old, new),
        interface=tuple(_interface(old, new)),
        order=_reordered(old, new),
        operators=_changes(_together(old_counts), _together(new_counts)),
        scopes=scopes if names - {MAIN} else (),
        weights=_weights(old, new, progress),
        functions=_functions(old, new),
    )


# -- structure ---------------------------------------------------------------------------------------


def _operators(model: Model) -> Counter[tuple[str, str]]:
    """Counts nodes by scope and operator."""
    functions = {function.graph: function for function in model.core.functions.values()}
    found: Counter[tuple[str, str]] = Counter()
    inside = ""
    for graph in model.graphs():
        if graph in functions:
            inside = f"function {functions[graph].domain}.{functions[graph].name}"
        scope = inside or (MAIN if graph is model.graph else BODIES)
        found.update((scope, _operator(node)) for node in graph)
    return found


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def _together(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (_, operator), number in counts.items():
        found["", operator] += number
    return found


def _changes(
    before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]
) -> tuple[OperatorChange, ...]:
    keys = dict.fromkeys((*before, *after))
    found = [OperatorChange(*key, before[key], after[key]) for key in keys]
    found = [row for row in found if row.difference]
    return tuple(sorted(found, key=lambda row: (-abs(row.difference), row.scope, row.operator)))


def _totals(model: Model) -> dict[str, float]:
    tensors = [*_tensors(model)]
    parameters = sum(tensor.size for tensor in tensors)
    small = sum(tensor.size for tensor in tensors if _is_quantized(tensor.dtype))
    return {
        "nodes": sum(1 for _ in model.nodes()),
        "parameters": parameters,
        "weight_bytes": sum(tensor.nbytes for tensor in tensors),
        "quantized": small / parameters if parameters else 0.0,
    }


def _tensors(model: Model) -> Iterator[ir.TensorProtocol]:
    for value in model.initializers():
        if value.const_value is not None:
            yield value.const_value
    yield from attribute_tensors(model)


def _is_quantized(dtype: ir.DataType) -> bool:
    if dtype in {ir.DataType.STRING, ir.DataType.BOOL, ir.DataType.UNDEFINED}:
        return False
    return dtype.bitwidth <= 8


def _header(old: Model, new: Model) -> dict[str, tuple[Any, Any]]:
    """What changed, with operator sets and metadata one by one."""
    flat = [_flat(header_of(model)) for model in (old, new)]
    keys = dict.fromkeys((*flat[0], *flat[1]))
    pairs = {key: (flat[0].get(key), flat[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in header.items():
        if name == "functions":
            continue
        if isinstance(value, dict):
            found |= {f"{name.removesuffix('s')} {key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


def _interface(old: Model, new: Model) -> Iterator[InterfaceChange]:
    for side in ("inputs", "outputs"):
        before = {spec.name: spec for spec in getattr(old.signature(), side)}
        after = {spec.name: spec for spec in getattr(new.signature(), side)}
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield InterfaceChange(side[:-1], name, before.get(name), after.get(name))


def _reordered(old: Model, new: Model) -> bool:
    for side in ("inputs", "outputs"):
        names = [[spec.name for spec in getattr(m.signature(), side)] for m in (old, new)]
        common = set(names[0]) & set(names[1])
        first, second = ([name for name in each if name in common] for each in names)
        if first != second:
            return True
    return False


def _functions(old: Model, new: Model) -> tuple[FunctionChange, ...]:
    before, after = (_by_function(model) for model in (old, new))
    found = [
        FunctionChange(name, _length(before, name), _length(after, name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    return tuple(
        sorted(found, key=lambda row: (-abs((row.after or 0) - (row.before or 0)), row.name))
    )


def _by_function(model: Model) -> dict[str, list[tuple[Any, ...]]]:
    return {
        f"{function.domain}.{function.name}": [
            (_operator(node), *(value.name if value else "" for value in node.inputs), node.name)
            for node in function
        ]
        for function in model.core.functions.values()
    }


def _length(functions: Mapping[str, Sequence[object]], name: str) -> int | None:
    return len(functions[name]) if name in functions else None


# -- weights -----------------------------------------------------------------------------------------


def _named(model: Model) -> dict[str, ir.TensorProtocol]:
    """Weights by name; of different scopes that use one name, the first keeps it alone."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in model.graphs():
        pairs = [(value.name, value.const_value) for value in graph.initializers.values()]
        for node in graph:
            if is_op(node, "Constant") and (attr := node.attributes.get("value")) is not None:
                tensor = None if attr.is_ref() else attr.as_tensor()
                pairs.append((node.outputs[0].name, tensor))
        for name, tensor in pairs:
            if tensor is not None:
                key, number = name or "", 2
                while key in found:
                    key, number = f"{name} ({number})", number + 1
                found[key] = tensor
    return found


def _weights(old: Model, new: Model, progress: Progress) -> tuple[WeightChange, ...]:
    before, after = _named(old), _named(new)
    common = [name for name in before if name in after]
    total = sum(before[name].nbytes for name in common)
    with stage("comparing weights"), progress(total, "comparing weights") as task:
        found = [
            change
            for name in common
            if (change := _changed(name, before[name], after[name], task)) is not None
        ]
        gone = {name: tensor for name, tensor in before.items() if name not in after}
        come = {name: tensor for name, tensor in after.items() if name not in before}
        found += _renamed(gone, come)
    found += [_one_sided("removed", name, tensor) for name, tensor in gone.items()]
    found += [_one_sided("added", name, tensor) for name, tensor in come.items()]
    return tuple(sorted(found, key=lambda row: (-row.size, row.change, row.name)))


def _one_sided(change: str, name: str, tensor: ir.TensorProtocol) -> WeightChange:
    kind, size = _kind(tensor), tensor.nbytes
    if change == "removed":
        return WeightChange(change, name, kind, "", -size, size)
    return WeightChange(change, name, "", kind, size, size)


def _kind(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.name.lower()}[{','.join(map(str, tensor.shape.numpy()))}]"


def _changed(
    name: str, before: ir.TensorProtocol, after: ir.TensorProtocol, task: Task
) -> WeightChange | None:
    kinds = _kind(before), _kind(after)
    more, size = after.nbytes - before.nbytes, max(before.nbytes, after.nbytes)
    if kinds[0] != kinds[1]:
        task.advance(before.nbytes)
        return WeightChange("retyped", name, *kinds, more, size)
    if _same_place(before, after):
        task.advance(before.nbytes)
        return None
    same, distance = _compared(before, after, task)
    return None if same else WeightChange("changed", name, *kinds, more, size, distance)


def _same_place(before: ir.TensorProtocol, after: ir.TensorProtocol) -> bool:
    """Whether both are the same bytes of the same file."""
    if not (isinstance(before, ir.ExternalTensor) and isinstance(after, ir.ExternalTensor)):
        return before is after
    return (before.path, before.offset or 0) == (after.path, after.offset or 0)


def _compared(
    before: ir.TensorProtocol, after: ir.TensorProtocol, task: Task
) -> tuple[bool, float | None]:
    """Returns whether contents are equal to the bit, and how far they are apart if not."""
    if before.dtype == ir.DataType.STRING:
        return _texts(before) == _texts(after), None
    same, apart, norm = True, 0.0, 0.0
    for one, other in zip(_pieces(before), _pieces(after), strict=True):
        task.advance(one.nbytes)
        if one.tobytes() != other.tobytes():
            same = False
        if one.dtype.kind in "fiu" or before.dtype.is_floating_point():
            first, second = one.astype(np.float64), other.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                apart += float(np.square(first - second).sum())
                norm += float(np.square(first).sum())
    if same or not norm or not math.isfinite(apart + norm):
        return same, None
    return False, math.sqrt(apart / norm)


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yields the elements in order; what lies in a file is read and not mapped, to be gone at once."""
    whole_bytes = tensor.dtype.bitwidth % 8 == 0 and sys.byteorder == "little"
    if isinstance(tensor, ir.ExternalTensor) and whole_bytes:
        yield from _read(tensor)
        return
    flat = tensor.numpy().reshape(-1)
    yield from (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _read(tensor: ir.ExternalTensor) -> Iterator[Array]:
    dtype = np.dtype(tensor.dtype.numpy())
    with Path(tensor.path).open("rb", buffering=0) as file:
        file.seek(tensor.offset or 0)
        for start in range(0, tensor.size, _PIECE):
            count = min(_PIECE, tensor.size - start)
            data = file.read(count * dtype.itemsize)
            if len(data) != count * dtype.itemsize:
                raise ModelError(f"{quoted(tensor.path, 200)} became shorter while it was read")
            yield np.frombuffer(data, dtype)


def _texts(tensor: ir.TensorProtocol) -> list[Any]:
    return list(tensor.string_data()) if isinstance(tensor, ir.StringTensor) else [tensor.tobytes()]


def _renamed(
    gone: dict[str, ir.TensorProtocol], come: dict[str, ir.TensorProtocol]
) -> list[WeightChange]:
    """Takes weights out of both that have the same contents under another name."""
    kinds = {_kind(tensor) for tensor in gone.values()} & {_kind(t) for t in come.values()}
    waiting: dict[tuple[str, bytes], list[str]] = {}
    for name, tensor in come.items():
        if _kind(tensor) in kinds:
            waiting.setdefault((_kind(tensor), _digest(tensor)), []).append(name)
    found = []
    for name, tensor in list(gone.items()):
        kind = _kind(tensor)
        names = waiting.get((kind, _digest(tensor))) if kind in kinds else None
        if names:
            now = names.pop(0)
            found.append(WeightChange("renamed", name, kind, kind, 0, tensor.nbytes, now=now))
            del gone[name], come[now]
    return found


def _digest(tensor: ir.TensorProtocol) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    if tensor.dtype == ir.DataType.STRING:
        for text in _texts(tensor):
            made.update(len(text).to_bytes(8, "little") + text)
        return made.digest()
    for piece in _pieces(tensor):
        made.update(piece.tobytes())
    return made.digest()
