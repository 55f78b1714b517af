"""What `compress` tries: passes in a row, and the models on which they make sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from onnxcomp.ir.ops import constant, input_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir import Model, ir
    from onnxcomp.targets import Target

Prefer = Literal["speed", "size"]
Step = tuple[str, Mapping[str, Any]]

# Products with matrices, which there are many ways to compute in few bits.
MATRICES = frozenset({"MatMul", "Gemm"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
DYNAMIC = "dynamic int8"
# Bytes of tables below which their form does not matter.
_NOTABLE_TABLES = 1 << 16
_NOTABLE_SHARE = 0.03
_NOTABLE_MATRICES = 0.3


@dataclass(frozen=True)
class Variant:
    """One way to make a model smaller and faster.

    Attributes:
        label: Name in reports.
        steps: Passes and their options.
        operators: It is tried where the model has one of these; on all models when there are none.
        is_static: Whether nodes that hurt can be given back to float, and rounding be repaired.
        after: Label of the variant that has to miss the limit for this one to be tried.
        share: Part of the weights that those operators have to read.
    """

    label: str
    steps: tuple[Step, ...]
    operators: frozenset[str] = field(default_factory=frozenset)
    is_static: bool = False
    after: str = ""
    share: float = 0.0

    def suits(self, model: Model) -> bool:
        """Whether it can do anything for a model."""
        if not self.operators:
            return True
        readers = [node for node in model.nodes() if node.op_type in self.operators]
        weights = {value for node in readers for value in node.inputs}
        sizes = (int(v.nbytes) for value in weights if (v := constant(value)) is not None)
        return bool(readers) and sum(sizes) >= self.share * model.nbytes

    def without(self, names: tuple[str, ...]) -> Variant:
        """Returns the variant that quantizes everything except some nodes, without measuring again."""
        (name, options), *others = self.steps
        options = {**options, "placement": "all", "skip": names}
        return Variant(self.label, ((name, options), *others), self.operators, self.is_static)


def variants(target: Target, *, batch: int, prefer: Prefer, contrib: bool) -> Iterator[Variant]:
    """Yields what to try, the most promising first.

    Args:
        target: Where the model will run.
        batch: Samples that one run takes.
        prefer: What the user wants most.
        contrib: Whether operators that only onnxruntime knows are allowed.
    """
    if _does(target, "float16", "compute"):
        yield Variant("float16", (("convert-float16", {}),))
    if target.int8:
        yield from _static(batch)
    if target.provider == "cpu":
        yield from _dynamic(batch, contrib=contrib)
    if _does(target, "int4", "weights"):
        step = ("quantize-weights", {"bits": 4})
        yield Variant("weights in 4 bits", (step,), MATRICES, share=_NOTABLE_MATRICES)
    if prefer == "size":
        yield Variant("weights in 8 bits", (("quantize-weights", {"bits": 8}),))


def _static(batch: int) -> Iterator[Variant]:
    options = {"prepare": False, "batch": batch}
    bias: Step = ("correct-bias", {})
    yield Variant("int8", (("quantize-static", options), bias), is_static=True)
    everywhere = ("quantize-static", {**options, "placement": "all"})
    yield Variant("int8 everywhere", (everywhere, bias), is_static=True)


def _dynamic(batch: int, *, contrib: bool) -> Iterator[Variant]:
    options = {"batch": batch, "allow_contrib": contrib}
    coarse: Step = ("quantize-dynamic", {**options, "floor_db": 0.0})
    products = MATRICES | RECURRENT
    yield Variant(DYNAMIC, (coarse,), products)
    yield Variant(f"{DYNAMIC}, finer", (("quantize-dynamic", options),), products, after=DYNAMIC)


def _does(target: Target, name: str, use: str) -> bool:
    found = target.format_of(name)
    return found is not None and found.use == use


# What repairs rounding, in turn, where the limit was missed.
REPAIRS: tuple[Step, ...] = (("adaround", {}),)
# What makes the file smaller and leaves the time as it is: rows of tables are unpacked as they are picked.
TABLES: Step = ("quantize-weights", {"operators": ["Gather"]})
REST: Step = ("quantize-weights", {"bits": 8, "format": "unpacked"})


def has_tables(model: Model) -> bool:
    """Whether float tables, of which rows are picked, are a notable part of a model."""
    found = sum(int(table.nbytes) for table in _tables(model))
    return found >= max(_NOTABLE_TABLES, _NOTABLE_SHARE * model.nbytes)


def _tables(model: Model) -> list[ir.TensorProtocol]:
    picked = (node for node in model.nodes() if node.op_type == "Gather")
    tables = {id(found): found for n in picked if (found := constant(input_at(n, 0))) is not None}
    return [table for table in tables.values() if table.dtype.is_floating_point()]
