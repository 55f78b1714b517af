"""Typed tables of what an execution provider computes in int8."""

from __future__ import annotations

import tomllib
from functools import cache, cached_property
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from onnxcomp.errors import RecipeError, quoted

Role = Literal["kernel", "join", "follow"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Number(_Table):
    """How one kind of tensor is quantized."""

    dtype: Literal["uint8", "int8", "int32"]
    """Element type."""
    symmetric: bool = True
    """Whether the zero point is the middle of the type."""
    per_channel: bool = False
    """Whether every output channel has its own scale."""


class Weight(_Table):
    """Where an operator keeps its weight."""

    input: int
    """Index of the input."""
    axis: int
    """Axis of the output channels, along which scales vary."""
    transposed_by: str = ""
    """Attribute that swaps the two axes when it is not 0."""
    optional: bool = False
    """Whether the operator is also computed in int8 when this input is an activation."""


class Fixed(_Table):
    """Parameters that follow from the operator, whatever the data."""

    scale: float
    """Step between neighbouring values."""
    zero_point: int
    """Number that stands for 0."""


class Family(_Table):
    """Operators that are treated alike."""

    name: str
    """Name, for patterns and reports."""
    types: tuple[str, ...]
    """Operators of the standard domain."""
    role: Role
    """`kernel`: input 0 and outputs have their own parameters; `join`: so has every input; `follow`:
    the output has the parameters of input 0."""
    weight: Weight | None = None
    """Where the weight is, for operators that have one."""
    bias: int | None = None
    """Index of the bias, stored as int32 with the product of both scales."""
    float_output: bool = False
    """Whether the int8 kernel can write float, so that no Q needs to follow."""
    fixed: Fixed | None = None
    """Parameters of the output that do not depend on data."""
    require: dict[str, float] = Field(default_factory=dict)
    """Attributes that must be absent or have these values."""
    inputs: int | None = None
    """Number of inputs that it must have."""
    note: str = ""
    """Remark for readers."""


class Floats(_Table):
    """Operators that stay float, and why."""

    types: tuple[str, ...]
    why: str


class Absorbed(_Table):
    """Operators that vanish into the Q behind them."""

    types: tuple[str, ...]
    note: str = ""


class Cost(_Table):
    """What it costs to pass between float and int8."""

    quantize_ns: float
    """Nanoseconds for an element."""
    dequantize_ns: float
    """Nanoseconds for an element."""
    layout_ns: float
    """Nanoseconds for an element whose channels have to move to the end or back."""
    node_us: float
    """Microseconds for any node."""


class Target(_Table):
    """What an execution provider computes in int8, and how it wants it written."""

    name: str
    provider: str
    opset: int
    sources: tuple[str, ...]
    activation: Number
    weight: Number
    bias: Number
    cost: Cost
    family: tuple[Family, ...]
    absorbed: tuple[Absorbed, ...] = ()
    float: tuple[Floats, ...] = ()

    @cached_property
    def _families(self) -> dict[str, Family]:
        return {kind: family for family in self.family for kind in family.types}

    @cached_property
    def absorbable(self) -> frozenset[str]:
        """Operators that vanish into the Q behind them when its range makes them redundant."""
        return frozenset(kind for row in self.absorbed for kind in row.types)

    def family_of(self, op_type: str | None) -> Family | None:
        """Returns how an operator is computed in int8, None when it is not."""
        return self._families.get(op_type or "")

    def why_float(self, op_type: str) -> str:
        """Returns why an operator stays float."""
        for row in self.float:
            if op_type in row.types:
                return row.why
        return f"{op_type} is not in the table of target {self.name}"


@cache
def load_target(name: str) -> Target:
    """Reads the table of a target.

    Raises:
        RecipeError: If there is no such target.
    """
    folder = resources.files(__package__)
    file = folder.joinpath(f"{name}.toml")
    if not name.isidentifier() or not file.is_file():
        known = sorted(
            f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
        )
        raise RecipeError(f"no target {quoted(name)}", hint=f"there are: {', '.join(known)}")
    return Target.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
