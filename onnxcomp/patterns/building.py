"""What a replacement function gets and makes: a plan of new nodes, checked before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import UserError, quoted
from onnxcomp.ir.ops import array, constant, subgraphs
from onnxcomp.patterns.matching import schema_of, version_of
from onnxcomp.patterns.terms import Refusal, split_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir
    from onnxcomp.signature import Shape

    Input: TypeAlias = "Operand | Made | np.ndarray[Any, Any] | None"

_RULE = "onnxcomp.rule"
# Beyond every operator set that there will be.
_NEWEST = 1 << 20


class Operand:
    """A value of the model that a pattern found.

    Attributes:
        value: The value itself, for questions that are not answered here. Never change it.
    """

    def __init__(self, value: ir.Value, facts: Facts) -> None:
        self.value = value
        self._facts = facts

    @property
    def name(self) -> str:
        """Name of the value."""
        return self.value.name or ""

    @property
    def is_constant(self) -> bool:
        """Whether it is the same in every run and no caller may override it."""
        return constant(self.value) is not None

    @property
    def array(self) -> np.ndarray[Any, Any] | None:
        """The contents of a constant; read from the file when asked for."""
        return array(self.value)

    @property
    def shape(self) -> Shape | None:
        """The dimensions: numbers, symbols, None for an unknown one; None when nothing is known."""
        return self._facts.get(Shapes()).shape(self.value)

    @property
    def rank(self) -> int | None:
        """The number of dimensions."""
        return self._facts.get(Shapes()).rank(self.value)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of the elements, as numpy has it."""
        found = self._facts.get(Shapes()).dtype(self.value)
        return None if found is None else np.dtype(found.numpy())


@dataclass(eq=False)
class NewNode:
    """A node of a replacement."""

    op_type: str
    domain: str
    inputs: list[Input]
    attributes: dict[str, Any]
    count: int
    name: str


@dataclass(frozen=True, eq=False)
class Made:
    """An output of a new node."""

    node: NewNode
    index: int
    dtype: np.dtype[Any] | None


@dataclass
class Plan:
    """What a rule is going to do at one place.

    Attributes:
        nodes: New nodes, in order.
        results: What stands for each result of the pattern.
        old: Results of the pattern.
        place: The node before which the new ones go.
        gone: Nodes of the pattern.
        rule: The rule, to recognise its own work.
        shapes: Where to note what is known of the new values.
    """

    nodes: list[NewNode]
    results: list[Input]
    old: list[ir.Value] = field(default_factory=list)
    place: ir.Node | None = None
    gone: list[ir.Node] = field(default_factory=list)
    rule: object = None
    shapes: ShapeMap | None = None


