"""Which operands of a node may change to 16 bits, by the type constraints of its operator's schema."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnx import defs

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import attribute, standard_op

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HALF_TYPES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
}
# What an operand means, not what it may be: coordinates and indices need more than 11 bits, and the
# statistics of a LayerNormalization have the type that `stash_type` says.
_EXACT_VARIABLES: Mapping[str, frozenset[str]] = {
    "Resize": frozenset({"T2"}),
    "GridSample": frozenset({"T2"}),
    "OneHot": frozenset({"T1", "T2"}),
    "LayerNormalization": frozenset({"U"}),
}
_EXACT_OPERATORS: Mapping[str, str] = {
    "CastLike": "its result has the type of another value",
    "MeanVarianceNormalization": "its definition in the standard has constants of 32 bits",
    "MaxRoiPool": "coordinates need more digits",
    "Range": "it counts",
    "RoiAlign": "coordinates need more digits",
}
_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "output_dtype"})
# The type of their result follows from an attribute that is rewritten here, or from an operand.
RETYPED = frozenset({"Cast", "ConstantOfShape"})
_TYPED_BY_OPERAND = frozenset({"QuantizeLinear"})


@dataclass(frozen=True)
class Operands:
    """What of a node may be 16 bits wide.

    Attributes:
        inputs: Indices of the inputs that change, all together.
        outputs: Indices of the outputs that change with them.
        reason: Why nothing may, empty when something may.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    reason: str = ""


def half_operands(
    node: ir.Node, version: int, half: ir.DataType, dtype: Callable[[ir.Value], Any]
) -> Operands:
    """Returns which float32 operands of a node its operator takes in 16 bits.

    Args:
        node: The node, none with a body.
        version: Opset of its scope.
        half: The 16-bit type.
        dtype: Element type of a value, None when it is unknown or no tensor.
    """
    if reason := _fixed(node, version):
        return Operands(reason=reason)
    operands = (*node.inputs, *(value for value in node.outputs if value.name))
    if any(dtype(value) is None for value in operands if value is not None):
        return Operands(reason="the type of an operand is unknown, or no tensor")
    name = standard_op(node) or ""
    variables = _variables(name, version, HALF_TYPES[half])
    if variables is None:
        return Operands(reason="an operator of another domain")
    inputs, outputs = variables
    exact = _EXACT_VARIABLES.get(name, frozenset())
    found_in = [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and dtype(value) == ir.DataType.FLOAT and _may(inputs, index, exact)
    ]
    found_out = [
        index
        for index, value in enumerate(node.outputs)
        if dtype(value) == ir.DataType.FLOAT and _may(outputs, index, exact)
    ]
    if not found_in and not found_out:
        return Operands(reason=f"opset {version} has no such operator in {half.name.lower()}")
    return Operands(tuple(found_in), tuple(found_out))


def knows(name: str, version: int, half: ir.DataType) -> bool:
    """Whether an operator of an opset makes results of a 16-bit type at all."""
    found = _variables(name, version, HALF_TYPES[half])
    return found is not None and any(allowed for _, allowed in found[1])


def _fixed(node: ir.Node, version: int) -> str:
    name = standard_op(node)
    if name is None:
        return "an operator of another domain"
    if name in _EXACT_OPERATORS:
        return _EXACT_OPERATORS[name]
    schema = _schema(name, version)
    if schema is None:
        return f"opset {version} has no such operator"
    if name in RETYPED or name in _TYPED_BY_OPERAND:
        return ""
    typed = _TYPE_ATTRIBUTES & set(schema.attributes)
    if typed and (name != "DequantizeLinear" or attribute(node, "output_dtype", 0) != 0):
        return "an attribute says the type of its result"
    return ""


def _may(formals: Sequence[tuple[str, bool]], index: int, exact: frozenset[str]) -> bool:
    if not formals:
        return False
    variable, allowed = formals[min(index, len(formals) - 1)]
    return allowed and variable not in exact


@lru_cache(maxsize=4096)
def _variables(
    name: str, version: int, half: str
) -> tuple[tuple[tuple[str, bool], ...], tuple[tuple[str, bool], ...]] | None:
    """Type variable of each formal operand, and whether it may be the 16-bit type."""
    schema = _schema(name, version)
    if schema is None:
        return None
    return (
        tuple((formal.type_str, half in formal.types) for formal in schema.inputs),
        tuple((formal.type_str, half in formal.types) for formal in schema.outputs),
    )


@lru_cache(maxsize=4096)
def _schema(name: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(name, version, "")
    except defs.SchemaError:
        return None
