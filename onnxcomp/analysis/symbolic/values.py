"""What is known of sizes and of shape vectors before the model runs: `Shape -> Gather -> Concat`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import dims, sizes, vectors
from onnxcomp.analysis.symbolic.contents import contents
from onnxcomp.analysis.symbolic.foreign import DOMAIN, derived_foreign
from onnxcomp.analysis.symbolic.vectors import INTEGERS, MAX_ITEMS, Vector
from onnxcomp.ir.ops import constant, is_op, standard_op, subgraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Known, Sizes
    from onnxcomp.ir import ir
    from onnxcomp.signature import Shape

# Names of sizes that were not declared begin with a character that no symbol begins with.
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_MAX_RANK = 64
# Inference takes symbols for equal that are not: what a Reshape makes of a symbol that is 0 is another
# size, and a Concat takes operands without elements whatever their other dimensions are.
_UNTRUSTED = frozenset({"Reshape", "Concat"})
# How many nodes in a row a pass puts in the place of others.
_MAX_NEW = 16
# How often the sizes that a Loop carries are taken to be less known than they came.
_ROUNDS = 4
# Loops within loops deeper than this are looked at once: each level doubles the work or more.
_NESTED = 3

Inferred = tuple["ir.DataType | None", "Shape | None"]


class PartialValues:
    """Sizes of all values and contents of small integer tensors, found in one sweep over a model.

    Every dimension of a value whose rank is known is an expression. What nothing is known of is a
    size of its own. A symbol is a size when a single dimension of the inputs is declared with it:
    when two are, that is only a declaration, which the runtime does not hold callers to, and each
    of the two is a size of its own.

    Args:
        inferred: Types and shapes that inference found.
        symbols: Symbols that may be trusted.
    """

    def __init__(self, inferred: Mapping[ir.Value, Inferred], symbols: frozenset[str]) -> None:
        self._inferred = inferred
        self._symbols = frozenset(filter(_SYMBOL.fullmatch, symbols))
        self._vectors: dict[ir.Value, Vector] = {}
        self._sizes: dict[ir.Value, Sizes] = {}
        self._unranked: set[ir.Value] = set()
        self._names = 0
        self._depth = 0
        self._nested = 0

    def sweep(self, graph: ir.Graph) -> None:
        """Looks at the nodes of a scope and of all scopes inside it, in order."""
        for node in graph:
            if standard_op(node) is not None and node.outputs:
                self._follow_vector(node)
                self._follow_sizes(node, sizes.derived_all)
            elif node.domain == DOMAIN:
                self._follow_sizes(node, derived_foreign)
            for inner in subgraphs(node):
                if is_op(node, "Loop") and self._nested < _NESTED:
                    self._nested += 1
                    self._sweep_rounds(node, inner)
                    self._nested -= 1
                else:
                    self.sweep(inner)
            if is_op(node, "If"):
                self._join_branches(node)

    def _join_branches(self, node: ir.Node) -> None:
        """Results of an If: what all branches agree on."""
        bodies = list(subgraphs(node))
        for index, output in enumerate(node.outputs):
            if any(index >= len(body.outputs) for body in bodies) or self._is_static(output):
                continue
            rows = [self.sizes(body.outputs[index]) for body in bodies]
            known = [row for row in rows if row is not None]
            if len(known) < len(rows) or len({len(row) for row in known}) != 1:
                continue
            items = (
                items[0] if len(set(items)) == 1 else None for items in zip(*known, strict=True)
            )
            merged = self._merged(output, tuple(items), trusted=True)
            if merged is not None:
                self._sizes[output] = merged

    def _sweep_rounds(self, node: ir.Node, body: ir.Graph) -> None:
        """Looks at a Loop: what is carried has the size that it came with if a round keeps that size.

        That is proven by a round: sizes that it changes are unknown in all rounds.
        """
        carried = range(min(len(body.inputs), len(node.inputs), len(body.outputs) + 1) - 2)
        assumed = {index: self.sizes(node.inputs[index + 2]) for index in carried}
        open_dims: set[tuple[int, int]] = set()
        for _ in range(_ROUNDS):
            self._forget(body)
            for index, found in assumed.items():
                if found is not None:
                    self._sizes[body.inputs[index + 2]] = found
            self.sweep(body)
            if self._kept(body, assumed, open_dims):
                break
        else:
            self._forget(body)
            self.sweep(body)
            return
        for index, output in enumerate(node.outputs[: len(body.outputs) - 1]):
            made = assumed.get(index)
            if index not in assumed:
                found = self.sizes(body.outputs[index + 1])
                made = None if found is None else (self._unknown(), *found)
            if made is not None and not self._is_static(output):
                merged = self._merged(output, made, trusted=True)
                if merged is not None:
                    self._sizes[output] = merged

    def _kept(
        self,
        body: ir.Graph,
        assumed: dict[int, Sizes | None],
        open_dims: set[tuple[int, int]],
    ) -> bool:
        """Whether a round keeps the sizes that were assumed; gives up those that it does not."""
        kept = True
        for index, before in assumed.items():
            after = None if before is None else self.sizes(body.outputs[index + 1])
            if before is None:
                continue
            if after is None or len(after) != len(before):
                assumed[index], kept = None, False
                continue
            changed = {
                (index, axis)
                for axis, (one, other) in enumerate(zip(before, after, strict=True))
                if one != other
            }
            if changed - open_dims:
                kept = False
                open_dims |= changed
                assumed[index] = tuple(
                    self._unknown() if (index, axis) in open_dims else item
                    for axis, item in enumerate(before)
                )
        return kept

    def _forget(self, graph: ir.Graph) -> None:
        """Drops what was found of the values of a scope and of all scopes inside it."""
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            self._sizes.pop(value, None)
            self._vectors.pop(value, None)
            self._unranked.discard(value)
        for node in graph:
            for inner in subgraphs(node):
                self._forget(inner)

    def _follow_vector(self, node: ir.Node) -> None:
        vector = contents(self, node)
        if vector is not None and self._agrees(vector, node.outputs[0]):
            self._vectors[node.outputs[0]] = vector

    def _agrees(self, vector: Vector, value: ir.Value) -> bool:
        """Whether a vector is short enough and of the shape that inference found."""
        shape = self._inferred.get(value, (None, None))[1]
        if shape is None:
            return len(vector.items) <= MAX_ITEMS
        if len(shape) != int(not vector.scalar) or len(vector.items) > MAX_ITEMS:
            return False
        return not shape or not isinstance(shape[0], int) or shape[0] == len(vector.items)

    def _follow_sizes(
        self, node: ir.Node, derive: Callable[[Known, ir.Node], list[Sizes | None]]
    ) -> None:
        if all(self._is_static(value) for value in node.outputs if value.name):
            return
        for value, found in zip(node.outputs, derive(self, node), strict=False):
            if found is not None and len(found) <= _MAX_RANK:
                merged = self._merged(value, found, trusted=node.op_type not in _UNTRUSTED)
                if merged is not None:
                    self._sizes[value] = merged

    def _is_static(self, value: ir.Value) -> bool:
        shape = self._inferred.get(value, (None, None))[1]
        return shape is not None and all(isinstance(dim, int) for dim in shape)

    def _merged(self, value: ir.Value, found: Sizes, *, trusted: bool) -> Sizes | None:
        """The sizes that follow, with numbers that inference found instead."""
        shape = self._inferred.get(value, (None, None))[1]
        if shape is None:
            shape = (None,) * len(found)
        if len(shape) != len(found):
            return None
        return tuple(
            self._item(dim if trusted or isinstance(dim, int) else None, item)
            for dim, item in zip(shape, found, strict=True)
        )

    def _item(self, dim: int | str | None, item: Item) -> Item:
        if isinstance(dim, int):
            return dim
        if item is not None:
            return item
        return dims.size(dim) if dim in self._symbols and dim is not None else self._unknown()

    def _unknown(self) -> Item:
        self._names += 1
        return dims.size(f"~{self._names}")

    def vector(self, value: ir.Value | None) -> Vector | None:
        """Returns what is known of the contents of a value, constants included."""
        if value is None:
            return None
        found = self._vectors.get(value)
        if found is not None:
            return found
        tensor = constant(value)
        return None if tensor is None else vectors.from_tensor(tensor)

    def vectors(self) -> Iterable[tuple[ir.Value, Vector]]:
        """Yields the values that nodes make, with what is known of their contents."""
        return self._vectors.items()

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """Returns the dimensions of a tensor; None for an unknown rank."""
        if value is None:
            return None
        found = self._sizes.get(value)
        if found is None and value not in self._unranked:
            found = self._own(value)
            if found is None:
                self._unranked.add(value)
            else:
                self._sizes[value] = found
        return found

    def _own(self, value: ir.Value) -> Sizes | None:
        tensor = constant(value)
        if tensor is not None:
            return tuple(int(dim) for dim in tensor.shape.numpy())
        if value not in self._inferred:
            return self._of_new(value)
        shape = self._inferred.get(value, (None, None))[1]
        if shape is None or len(shape) > _MAX_RANK:
            return None
        return tuple(self._item(dim, None) for dim in shape)

    def _of_new(self, value: ir.Value) -> Sizes | None:
        """The dimensions of a value that was made after the sweep, as they follow from operands'."""
        node = value.producer()
        if node is None or standard_op(node) is None or self._depth > _MAX_NEW:
            return None
        self._depth += 1
        try:
            results = zip(node.outputs, sizes.derived_all(self, node), strict=False)
            found = next((sizes for made, sizes in results if made is value), None)
        finally:
            self._depth -= 1
        if found is None or len(found) > _MAX_RANK:
            return None
        return tuple(self._item(None, item) for item in found)

    def open_vector(self, value: ir.Value | None) -> Vector | None:
        """A vector of known length and type whose elements are not known."""
        if value is None:
            return None
        dtype, _ = self._inferred.get(value, (None, None))
        shape = self.sizes(value)
        if shape is None or dtype is None or dtype not in INTEGERS or len(shape) > 1:
            return None
        length = shape[0] if shape else 1
        if not isinstance(length, int) or length > MAX_ITEMS:
            return None
        return Vector((None,) * length, not shape, dtype)
