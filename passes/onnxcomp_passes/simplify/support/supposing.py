"""What rules would do if the model had a newer opset; asked only for an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from onnxcomp.analysis.facts import Facts
from onnxcomp.diagnostics import Location, Severity
from onnxcomp.ir.ops import standard_op
from onnxcomp.rules import Match
from onnxcomp_passes.simplify.support.base import OpsetFloor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.facts import Analysis
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp.rules import Rule


class _Supposing(Facts):
    """The facts of a model, but for its opset."""

    def __init__(self, facts: Facts, opset: int) -> None:
        self._real = facts
        self._opset = opset

    @override
    def get(self, question: Analysis[Any]) -> Any:
        return self._opset if isinstance(question, OpsetFloor) else self._real.get(question)


def report_newer(ctx: Context, rules: Sequence[Rule], code: str, minimum: int) -> None:
    """Reports nodes that a rule would rewrite if only the opset were newer.

    Args:
        ctx: Where to look, and to report to; what has a near-miss already is left alone.
        rules: The rules of the pass.
        code: The code of its near-misses.
        minimum: The opset from which the pass works at all.
    """
    floor = ctx.facts.get(OpsetFloor())
    if not 0 < floor < _newest():
        return
    near = {remark.where for remark in ctx.diagnostics if remark.severity is Severity.NEAR}
    for node in ctx.model.nodes():
        candidates = [rule for rule in rules if standard_op(node) in rule.ops]
        if candidates and Location.of(node) not in near:
            _report(ctx, node, candidates, code, max(floor, minimum))


def _newest() -> int:
    from onnx import defs

    # Beyond what converters and the runtime know, a hint would lead nowhere.
    return min(int(defs.onnx_opset_version()), 25)


def _report(ctx: Context, node: ir.Node, rules: Sequence[Rule], code: str, first: int) -> None:
    floor = ctx.facts.get(OpsetFloor())
    newest = _Supposing(ctx.facts, _newest())
    for rule in rules:
        if floor >= first and isinstance(rule.match(node, ctx.facts), Match):
            return  # it is going to be done
        if not isinstance(rule.match(node, newest), Match):
            continue
        opset = next(
            opset
            for opset in range(max(first, floor + 1), _newest() + 1)
            if isinstance(rule.match(node, _Supposing(ctx.facts, opset)), Match)
        )
        ctx.near(
            code,
            node,
            f"opset {opset} has an operator for that, the model has opset {floor} ({rule.name})",
            f"optimize --opset {opset}",
        )
        return
