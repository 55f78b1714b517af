"""Computes ahead of time what is the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, is_op, is_read
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.folding import reshapes
from onnxcomp_passes.simplify.folding.evaluate import Evaluator
from onnxcomp_passes.simplify.folding.limits import Budget
from onnxcomp_passes.simplify.folding.placing import Placer
from onnxcomp_passes.simplify.folding.waves import Wave
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.analysis.symbolic.vectors import Vector
    from onnxcomp.passbase import Context

# Each round needs what the one before found; chains that are longer wait for the next run.
_ROUNDS = 8
_WAVES = 16
# The newest opset that the oldest supported runtime takes.
_KNOWN_TO_EVERY_RUNTIME = 23

# Bytes that earlier runs on the same model made it larger; in `meta`, so it is not written to files.
_SPENT = "onnxcomp.folded_bytes"


class FoldConstants(Pass):
    """Compute constant expressions, and shapes as far as they are known, ahead of time.

    Everything that can be computed is computed by onnxruntime's own kernels, many nodes in one
    session. Shape arithmetic on partly known dimensions is followed element by element, so that
    `Shape -> Gather -> Concat -> Reshape` becomes a Reshape to a constant, a Flatten, a Squeeze or an
    Unsqueeze where that is possible. Sizes of the inputs may be 0 or 1 or equal by chance, and inputs
    that share a symbol may still differ. One thing is lost, as with onnxruntime's own fusion: where the
    constant has a size to copy (0) and another to infer (-1), a batch of 0 is refused.
    Left alone are random operators, weights that a caller may override, quantized weights, results
    that would make the model grow, and integer arithmetic that is not defined.

        s = Shape(x)     # x: [N, 4, 8]
        n = Gather(s, 0)
        t = Concat(n, [32])            ->        y = Reshape(x, [-1, 32])
        y = Reshape(x, t)
    """

    name: ClassVar[str] = "fold-constants"
    lossless: ClassVar[bool] = True
    preserves: ClassVar[frozenset[type[object]]] = frozenset({Shapes})
    codes: ClassVar[Mapping[str, str]] = {
        "FLD101": "A constant expression was left in place: computing it ahead of time would make the model "
        "larger, take too long, or is not defined. Raise the limits of fold-constants if that is wanted.",
        "FLD102": "onnxruntime could not compute a constant expression, so it was left in place.",
    }

    node_bytes: Annotated[int, Field(ge=0)] = 64 * 1024
    """Size in bytes that one result may have even if nothing goes in exchange."""
    growth: Annotated[int, Field(ge=0)] = 256 * 1024
    """Bytes by which the whole model may grow."""
    flops: Annotated[float, Field(ge=0)] = 1e9
    """Arithmetic operations that may be spent."""

    @override
    def run(self, ctx: Context) -> None:
        left = self.growth - ctx.model.core.meta.get(_SPENT, 0)
        folding = _Folding(self, ctx, left)
        folding.run()
        if folding.budget.exceeded:
            # Half of what could grow would leave the rest to the next run; all or nothing settles.
            ctx.edit.rollback()
            ctx.facts.keep(())
            folding = _Folding(self, ctx, 0)
            folding.run()
        folding.report()
        spent = max(0, left - folding.budget.growth) if left else 0
        ctx.model.core.meta[_SPENT] = self.growth - left + spent


class _Folding:
    """The state of one run."""

    def __init__(self, options: FoldConstants, ctx: Context, growth: int) -> None:
        self.ctx = ctx
        self.budget = Budget(options.node_bytes, growth, options.flops)
        self.evaluator = Evaluator()
        self.placer = Placer(ctx.model, ctx.edit)

    def run(self) -> None:
        """Folds until nothing is left that may be folded."""
        facts = self.ctx.facts
        self.placer.lift_constants()
        # What is constant needs no inference over the whole model, and leaves less of it to infer.
        shapes = facts.refresh(Shapes()) if self.evaluate() else facts.get(Shapes())
        for _ in range(_ROUNDS):
            reasoned = self.reason(shapes)
            if not (self.evaluate() or reasoned) or not self.placer.informs(shapes):
                break
            shapes = facts.refresh(Shapes())

    def reason(self, shapes: ShapeMap) -> bool:
        """Replaces shape arithmetic whose result is known, and simplifies targets of Reshape."""
        mark = self.ctx.edit.mark()
        for value, vector in list(shapes.vectors()):
            if vector.known and constant(value) is None and _is_in_use(value):
                self.placer.place(value, ir.tensor(vector.array()))
        self.share(shapes)
        for node in list(self.ctx.model.nodes()):
            if is_op(node, "Reshape"):
                reshapes.simplify(node, shapes, self.placer)
        return self.ctx.edit.mark() != mark

    def share(self, shapes: ShapeMap) -> None:
        """Computes sizes once that are the same however they are come by."""
        first: dict[tuple[ir.Graph | None, Vector], ir.Value] = {}
        for value, vector in list(shapes.vectors()):
            node = value.producer()
            if node is None or node.graph is None or value.is_graph_output() or not value.uses():
                continue
            if vector.known or None in vector.items:
                continue
            key = (node.graph, vector)
            known = first.get(key)
            if known is None or _is_gone(known):
                first[key] = value
            else:
                self.ctx.edit.replace(value, known)
                self.ctx.edit.count("sizes shared")
                self.placer.drop(node)

    def evaluate(self) -> bool:
        """Evaluates waves of nodes until none is left that may be; returns whether any was."""
        mark = self.ctx.edit.mark()
        self.placer.skip_identities()
        versions = scope_versions(self.ctx.model)
        for _ in range(_WAVES):
            placed = False
            for version in sorted(set(versions.values())):
                scopes = [graph for graph, found in versions.items() if found == version]
                placed |= self._wave(scopes, version)
            if not placed:
                break
        return self.ctx.edit.mark() != mark

    def _wave(self, scopes: list[ir.Graph], version: int) -> bool:
        runtime = _evaluated_as(version)
        wave = Wave(self.budget, version, runtime)
        nodes = wave.choose([node for graph in scopes for node in graph])
        if not nodes:
            return False
        results = self.evaluator.run(nodes, runtime)
        for node in nodes:
            if node in self.evaluator.failures:
                self.budget.refusals[node] = "failed"
        placed = [self.placer.place(value, ir.tensor(found)) for value, found in results.items()]
        for node in nodes:
            self.placer.drop(node)
            if node.graph is not None:
                self.budget.refusals.setdefault(node, "")
        return any(placed)

    def report(self) -> None:
        """Says what was left in place."""
        for node, why in self.evaluator.failures.items():
            if node.graph is not None:
                self.ctx.skip("FLD102", node, why)
        for node, why in self.budget.refusals.items():
            if node.graph is not None and why and node not in self.evaluator.failures:
                self.ctx.skip("FLD101", node, why)


def _evaluated_as(version: int) -> int:
    """The opset that nodes are evaluated as: operators that did not change since mean the same."""
    if version <= _KNOWN_TO_EVERY_RUNTIME:
        return version
    from onnxcomp.runtime import newest_opset

    return min(version, newest_opset())


def _is_gone(value: ir.Value) -> bool:
    node = value.producer()
    return node is None or node.graph is None


def _is_in_use(value: ir.Value) -> bool:
    return is_read(value)
