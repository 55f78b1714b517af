"""Units of channels replaced by what they are on average: what that costs the outputs, and doing it for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from onnxcomp.ir import Edit, ir
from onnxcomp.ir.ops import array, attribute, input_at, is_op, single_use
from onnxcomp.quant.readers import layer_of
from onnxcomp.quant.rounded import put_constant
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.support.folding import add_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.prune.support.ends import End
    from onnxcomp_passes.prune.support.removal import Removal

Array = np.ndarray[Any, Any]

_ROWS = 1024
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over units.

    Attributes:
        end: The layer, and where the units are in what it reads.
        layer: The same as a product with a matrix.
        means: (groups, depth) what it multiplies with its weight, on average.
        changes: [units] how much what each unit adds changes, as a share of all changes.
    """

    end: End
    layer: Layer
    means: Array
    changes: Array

    @property
    def node(self) -> ir.Node:
        """The layer."""
        return self.end.node

    @property
    def axis(self) -> int:
        """The axis of outputs in what the layer gives."""
        return 1 if is_op(self.node, "Conv") else -1

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return self.layer.groups * self.layer.outputs

    def share(self, gone: Array) -> Array:
        """Returns what units add to each output, on average.

        Args:
            gone: [units] True for those that count.
        """
        layer = self.layer
        picked = np.zeros((layer.groups * layer.depth // _taps(self.end, layer), 1), bool)
        picked[self.end.places[gone].reshape(-1)] = True
        rows = np.broadcast_to(picked, (len(picked), _taps(self.end, layer))).reshape(
            self.means.shape
        )
        weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)
        sums: Array = np.where(rows, self.means, 0.0)[:, None] @ weight
        return sums.reshape(-1)


def _taps(end: End, layer: Layer) -> int:
    """How many places of a window there are for each position that units run through."""
    return layer.depth // layer.shape[end.other[1]]


def find_layer(end: End) -> Layer | None:
    """Returns the layer that an end is, None for one whose output has no place for a constant."""
    if not is_op(end.node, "Conv", "Gemm", "MatMul") or not end.has_weight:
        return None
    layer = layer_of(end.node)
    if layer is None or layer.source is not end.source[0] or layer.weight is not end.other[0]:
        return None
    if is_op(end.node, "MatMul"):
        return layer if layer.index == 1 and layer.groups == 1 else None
    bias = input_at(end.node, 2)
    scaled = attribute(end.node, "alpha", 1.0) != 1 or attribute(end.node, "beta", 1.0) != 1
    return None if scaled or (bias is not None and array(bias) is None) else layer


def find_readers(
    model: Model, ends: Iterable[End], samples: Sequence[Mapping[str, Array]], threads: int
) -> dict[End, Reader]:
    """Returns for ends that are layers what units add to them on samples.

    Args:
        model: The model.
        ends: Where units end.
        samples: Feeds.
        threads: Threads of the session.
    """
    layers = {end: layer for end in ends if (layer := find_layer(end)) is not None}
    rows = _collect(model, list(dict.fromkeys(layers.values())), samples, threads)
    return {
        end: _reader(end, layer, rows[layer.node])
        for end, layer in layers.items()
        if layer.node in rows and np.isfinite(rows[layer.node].squares).all()
    }


def why_none(ends: Sequence[End], known: Mapping[End, Reader]) -> str:
    """Returns why units cannot be replaced by their mean where they end; nothing where they can.

    Args:
        ends: Where they end.
        known: What `find_readers` returned.
    """
    if not ends or any(find_layer(end) is None for end in ends):
        return "what reads them has no place for a constant in its output"
    if any(end not in known for end in ends):
        return "what they carry on the samples is NaN or infinite, or cannot be seen"
    return ""


@dataclass(eq=False)
class _Rows:
    """Sums over what a layer multiplies, as (groups, depth)."""

    total: Array
    squares: Array
    count: int = 0

    def add(self, rows: Array) -> None:
        """Takes in (groups, rows, depth)."""
        self.total += rows.sum(axis=1, dtype=np.float64)
        self.squares += np.square(rows, dtype=np.float64).sum(axis=1)
        self.count += rows.shape[1]


def _collect(
    model: Model, layers: Sequence[Layer], samples: Sequence[Mapping[str, Array]], threads: int
) -> dict[ir.Node, _Rows]:
    fed = {spec.name for spec in model.signature().inputs}
    names = list(dict.fromkeys(layer.source.name or "" for layer in layers))
    tapped = [name for name in names if name not in fed]
    found: dict[ir.Node, _Rows] = {}
    with Session.open(model, threads=threads, outputs=tapped) as session:
        for feeds in samples:
            values = {**feeds, **(session.run(feeds, tapped) if tapped else {})}
            for layer in layers:
                source = values.get(layer.source.name or "")
                for rows in layer.rows.pieces(source, _ROWS) if _is_full(source) else ():
                    empty = np.zeros((layer.groups, layer.depth))
                    found.setdefault(layer.node, _Rows(empty, empty.copy())).add(rows)
    return {node: rows for node, rows in found.items() if rows.count}


def _is_full(value: Any) -> TypeGuard[Array]:  # noqa: ANN401 - what a session gives
    return isinstance(value, np.ndarray) and value.size > 0


def _reader(end: End, layer: Layer, rows: _Rows) -> Reader:
    weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)
    means = rows.total / rows.count
    variances = np.maximum(rows.squares / rows.count - means**2, 0.0)
    strengths = np.square(weight, dtype=np.float64).sum(2)
    changes = (variances * strengths).reshape(-1, _taps(end, layer)).sum(1)
    each = changes[end.places].sum(axis=1) / max(float(changes.sum()), _TINY)
    return Reader(end, layer, means, each)


