"""Writes planned weights into a model, and looks at what the provider makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.quant.provider_graph import ProviderGraph
from onnxcomp.runtime import optimized_model
from onnxcomp_passes.quantize.weight_bias import correct_bias

if TYPE_CHECKING:
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp_passes.quantize.weight_forms import Writer
    from onnxcomp_passes.quantize.weight_packing import Stored
    from onnxcomp_passes.quantize.weight_plans import Plan
    from onnxcomp_passes.quantize.weight_sites import Site


class Weights:
    """Writes weights; keeps the numbers where they may have to be written in another form.

    Attributes:
        left: Weights that were left in float after all.
    """

    def __init__(self, ctx: Context, writer: Writer, *, memory: bool) -> None:
        self._ctx, self._writer, self._memory = ctx, writer, memory
        self._mark, self._stats = ctx.edit.mark(), ctx.edit.stats.copy()
        self._done: list[tuple[Plan, Stored, Stored | None]] = []
        self._packed: dict[str, Plan] = {}
        self.left: set[Site] = set()

    def write(self, plan: Plan, stored: Stored, table: Stored | None) -> None:
        """Writes one weight."""
        if self._memory:
            self._done.append((plan, stored, table))
        site, writer = plan.site, self._writer
        if stored.shift is not None:
            correct_bias(self._ctx.edit, site, stored.shift)
        if plan.form == "unpacked" and not site.is_table:
            writer.unpacked(site, stored)
            return
        shapes = self._ctx.facts.get(Shapes())
        shared: dict[str, ir.Value] = {}
        for use in site.uses:
            if use.kind == "table":
                rank = shapes.rank(use.node.inputs[1])
                found = stored if table is None else table
                writer.table(site, use, found, 1 if rank is None else rank, shared)
            elif plan.form == "kernel":
                writer.matmul_n_bits(site, use, stored)
            else:
                node = writer.dequantized(site, use, stored)
                self._packed[node.outputs[0].name or ""] = plan
        writer.drop(site)

    def check(self) -> None:
        """Looks at the graph that the provider runs; what it left unfused is unpacked instead."""
        ctx = self._ctx
        found = optimized_model(ctx.model, provider=ctx.target.provider, weights=False)
        graph = ProviderGraph(found)
        left = {
            name
            for node in graph.nodes
            for name in node.output
            if node.op_type == "DequantizeLinear"
        }
        strays = {self._packed[name].site for name in left & set(self._packed)}
        if not strays:
            return
        ctx.edit.rollback(self._mark)
        ctx.edit.stats = self._stats
        done, self._memory = self._done, False
        for plan, stored, table in done:
            if plan.site in strays:
                ctx.skip("WQT103", plan.site.value, "the provider left it as two nodes")
                if stored.grid.rows % (plan.scheme.block or stored.grid.rows):
                    self.left.add(plan.site)
                    continue
                plan = replace(plan, form="unpacked")
            self.write(plan, stored, table)