class NewOps:
    """Stands for the operators in a replacement function: each call plans a node."""

    def __init__(self, rule: str, imports: Mapping[str, int], *, may_import: bool) -> None:
        self._rule = rule
        self._imports = imports
        self._may_import = may_import
        self.made: list[NewNode] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Any, **rest: Any) -> Any:  # noqa: ANN401 - what a user writes
            return self._make(op_type, list(inputs), rest)

        return make

    def _make(self, op_type: str, inputs: list[Any], rest: dict[str, Any]) -> Any:  # noqa: ANN401
        options = split_options(self._rule, op_type, rest)
        domain = options.get("_domain", "")
        schema = self._schema(op_type, domain, inputs, rest)
        like = options.get("_like")
        if like is not None and any(True for _ in subgraphs(like)):
            raise Refusal(f"{like.op_type} carries graphs")
        attributes = {**(dict(like.attributes) if like is not None else {}), **rest}
        dtypes = [_dtype(value) for value in inputs]
        node = NewNode(
            op_type,
            domain,
            [self._input(op_type, schema, inputs, dtypes, index) for index in range(len(inputs))],
            {name: value for name, value in attributes.items() if value is not None},
            int(options.get("_outputs", 1)),
            options.get("_name", ""),
        )
        self.made.append(node)
        made = tuple(Made(node, n, _result_dtype(schema, dtypes, n)) for n in range(node.count))
        return made[0] if node.count == 1 else made

    def _schema(self, op_type: str, domain: str, inputs: list[Any], rest: dict[str, Any]) -> Any:  # noqa: ANN401
        """Returns the definition of a standard operator, None for one of another domain."""
        if domain:
            if domain not in self._imports and not self._may_import:
                raise Refusal(f"the function around does not import {quoted(domain)}")
            return None
        version = version_of("", self._imports)
        schema = schema_of(op_type, version, "")
        if schema is None or schema.deprecated:
            raise self._absent(op_type, version)
        unknown = sorted(set(rest) - set(schema.attributes))
        if unknown:
            raise UserError(
                f"rule {self._rule}: {op_type} of opset {version} has no attribute {unknown[0]}"
            )
        if not schema.min_input <= len(inputs) <= schema.max_input:
            raise UserError(
                f"rule {self._rule}: {op_type} of opset {version} does not take {len(inputs)} inputs"
            )
        return schema

    def _absent(self, op_type: str, version: int) -> Exception:
        """Why there is no such operator: the model is too old for it, or nobody has it."""
        latest = schema_of(op_type, _NEWEST, "")
        if latest is None:
            return UserError(f"rule {self._rule}: there is no operator {quoted(op_type)}")
        later = (
            n for n in range(version + 1, latest.since_version + 1) if schema_of(op_type, n, "")
        )
        first = next(later, None)
        hint = "" if first is None else f"it came with opset {first}: optimize --opset {first}"
        return Refusal(f"opset {version} has no {op_type}", hint)

    def _input(
        self,
        op_type: str,
        schema: Any,  # noqa: ANN401 - an onnx.defs.OpSchema
        inputs: Sequence[Any],
        dtypes: Sequence[np.dtype[Any] | None],
        index: int,
    ) -> Input:
        value = inputs[index]
        if value is None or isinstance(value, (Operand, Made)):
            return value
        if isinstance(value, (np.ndarray, np.generic)):
            return np.asarray(value)
        if not isinstance(value, (bool, int, float, list, tuple)):
            raise UserError(
                f"rule {self._rule}: {op_type} gets a {type(value).__name__}",
                hint="inputs are parameters, results of operators, numbers, lists and arrays",
            )
        found = np.asarray(value)
        dtype = _wanted_dtype(schema, dtypes, index, found)
        if dtype is None:
            raise Refusal(f"the type of the constant of {op_type} is not known")
        made = found.astype(dtype)
        if dtype.kind in "iub" and not bool((made == found).all()):
            raise Refusal(f"a constant of {op_type} does not fit into {dtype}")
        return made


def _dtype(value: object) -> np.dtype[Any] | None:
    if isinstance(value, (Operand, Made)):
        return value.dtype
    return value.dtype if isinstance(value, (np.ndarray, np.generic)) else None


def _formal(formals: Sequence[Any], index: int) -> Any:  # noqa: ANN401 - a FormalParameter
    return formals[min(index, len(formals) - 1)] if formals else None


def _wanted_dtype(
    schema: Any,  # noqa: ANN401 - an onnx.defs.OpSchema
    dtypes: Sequence[np.dtype[Any] | None],
    index: int,
    found: np.ndarray[Any, Any],
) -> np.dtype[Any] | None:
    """The type of a number in the place of an input: what the operator asks for there.

    That of the operands of the same kind; else that of the first operand where it may be; else int64
    for whole numbers (axes, shapes, indices).
    """
    first = next((dtype for dtype in dtypes if dtype is not None), None)
    if schema is None:
        return first
    formal = _formal(schema.inputs, index)
    alike = [n for n in range(len(dtypes)) if _formal(schema.inputs, n).type_str == formal.type_str]
    known = next((dtypes[n] for n in alike if dtypes[n] is not None), None)
    if known is not None or len(alike) > 1:
        return known
    allowed = formal.types
    if first is not None and _type_text(first) in allowed:
        return first
    return np.dtype(np.int64) if "tensor(int64)" in allowed and found.dtype.kind in "iu" else None


def _type_text(dtype: np.dtype[Any]) -> str:
    names = {"float32": "float", "float64": "double"}
    return f"tensor({names.get(dtype.name, dtype.name)})"


def _result_dtype(
    schema: Any,  # noqa: ANN401 - an onnx.defs.OpSchema
    dtypes: Sequence[np.dtype[Any] | None],
    index: int,
) -> np.dtype[Any] | None:
    """The type of an output where it is that of an input."""
    if schema is None:
        return None
    kind = _formal(schema.outputs, index).type_str
    kinds = [_formal(schema.inputs, position).type_str for position in range(len(dtypes))]
    same = (dtype for dtype, other in zip(dtypes, kinds, strict=True) if other == kind)
    return next((dtype for dtype in same if dtype is not None), None)


def was_made_by(node: ir.Node, rule: object) -> bool:
    """Whether a rule itself put a node there."""
    return node.meta.get(_RULE) is rule


def mark(node: ir.Node, rule: object) -> None:
    """Notes which rule put a node there; not written to files."""
    node.meta[_RULE] = rule
