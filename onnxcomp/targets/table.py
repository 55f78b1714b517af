"""Typed tables of what an execution provider computes in int8, in which form, and what it refuses."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Role = Literal["kernel", "join", "follow", "read"]
Style = Literal["units", "inputs"]
Checked = Literal["run", "source", "doc"]
Use = Literal["compute", "weights", "storage", "no"]
Rule = Literal[
    "zero-point",
    "uint8",
    "int8-activation",
    "sixteen-bit",
    "int32-bias",
    "per-channel-activation",
    "per-channel-axis",
    "per-channel-weight",
    "not-constant",
    "qoperator",
    "float-operator",
    "dynamic-shape",
    "block-axis",
    "saturation",
]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Row(_Table):
    """Something that a table says, and where that was read."""

    source: str
    """Key in `sources` of where this was read."""
    checked: Checked
    """`run`: a generated model was run on the provider; `source`: read in its code; `doc`: in its manual."""
    note: str = ""
    """Remark for readers."""


class Number(_Table):
    """How one kind of tensor is quantized."""

    dtype: Literal["uint8", "int8"]
    """Element type."""
    symmetric: bool = True
    """Whether the zero point is the middle of the type."""
    per_channel: bool = False
    """Whether every output channel has its own scale."""
    bits: PositiveInt | None = None
    """Bits that are used of the type, all by default; 7 where products saturate."""
    also: tuple[str, ...] = ()
    """Other types that the provider takes."""


class Bias(_Table):
    """How a bias is stored."""

    dtype: Literal["int32", "float32"]
    """int32 stands behind a DQ with the product of both scales; float32 has no DQ."""


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
    per_channel: bool = True
    """Whether its scales may vary, where those of weights do."""


class Fixed(_Table):
    """Parameters that follow from the operator, whatever the data."""

    scale: float
    """Step between neighbouring values."""
    zero_point: int
    """Number that stands for 0."""


class Family(Row):
    """Operators that are treated alike."""

    name: str
    """Name, for patterns and reports."""
    types: tuple[str, ...]
    """Operators of the standard domain."""
    role: Role
    """`kernel`: input 0 and outputs have their own parameters; `join`: so has every input; `follow`:
    the output has the parameters of input 0."""
    first: int = 0
    """Index of the first input that is a tensor of numbers (Where: 1); what is before it stays as it is.
    Of role `read` the output is no float: only inputs are quantized (ArgMax)."""
    becomes: tuple[str, ...] = ()
    """What the provider runs instead, where it says so: the operator of its optimised graph."""
    weight: Weight | None = None
    """Where the weight is, for operators that have one."""
    bias: int | None = None
    """Index of the bias."""
    float_output: bool = False
    """Whether the int8 kernel can write float, so that no Q needs to follow."""
    fixed: Fixed | None = None
    """Parameters of the output that do not depend on data."""
    require: dict[str, float] = Field(default_factory=dict)
    """Attributes that must be absent or have these values."""
    inputs: int | None = None
    """Number of inputs that it must have."""
    residual: bool = False
    """With the style `inputs`: only the input that no weighted layer makes is quantized, so that the
    other one fuses into that layer."""
    equal_scales: bool = False
    """With the style `inputs`: what goes in and what comes out should have the same parameters."""
    sixteen: bool = False
    """Whether it also takes 16 bits."""


class Floats(Row):
    """Operators that stay float, and why."""

    types: tuple[str, ...]
    why: str
    alone: bool = True
    """Whether Q and DQ next to it stay nodes of their own; if not, a kernel does their work as well."""


class Absorbed(Row):
    """Operators that vanish into the Q behind them."""

    types: tuple[str, ...]
    behind: tuple[str, ...] = ()
    """Families that they have to stand behind, any when empty."""


class Format(Row):
    """What a provider does with a number format other than the int8 of static quantization."""

    name: str
    """`float16`, `bfloat16`, `float8e4m3fn`, `int4`, `uint4`, `uint16`..."""
    use: Use
    """`compute`: kernels calculate in it; `weights`: kernels unpack weights of it as they go; `storage`:
    it is turned into float before use; `no`: refused."""
    form: str = ""
    """How it has to be written."""


class Refusal(Row):
    """Something valid in ONNX that the provider refuses, gets wrong or runs slowly."""

    rule: Rule
    """What it is, for programs."""
    effect: Literal["error", "wrong", "slow"]
    """The model does not load; its numbers are wrong; it runs in float or with conversions."""
    why: str
    """What happens."""
    instead: str = ""
    """What to write."""
    types: tuple[str, ...] = ()
    """Operators that it is about, all when empty."""


class Cost(_Table):
    """What it costs to pass between float and int8; all zero where nobody measured it."""

    quantize_ns: float = 0.0
    """Nanoseconds for an element."""
    dequantize_ns: float = 0.0
    """Nanoseconds for an element."""
    layout_ns: float = 0.0
    """Nanoseconds for an element whose channels have to move to the end or back."""
    node_us: float = 0.0
    """Microseconds for any node."""


class Machine(_Table):
    """Processors that a table is about."""

    arch: str
    """`x86_64` or `aarch64`."""
    any_of: frozenset[str] = frozenset()
    """Instruction sets of which it has at least one."""
    none_of: frozenset[str] = frozenset()
    """Instruction sets that it does not have."""


class Target(_Table):
    """What an execution provider computes in int8, and how it wants it written."""

    name: str
    provider: str
    """Short name of the execution provider."""
    summary: str
    """One line for lists."""
    opset: int
    """Oldest opset that its Q/DQ needs."""
    newest_opset: int | None = None
    """Newest opset that it reads, where that is less than what the runtime reads."""
    sources: dict[str, str]
    """Where rows were read, by the key that they name."""
    machine: Machine | None = None
    """Processors that the table is about, None for any."""
    compiles: bool = False
    """Whether the provider compiles graphs, so that what it runs can be neither read nor timed by node."""
    int8: bool = True
    """Whether the provider computes anything in int8."""
    instead: str = ""
    """What to do where it does not."""
    style: Style = "units"
    """`units`: every int8 node stands between DQ and Q, outputs too; `inputs`: only what weighted
    layers read is quantized, and one input of a residual Add."""
    activation: Number
    weight: Number
    bias: Bias
    multiple_of: PositiveInt = 1
    """Number of channels of which kernels want a multiple; others are padded."""
    alignment: PositiveInt = 1
    """Number of channels of which there must be a multiple for the fast kernels to be used at all."""
    cost: Cost = Cost()
    family: tuple[Family, ...] = ()
    absorbed: tuple[Absorbed, ...] = ()
    float: tuple[Floats, ...] = ()
    format: tuple[Format, ...] = ()
    refuse: tuple[Refusal, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for row in self.rows:
            if row.source not in self.sources:
                raise ValueError(f"a row of target {self.name} names no source: {row.source}")
        return self

    @property
    def rows(self) -> tuple[Row, ...]:
        """Everything that the table says, with its source."""
        return (*self.family, *self.absorbed, *self.float, *self.format, *self.refuse)

    @cached_property
    def _families(self) -> dict[str, Family]:
        return {kind: family for family in self.family for kind in family.types}

    @cached_property
    def absorbable(self) -> frozenset[str]:
        """Operators that vanish into the Q behind them when its range makes them redundant."""
        return frozenset(kind for row in self.absorbed for kind in row.types)

    def absorbed_behind(self, family: Family) -> frozenset[str]:
        """Returns the operators behind a family that vanish into the Q behind them."""
        rows = [row for row in self.absorbed if not row.behind or family.name in row.behind]
        return frozenset(kind for row in rows for kind in row.types)

    def family_of(self, op_type: str | None) -> Family | None:
        """Returns how an operator is computed in int8, None when it is not."""
        return self._families.get(op_type or "")

    def format_of(self, name: str) -> Format | None:
        """Returns what the provider does with a number format, None when nothing is known."""
        return next((row for row in self.format if row.name == name), None)

    def refuses(self, rule: Rule, op_type: str = "") -> Refusal | None:
        """Returns what the table says against something, None when it says nothing."""
        for row in self.refuse:
            if row.rule == rule and (not row.types or op_type in row.types):
                return row
        return None

    def why_float(self, op_type: str) -> str:
        """Returns why an operator stays float."""
        for row in self.float:
            if op_type in row.types:
                return row.why
        if not self.int8:
            return self.instead
        return f"{op_type} is not in the table of target {self.name}"