@dataclass(eq=False)
class Ablation:
    """A copy of a model in which units can be replaced by their mean, and what it gives without that.

    A unit that is replaced is 0 for those who read it, and what it adds on average is added to what they
    give: what `add_shares` makes of the model.

    Attributes:
        session: The copy, loaded.
        samples: Feeds.
        open: What its gates are fed with when no unit is replaced.
    """

    session: Session
    samples: Sequence[Mapping[str, Array]]
    open: dict[str, Array]
    _keeps: list[tuple[int, Array, str]]
    _offsets: list[tuple[int, Reader, str]]
    _wanted: list[dict[str, Array]] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        ctx: Context,
        shapes: ShapeMap,
        groups: Mapping[int, Sequence[Reader]],
        samples: Sequence[Mapping[str, Array]],
    ) -> Self:
        """Builds and loads the copy.

        Args:
            ctx: The pass.
            shapes: Shapes of the model.
            groups: The readers of units, by a number for each group.
            samples: Feeds.
        """
        copy = ctx.model.copy()
        twins = dict(zip(ctx.model.graph, copy.graph, strict=True))
        gates = _Gates(Edit(copy), copy, shapes, twins)
        for index, readers in groups.items():
            for reader in readers:
                gates.add(index, reader)
        session = Session.open(copy, threads=ctx.threads)
        made = cls(session, samples, gates.open, gates.keeps, gates.offsets)
        made._wanted = [made._run(feeds, {}) for feeds in samples]
        return made

    def _run(self, feeds: Mapping[str, Array], states: Mapping[str, Array]) -> dict[str, Array]:
        given = self.session.run({**feeds, **self.open, **states})
        return {
            name: value.astype(np.float64)
            for name, value in given.items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
        }

    def noise(self, gone: Mapping[int, Array]) -> float:
        """Returns the power of what changes, as a share of that of the outputs; the mean over samples.

        Args:
            gone: For groups the units that are replaced.
        """
        states = self._states(gone)
        shares = []
        for feeds, wanted in zip(self.samples, self._wanted, strict=True):
            given = self._run(feeds, states)
            shares += [_lost(value, given.get(name)) for name, value in wanted.items()]
        found = float(np.mean(shares)) if shares else np.inf
        return found if np.isfinite(found) else np.inf

    def _states(self, gone: Mapping[int, Array]) -> dict[str, Array]:
        states: dict[str, Array] = {}
        for index, places, name in self._keeps:
            if index in gone and gone[index].any():
                states.setdefault(name, self.open[name].copy())
                states[name].reshape(-1)[places[gone[index]].reshape(-1)] = 0
        for index, reader, name in self._offsets:
            if index in gone and gone[index].any():
                states.setdefault(name, self.open[name].copy())
                total = reader.share(gone[index])
                states[name] += total.reshape(states[name].shape).astype(states[name].dtype)
        return states


def _lost(wanted: Array, given: Array | None) -> float:
    """Returns the power of what differs, as a share; what is no number at first does not count."""
    if given is None or given.shape != wanted.shape:
        return np.inf
    known = np.isfinite(wanted)
    power = float(np.square(wanted[known]).sum())
    return float(np.square(given[known] - wanted[known]).sum()) / max(power, _TINY)


