"""16-bit floating point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import compare
from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import constant, is_op, is_read
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.half.choosing import choose
from onnxcomp.quant.half.fallback import Fallback
from onnxcomp.quant.half.operands import knows
from onnxcomp.quant.half.ranges import FORMATS, observe, weight_trouble
from onnxcomp.quant.half.repair import amplifiers
from onnxcomp.quant.half.sites import find_sites
from onnxcomp.runtime import Session
from onnxcomp_passes.convert.half_rewriting import Rewriting, emulate, narrowed
from onnxcomp_passes.convert.inline_functions import InlineFunctions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.quant.half.ranges import Format, Loss
    from onnxcomp.quant.half.sites import Site, Sites

_OBSERVED, _JUDGED, _TAPPED = 32, 8, 4
# Rounds of taking nodes back.
_REPAIRS = 6
_STORED_FROM = 256
# How many nodes are named one by one when they stay.
_NAMED = 40


class ConvertFloat16(Pass):
    """Computes in 16-bit floating point where that is safe.

    Inputs and outputs of the model stay float32 unless asked otherwise. A node stays in float32 when a
    weight or an activation on the samples does not fit 16 bits, when positions, angles or indices are
    computed there, when its operator has no such form in the model's opset, or when the conversions
    around it would cost more than it saves. Without samples, operators that may overflow stay too.
    Local functions are inlined first; bodies of If, Loop and Scan are converted like everything else.

    The file halves. Time is saved on GPUs and NPUs; onnxruntime's CPU provider has few such kernels and
    converts around every node: use `mode=storage` there, which only stores weights in 16 bits.

        x -> Conv(w) -> Relu -> y      x -> Cast -> Conv(w16) -> Relu -> Cast -> y
    """

    name: ClassVar[str] = "convert-float16"
    codes: ClassVar[Mapping[str, str]] = {
        "HLF101": "A node stays in float32, for the reason given.",
        "HLF102": "A weight stays in float32, because 16 bits cannot hold its numbers.",
        "HLF103": "onnxruntime's CPU provider computes in float32 with conversions around most nodes: the "
        "file is half as large, but the model is not faster there. It is meant for GPUs; for a CPU use "
        "mode=storage.",
        "HLF104": "onnxruntime's CPU provider has no kernels for bfloat16. Name another target, or use "
        "mode=storage.",
        "HLF105": "How near the result is to float32 on samples.",
        "HLF106": "On samples the result in 16 bits is not what float32 gives, so the model was left as "
        "it is. Use to=bfloat16 for range, or leave operators out with skip-ops.",
        "HLF107": "The opset of the model does not know the type.",
    }

    to: Literal["float16", "bfloat16"] = "float16"
    """The type: float16 has more digits, bfloat16 the range of float32."""
    mode: Literal["compute", "storage"] = "compute"
    """Compute in 16 bits, or only store weights so and compute as before."""
    keep_io: bool = True
    """Inputs and outputs of the model stay float32."""
    headroom: Annotated[float, Field(ge=1)] = 2.0
    """How many times larger than on the samples an activation may become without overflow."""
    least_sqnr_db: float = 25.0
    """Ratio of signal to noise on the samples below which everything is taken back."""
    skip: tuple[str, ...] = ()
    """Patterns for names of nodes or of their outputs to leave in float32."""
    skip_ops: tuple[str, ...] = ()
    """Operators to leave in float32."""

    @override
    def run(self, ctx: Context) -> None:
        target = FORMATS[self.to]
        if self.mode == "storage":
            self._store(ctx, target)
            return
        if ctx.target_name == "cpu" and self.to == "bfloat16":
            ctx.skip("HLF104", None, "onnxruntime's CPU provider has no kernels for bfloat16")
            return
        if not knows("Cast", ctx.model.opset, target.dtype):
            why = f"opset {ctx.model.opset} has no Cast to {self.to}"
            ctx.skip("HLF107", None, why, "convert-opset first")
            return
        InlineFunctions().run(ctx)
        shapes = ctx.facts.refresh(Shapes())
        sites = find_sites(ctx.model, target.dtype, shapes.dtype, keep_io=self.keep_io)
        self._leave_out(sites)
        seen = self._observe(ctx, sites, shapes, target)
        Fallback(sites, target, shapes.dtype, seen, self.headroom if seen else 1.0).run()
        if self._convert(ctx, sites, shapes, target):
            self._tell(ctx, sites)
            if ctx.target_name == "cpu" and ctx.edit.changed:
                ctx.note("HLF103", None, "the CPU provider runs 16 bits through conversions")

    def _convert(self, ctx: Context, sites: Sites, shapes: ShapeMap, target: Format) -> bool:
        """Converts what may be; on samples, takes nodes back until the outputs are near enough."""
        trial, chosen = _Trial(ctx, sites, shapes, target), set["Site"]()
        for attempt in range(_REPAIRS + 1):
            chosen = choose(sites, shapes.size)
            trouble = trial.trouble(chosen, self.least_sqnr_db) if chosen else ""
            if not trouble:
                break
            if attempt == _REPAIRS or not trial.guilty:
                ctx.edit.rollback()
                ctx.skip("HLF106", None, trouble)
                return False
            for site in trial.guilty:
                site.reason = "it makes the rounding of what it reads large"
        if chosen:
            Rewriting(ctx.model, ctx.edit, sites, chosen, target, shapes.dtype).run()
        if trial.near:
            ctx.note("HLF105", None, trial.near)
        return True

    def _leave_out(self, sites: Sites) -> None:
        for site in sites.found:
            node = site.node
            if node is None:
                continue
            names = (node.name or "", *(value.name or "" for value in node.outputs))
            if node.op_type in self.skip_ops or any(
                fnmatchcase(name, pattern) for pattern in self.skip for name in names
            ):
                site.reason = site.reason or "an option left it out"

    @staticmethod
    def _observe(
        ctx: Context, sites: Sites, shapes: ShapeMap, target: Format
    ) -> Mapping[str, Loss]:
        if ctx.samples is None:
            return {}
        main = ctx.model.graph
        values = [v for v in sites.maker if v.graph is main and not v.is_initializer()]
        return observe(
            ctx.model,
            [value.name or "" for value in values],
            ctx.samples.take(min(_OBSERVED, len(ctx.samples))),
            target,
            sizes={value.name or "": shapes.size(value) or 0 for value in values},
            threads=ctx.threads,
            progress=ctx.progress,
        )

    @staticmethod
    def _tell(ctx: Context, sites: Sites) -> None:
        kept: dict[ir.Node, str] = {}
        for site in sites.found:
            if site.node is not None and site.reason:
                kept.setdefault(site.node, site.reason)
        hint = "" if ctx.samples else "give samples: ranges seen there decide"
        for node, reason in list(kept.items())[:_NAMED]:
            ctx.skip("HLF101", node, reason, hint if "sample" in reason else "")
        if len(kept) > _NAMED:
            ctx.skip("HLF101", None, f"{len(kept) - _NAMED} more nodes stay in float32")

    @staticmethod
    def _store(ctx: Context, target: Format) -> None:
        """Stores weights in 16 bits and converts them back where they are read."""
        made = [n.outputs[0] for n in ctx.model.nodes() if is_op(n, "Constant")]
        for value in [*ctx.model.initializers(), *made]:
            tensor, graph = constant(value), value.graph
            if tensor is None or graph is None or not is_read(value) or value.is_graph_output():
                continue
            if tensor.dtype != ir.DataType.FLOAT or tensor.size < _STORED_FROM:
                continue
            if trouble := weight_trouble(tensor, target):
                ctx.skip("HLF102", value, trouble)
                continue
            maker = value.producer()
            first = next(iter(graph), None) if maker is None else None
            half = ctx.edit.initializer(
                narrowed(tensor, target), name=f"{value.name}_half", graph=graph
            )
            cast = ctx.edit.insert(
                "Cast",
                [half],
                before=first,
                after=maker,
                graph=graph,
                outputs=[f"{value.name}_float"],
                attributes={"to": ir.AttrInt64("to", int(ir.DataType.FLOAT))},
                like=value,
            )
            ctx.edit.replace(value, cast.outputs[0])
            if maker is None:
                ctx.edit.drop_initializer(value)
            else:
                ctx.edit.remove(maker)
            ctx.edit.count("weights in 16 bits")


@dataclass
class _Trial:
    """Rounds on samples as 16 bits would, without leaving a trace in the model.

    Attributes:
        near: How near the last try came to float32.
        guilty: What made rounding large in it.
    """

    ctx: Context
    sites: Sites
    shapes: ShapeMap
    target: Format
    near: str = ""
    guilty: Sequence[Site] = ()

    def trouble(self, chosen: set[Site], least: float) -> str:
        """Returns what speaks against a choice, empty when nothing does or there are no samples."""
        ctx = self.ctx
        if ctx.samples is None:
            return ""
        before, mark = ctx.model.copy(), ctx.edit.mark()
        emulate(Rewriting(ctx.model, ctx.edit, self.sites, chosen, self.target, self.shapes.dtype))
        some = ctx.samples.take(min(_JUDGED, len(ctx.samples)))
        after = ctx.model.copy()
        ctx.edit.rollback(mark)
        with (
            Session.open(before, threads=ctx.threads) as one,
            Session.open(after, threads=ctx.threads) as two,
        ):
            found = compare(one, two, some)
        decibels = found.worst("sqnr_db")
        why = found.reason
        if not why and decibels is not None and not decibels >= least:
            why = f"signal to noise is {decibels:.1f} dB"
        if why:
            few = some.take(min(_TAPPED, len(some)))
            self.guilty = amplifiers(before, after, self.sites, few, threads=ctx.threads)
        elif decibels is not None:
            self.near = f"{decibels:.1f} dB against float32 on {len(some)} samples"
        return why
