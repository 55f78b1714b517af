"""Chains of Cast, where the first one loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, has_reference_attribute, producer_of
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import bypass, rewire, shapes_of

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit

_T = ir.DataType
_FLOATS: dict[ir.DataType, int] = {_T.FLOAT16: 11, _T.FLOAT: 24, _T.DOUBLE: 53}
_SIGNED: dict[ir.DataType, int] = {_T.INT8: 8, _T.INT16: 16, _T.INT32: 32, _T.INT64: 64}
_UNSIGNED: dict[ir.DataType, int] = {
    _T.BOOL: 1,
    _T.UINT8: 8,
    _T.UINT16: 16,
    _T.UINT32: 32,
    _T.UINT64: 64,
}

# Bits without the sign.
_BITS = {**_UNSIGNED, **{kind: bits - 1 for kind, bits in _SIGNED.items()}}


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every value of one type is a value of another, NaN and infinities included."""
    if wide == narrow:
        return True
    if narrow in _FLOATS:
        return _FLOATS[narrow] < _FLOATS.get(wide, 0)
    bits = _BITS.get(narrow)
    if bits is None or (narrow in _SIGNED and wide in _UNSIGNED):
        return False
    # What has no entry (bfloat16, the 8-bit floats) holds nothing that we need.
    return bits <= {**_FLOATS, **_BITS}.get(wide, 0)


class MergeCasts:
    """Cast(Cast(x)) is one Cast, or none, when the inner one holds every value of x.

    What a floating-point number outside of the range of an integer type becomes is not specified:
    chains from floating point to integers stay, and those that change the kind on the way must end
    in a type that holds all values too.
    """

    name = "casts merged"
    ops = frozenset({"Cast"})

    def match(self, node: ir.Node, facts: Facts) -> Match[bool] | Miss:
        """Finds the types; the match says whether the end is where it began."""
        inner = producer_of(node.inputs[0], "Cast")
        start = (
            None
            if inner is None or has_reference_attribute(node)
            else shapes_of(facts).dtype(inner.inputs[0])
        )
        if inner is None or start is None or has_reference_attribute(inner):
            return NOTHING
        middle, end = attribute(inner, "to"), attribute(node, "to")
        if not holds(_T(middle), start) or end not in _KNOWN:
            return _rounding(start, _T(middle))
        if start in _FLOATS and end in _BITS and end != _T.BOOL:
            return NOTHING
        crosses = (start in _FLOATS) is not (_T(middle) in _FLOATS)
        if crosses and not holds(_T(end), start):
            return NOTHING
        return Match(node, end == start)

    def apply(self, match: Match[bool], edit: Edit) -> None:
        """Rewires past the inner one, or past both."""
        node = match.node
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        source = inner.inputs[0]
        assert source is not None
        if match.found:
            bypass(edit, node, source)
        else:
            rewire(edit, node, 0, source)


def _rounding(start: ir.DataType, middle: ir.DataType) -> Miss:
    if start in _FLOATS and middle in _FLOATS and not holds(middle, start):
        kinds = middle.name.lower(), start.name.lower()
        return Miss(f"{kinds[0]} in between does not hold every {kinds[1]}", near=True)
    return NOTHING


_KNOWN = frozenset(int(kind) for kind in (*_FLOATS, *_SIGNED, *_UNSIGNED))
