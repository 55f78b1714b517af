"""Back to float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from typing_extensions import override

from onnxcomp.ir.ops import array, is_read
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.recognize import form_of, is_quantized
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.float_twins import Twins, grid_limits, grid_of
from onnxcomp_passes.quantize.integer_products import Product
from onnxcomp_passes.quantize.lowering import RULES, Lowering
from onnxcomp_passes.simplify.eliminate_dead import EliminateDead
from onnxcomp_passes.simplify.fold_constants import FoldConstants

if TYPE_CHECKING:
    from onnxcomp.ir import ir

_OBSERVED = 32
_SEEN_FROM = 0.005
_NO_LIMIT = 1 << 40


class Dequantize(Pass):
    """Turns a quantized model back to float.

    Reads QDQ models, operators on integers (QLinearConv, QLinearMatMul, QGemm, those of com.microsoft),
    dynamic quantization (DynamicQuantizeLinear with MatMulInteger or ConvInteger, DynamicQuantizeLSTM)
    and stored weights (MatMulNBits, GatherBlockQuantized, blocks, palettes, signs), and writes plain operators with float
    weights. Stored integers keep the values that they stand for; float weights that were rounded in the
    graph, and activations, are no longer rounded.

    Rounding to integers also cuts off. Where the smallest integer stands for zero, a Relu may have been
    left out because of that: a Relu is put back unless what comes in is never negative. Samples show
    where else numbers are cut off; a Clip stays there.

        x -> Q -> DQ -> Conv -> Q -> DQ -> y      x -> Conv -> Relu -> y
                          |                               |
                          DQ <- w (int8)                  w (float)
    """

    name: ClassVar[str] = "dequantize"
    codes: ClassVar[Mapping[str, str]] = {
        "DQT101": "Nothing in the model is quantized.",
        "DQT102": "A quantized node stays, for the reason given.",
        "DQT103": "What was quantized, and by which tool as far as the file tells.",
    }

    clip: Literal["auto", "always", "never"] = "auto"
    """Where the limits of integers are kept: where they seem to matter, everywhere, or nowhere."""

    @override
    def run(self, ctx: Context) -> None:
        found = is_quantized(ctx.model)
        if not found:
            ctx.note("DQT101", None, "nothing in the model is quantized")
            return
        ctx.note("DQT103", None, str(found))
        twins = Twins(ctx, self._saturation(ctx), self.clip)
        reasons = _lower(ctx, twins)
        for node in list(ctx.model.nodes()):
            if node.op_type == "DequantizeLinear" and node.graph is not None:
                _replace(ctx, twins, node)
        if ctx.edit.changed:
            # Where Q/DQ stood between a product and its scales, nothing does now.
            EliminateDead().run(ctx)
            reasons |= _lower(ctx, Twins(ctx, {}, self.clip))
        if "stored" in found.forms:
            _expand(ctx)
        if ctx.edit.changed:
            EliminateDead().run(ctx)
        for node in ctx.model.nodes():
            if form_of(node):
                ctx.skip("DQT102", node, reasons.get(node, "its integers are used as such"))

    def _saturation(self, ctx: Context) -> dict[str, float]:
        """How much of each quantized activation is cut off on the samples."""
        if ctx.samples is None or self.clip != "auto":
            return {}
        nodes = [n for n in ctx.model.graph if n.op_type == "QuantizeLinear" and _is_single(n)]
        inputs = {value.name for value in ctx.model.graph.inputs}
        reads = {node: (node.inputs[0].name or "") for node in nodes if node.inputs[0] is not None}
        taps = sorted({name for name in reads.values() if name not in inputs})
        outside = dict.fromkeys((node.outputs[0].name or "" for node in reads), 0.0)
        some = ctx.samples.take(min(_OBSERVED, len(ctx.samples)))
        with Session.open(ctx.model, threads=ctx.threads, outputs=taps) as session:
            for feeds in some:
                seen = {**feeds, **session.run(feeds)}
                for node, name in reads.items():
                    share = _share_outside(node, seen.get(name))
                    key = node.outputs[0].name or ""
                    outside[key] += share / len(some)
        return {name: share if share > _SEEN_FROM else 0.0 for name, share in outside.items()}


def _is_single(node: ir.Node) -> bool:
    return grid_limits(node) is not None and array(node.inputs[0], limit=0) is None


def _share_outside(node: ir.Node, values: object) -> float:
    limits = grid_limits(node)
    if limits is None or not isinstance(values, np.ndarray) or not values.size:
        return 0.0
    step = (limits[1] - limits[0]) / 510.0
    outside = (values < limits[0] - step) | (values > limits[1] + step)
    return float(np.count_nonzero(outside)) / values.size


def _lower(ctx: Context, twins: Twins) -> dict[ir.Node, str]:
    """Writes operators on integers in float; returns what stays, and why."""
    reasons: dict[ir.Node, str] = {}
    for node in list(ctx.model.nodes()):
        if node.graph is None or not form_of(node):
            continue
        if node.op_type in {"MatMulInteger", "ConvInteger"}:
            reason = Product(node, twins).run()
        elif node.op_type in RULES:
            reason = Lowering(node, twins, ctx.model.opset).run()
        elif node.op_type in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}:
            continue
        else:
            reason = "there is no float form of it in standard operators here"
        if reason:
            reasons[node] = reason
    return reasons


def _expand(ctx: Context) -> None:
    """Computes weights that plain operators make of stored integers."""
    FoldConstants(node_bytes=_NO_LIMIT, growth=_NO_LIMIT, flops=float(_NO_LIMIT)).run(ctx)
    ctx.facts.keep(())


def _replace(ctx: Context, twins: Twins, node: ir.Node) -> None:
    """Puts the float value in place of what a DequantizeLinear makes."""
    if not is_read(node.outputs[0]):
        return
    twin = twins.of(node.inputs[0], grid_of(node))
    if twin is None:
        return
    ctx.edit.replace(node.outputs[0], twin)
    ctx.edit.count("values back in float")
