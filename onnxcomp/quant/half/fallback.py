"""Why pieces of a model stay in 32 bits: weights and activations that do not fit, exact numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import array, constant, input_at, is_op, standard_op
from onnxcomp.quant.half.ranges import weight_trouble
from onnxcomp.quant.half.sites import Site, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxcomp.quant.half.ranges import Format, Loss
    from onnxcomp.quant.half.sites import Sites

# Results are of ordinary size whatever comes in.
_BOUNDED = frozenset(
    {
        "Atan", "BatchNormalization", "Clip", "Cos", "Div", "Erf", "GroupNormalization",
        "HardSigmoid", "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax",
        "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "Reciprocal", "Sigmoid",
        "Sign", "Sin", "Softmax", "Softsign", "Sqrt", "Tanh",
    }
)  # fmt: skip
# Results can be far larger, or far smaller, than what comes in.
_GROWING = frozenset(
    {
        "CumProd", "CumSum", "Exp", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_PERIODIC = ("Sin", "Cos", "Tan")
# 11 bits of an angle up to this leave less than a hundredth.
_LARGEST_ANGLE = 16.0
# Arithmetic on sizes, positions and indices.
_ARITHMETIC = (
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Expand", "Floor", "Gather", "Identity",
    "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Round", "Slice", "Sqrt",
    "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_DEEPEST = 16
_SMALL_INTEGERS = frozenset({ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8})
_WHOLE = frozenset(
    {
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip


@dataclass
class Fallback:
    """Decides which sites stay in 32 bits because of numbers; writes the reasons into them.

    Attributes:
        sites: The sites.
        target: The 16-bit type.
        dtype: Element type of a value.
        seen: What activations look like, by name; without samples nothing.
        headroom: How much larger than on the samples an activation may become.
    """

    sites: Sites
    target: Format
    dtype: Callable[[ir.Value], Any]
    seen: Mapping[str, Loss]
    headroom: float = 1.0
    _weights: dict[ir.TensorProtocol, str] = field(default_factory=dict)

    def run(self) -> None:
        """Fills in `reason` of every site that has one."""
        doubtful: list[ir.Value] = []
        for site in self.sites.found:
            if reason := self._constants(site):
                _keep(site, reason)
                doubtful += [
                    v for v in site.makes if not self._is_seen(v) and not _is_bounded(site)
                ]
            if self.target.dtype == ir.DataType.FLOAT16:
                doubtful += self._grown(site)
        for value, site in self.sites.maker.items():
            reason = self._trouble(value)
            if reason:
                _keep(site, reason)
                self._keep_readers(value, reason)
        self._spread(doubtful)
        self._keep_exact()

    def _constants(self, site: Site) -> str:
        for value in site.reads():
            tensor = constant(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            if tensor not in self._weights:
                self._weights[tensor] = weight_trouble(tensor, self.target)
            if self._weights[tensor]:
                return f"{value.name}: {self._weights[tensor]}"
        return ""

    def _is_seen(self, value: ir.Value) -> bool:
        return (value.name or "") in self.seen

    def _trouble(self, value: ir.Value) -> str:
        loss = self.seen.get(value.name or "")
        trouble = "" if loss is None else loss.trouble(self.target, self.headroom)
        return f"{value.name}: {trouble}" if trouble else ""

    def _grown(self, site: Site) -> list[ir.Value]:
        """Values that may be too large for float16, as far as no sample tells."""
        node = site.node
        if node is None or not self._may_grow(node):
            return []
        values = [value for value in site.makes if not self._is_seen(value)]
        if values:
            _keep(site, f"{node.op_type} may overflow, and no sample says that it does not")
        return values

    def _may_grow(self, node: ir.Node) -> bool:
        if is_op(node, "Cast"):
            source = node.inputs[0]
            return source is not None and self.dtype(source) in _WHOLE - _SMALL_INTEGERS
        if is_op(node, "Pow"):
            exponent = array(input_at(node, 1), limit=1)
            return exponent is None or not (exponent <= 1).all()
        if is_op(node, "Mul") and node.inputs[0] is node.inputs[1]:
            return True
        return standard_op(node) in _GROWING

    def _spread(self, doubtful: list[ir.Value]) -> None:
        """What reads a doubtful value stays in 32 bits, up to where results are bounded again."""
        todo, known = list(doubtful), set(doubtful)
        while todo:
            value = todo.pop()
            for site in self._keep_readers(value, f"it reads {value.name}, which may not fit"):
                if _is_bounded(site):
                    continue
                for made in site.makes:
                    if made not in known and not self._is_seen(made):
                        known.add(made)
                        todo.append(made)

    def _keep_readers(self, value: ir.Value, reason: str) -> list[Site]:
        found = []
        for slot in slots_of(value):
            site = self.sites.reader.get(slot)
            if site is not None:
                _keep(site, reason)
                found.append(site)
        return found

    def _keep_exact(self) -> None:
        """What positions, sizes and angles are computed from needs more than 11 bits."""
        for site in list(self.sites.found):
            if is_op(site.node, *_PERIODIC) and (
                site.reason or any(self._is_wide(value) for value in site.reads())
            ):
                _keep(site, "an angle needs more digits")
                self._exact(site.reads(), "an angle is computed from it")
        for owner, index in self.sites.indifferent:
            if isinstance(owner, ir.Node) and is_op(owner, "Cast"):
                source = owner.inputs[index]
                if source is not None and self.dtype(owner.outputs[0]) in _WHOLE:
                    self._exact([source], "it becomes a whole number")

    def _is_wide(self, value: ir.Value) -> bool:
        loss = self.seen.get(value.name or "")
        return loss is None or loss.peak > _LARGEST_ANGLE

    def _exact(self, values: Any, reason: str) -> None:  # noqa: ANN401 - any iterable of values
        todo = [(value, 0) for value in values]
        known: set[ir.Value] = set()
        while todo:
            value, depth = todo.pop()
            site = self.sites.maker.get(value)
            if site is None or value in known or site.node is None:
                continue
            known.add(value)
            _keep(site, reason)
            if depth < _DEEPEST and is_op(site.node, *_ARITHMETIC):
                todo += [(read, depth + 1) for read in site.reads()]


def _keep(site: Site, reason: str) -> None:
    site.reason = site.reason or reason


def _is_bounded(site: Site) -> bool:
    return site.node is not None and standard_op(site.node) in _BOUNDED
