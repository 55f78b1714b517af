"""Numbers for the expressions of bodies, equal where the expressions are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.envelope import ATTRIBUTES
from onnxcomp.ir.ops import is_pure, standard_op
from onnxcomp_passes.simplify.equality import attribute_key, tensor_key

if TYPE_CHECKING:
    from collections.abc import Hashable

# Larger constants are compared by share-common, which stores equal ones once.
_SMALL = 64


class Numbering:
    """Gives values numbers: equal ones for what is computed in the same way from the same values.

    Numbers of several bodies can be compared as long as one object made them.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def of(self, body: ir.Graph) -> dict[ir.Value, int]:
        """Returns the numbers of everything that a body defines, bodies inside it included."""
        found: dict[ir.Value, int] = {}
        self._add(body, found)
        return found

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _add(self, body: ir.Graph, found: dict[ir.Value, int]) -> None:
        for index, value in enumerate(body.inputs):
            found[value] = self._number(("input", index, id(body)))
        for value in body.initializers.values():
            tensor = value.const_value
            small = tensor is not None and tensor.size <= _SMALL
            own = tensor_key(tensor) if small and tensor is not None else id(value)
            found[value] = self._number(("constant", own))
        for node in body:
            key = self._key(node, found)
            key = ("own", id(node)) if key is None else key
            for index, value in enumerate(node.outputs):
                found[value] = self._number((key, index))

    def _key(self, node: ir.Node, found: dict[ir.Value, int]) -> Hashable | None:
        if standard_op(node) is None or ATTRIBUTES in node.meta or not is_pure(node):
            return None
        attributes: list[Hashable] = []
        for name, attr in sorted(node.attributes.items()):
            if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
                key = self._body_key(attr.as_graph(), found)
            else:
                key = attribute_key(attr)
            if key is None:
                return None
            attributes.append((name, key))
        operands = tuple(None if value is None else _of(value, found) for value in node.inputs)
        made = tuple(bool(value.name) for value in node.outputs)
        return (node.op_identifier(), operands, made, tuple(attributes))

    def _body_key(self, body: ir.Graph, found: dict[ir.Value, int]) -> Hashable | None:
        self._add(body, found)
        if body.inputs:
            return None
        return ("body", tuple(_of(value, found) for value in body.outputs))


def _of(value: ir.Value, found: dict[ir.Value, int]) -> Hashable:
    return found[value] if value in found else ("outer", id(value))