@dataclass(eq=False)
class _Gates:
    """Puts gates into a copy of a model."""

    edit: Edit
    model: Model
    shapes: ShapeMap
    twins: Mapping[ir.Node, ir.Node]
    open: dict[str, Array] = field(default_factory=dict)
    keeps: list[tuple[int, Array, str]] = field(default_factory=list)
    offsets: list[tuple[int, Reader, str]] = field(default_factory=list)
    _gates: dict[tuple[ir.Node, int], ir.Value] = field(default_factory=dict)
    _added: dict[ir.Node, ir.Value] = field(default_factory=dict)

    def add(self, index: int, reader: Reader) -> None:
        """Makes the units of a group replaceable before one of their readers."""
        value, axis = reader.end.source
        twin = self.twins[reader.node]
        place = next(i for i, each in enumerate(reader.node.inputs) if each is value)
        if (twin, place) not in self._gates:
            gate = self._input("keep", np.ones(self._lie(value, axis)), value)
            product = self.edit.insert("Mul", [twin.inputs[place], gate], before=twin)
            self.edit.set_input(twin, place, product.outputs[0])
            self._gates[twin, place] = gate
        self.keeps.append((index, reader.end.places, self._gates[twin, place].name or ""))
        output = reader.node.outputs[0]
        if twin not in self._added:
            zeros = np.zeros((reader.outputs, *(1,) * self._behind(reader)))
            offset = self._input("offset", zeros, output)
            made = twin.outputs[0]
            added = self.edit.insert("Add", [], after=twin, like=made)
            self.edit.replace(made, added.outputs[0])
            self.edit.set_input(added, 0, made)
            self.edit.set_input(added, 1, offset)
            self._added[twin] = offset
        self.offsets.append((index, reader, self._added[twin].name or ""))

    def _behind(self, reader: Reader) -> int:
        rank = self.shapes.rank(reader.node.outputs[0]) or 1
        return rank - 2 if reader.axis == 1 else 0

    def _lie(self, value: ir.Value, axis: int) -> tuple[int, ...]:
        shape = self.shapes.shape(value) or ()
        size = shape[axis]
        return (size if isinstance(size, int) else 1, *(1,) * (len(shape) - axis - 1))

    def _input(self, wish: str, start: Array, like: ir.Value) -> ir.Value:
        dtype = self.shapes.dtype(like) or ir.DataType.FLOAT
        name = self.edit.fresh(wish)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(start.shape))
        self.model.graph.inputs.append(value)
        self.open[name] = start.astype(dtype.numpy())
        return value


def shares_of(
    groups: Mapping[int, Sequence[Reader]], gone: Mapping[int, Array]
) -> dict[ir.Node, Array]:
    """Returns what units add on average to those who read them; to be asked before they are removed.

    Args:
        groups: The readers of units, by a number for each group.
        gone: For groups the units that are removed.
    """
    totals: dict[ir.Node, Array] = {}
    for index, readers in groups.items():
        for reader in readers if index in gone and gone[index].any() else ():
            totals[reader.node] = totals.get(reader.node, 0.0) + reader.share(gone[index])
    return totals


def add_shares(
    ctx: Context, shapes: ShapeMap, removal: Removal, shares: Mapping[ir.Node, Array]
) -> None:
    """Adds what units were on average to those who read them.

    Args:
        ctx: The pass.
        shapes: Shapes before the removal.
        removal: What was removed.
        shares: What `shares_of` returned.
    """
    for node, share in shares.items():
        if not _joins_sum(ctx, removal, node, share):
            add_share(ctx, node, share, removal, shapes.dtype(node.outputs[0]))


def _joins_sum(ctx: Context, removal: Removal, node: ir.Node, share: Array) -> bool:
    """Adds numbers to the bias that follows a MatMul; whether there is one."""
    output = node.outputs[0]
    add = single_use(output) if is_op(node, "MatMul") else None
    if add is None or not is_op(add, "Add") or add.graph is not node.graph:
        return False
    index = 0 if add.inputs[1] is output else 1
    bias = array(add.inputs[index])
    kept = removal.kept(output, removal.rank(output) - 1)
    left = share if kept is None else share[kept]
    if bias is None or bias.shape != left.shape:
        return False
    put_constant(ctx.edit, add, index, (bias + left).astype(bias.dtype))
    return True
