"""Quantization to numbers of 8 bits with an exponent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import Reference, compare
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant
from onnxcomp.passbase import Context, NeedsSamples, Pass
from onnxcomp.quant.calibrate import calibrate
from onnxcomp.quant.candidates import Filter, find_candidates
from onnxcomp.quant.dynamic import rounded_node
from onnxcomp.quant.float8 import FORMATS, Float8
from onnxcomp.quant.ranges import choose_range
from onnxcomp.quant.scheme import QScheme
from onnxcomp.runtime import Session
from onnxcomp.targets import load_target
from onnxcomp_passes.quantize.opset import find_ranks, obstacle, raise_to

if TYPE_CHECKING:
    from onnxcomp.ir import Edit
    from onnxcomp.quant.candidates import Candidate
    from onnxcomp.quant.observers import Histogram

# The first opset, and the version of the file format, that have these types.
_OPSET, _IR_VERSION = 19, 9
_TABLE = "tensorrt"
_JUDGED = 8


class QuantizeFloat8(Pass):
    """Stores weights and activations of Conv, Gemm and MatMul as float8, for GPUs that compute with it.

    Scales are the largest magnitude seen divided by the largest number of the format (448 or 57344),
    symmetric as TensorRT wants them: the zero point is 0, biases stay float, Q/DQ stand only where
    weighted layers read. One Q/DQ serves all readers of an activation.

        x -> Conv -> y      x -> Q -> DQ -> Conv -> y
              |                              |
              w (float)                     DQ <- w (float8, a scale for each channel)

    A CPU computes this in float, with the rounding: it can check numbers there but gains no speed.
    onnxruntime (1.31) mistakes float8 for int8 and then refuses the model, or drops the Relu in front of
    a Q, which is silently wrong. In sessions of your own, also with TensorRT, set
    `session.disable_quant_qdq` to 1 and give `disabled_optimizers=["ReluQuantRewrite"]`; onnxcomp does
    both by itself.
    """

    name: ClassVar[str] = "quantize-float8"
    needs = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "FPE101": "The model has activations that are rounded already; it was left as it is. Start from "
        "the float model.",
        "FPE102": "float8 needs opset 19, and an operator of this model means something else there. Export "
        "the model with opset 19 or later.",
        "FPE103": "The node stays float: there is no float8 form of it, or an option left it out.",
        "FPE104": "Nothing in the model has a float8 form.",
        "FPE105": "How near the result comes to float on the samples. On a CPU float8 is computed in float "
        "and gains no time; on a GPU without float8 units likewise.",
    }

    format: Literal["e4m3fn", "e5m2"] = "e4m3fn"
    """More digits, or more range."""
    per_channel: bool = True
    """One scale for each output channel of a weight instead of one for all."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 100.0
    """Share of an activation's values that is kept on each side; what is beyond becomes the largest."""
    products: bool = False
    """Also products of two activations, as in attention."""
    skip: tuple[str, ...] = ()
    """Patterns for names of nodes or of their outputs to leave in float."""
    skip_ops: tuple[str, ...] = ()
    """Operators to leave in float."""
    only: tuple[str, ...] = ()
    """Operators to quantize, all others stay float."""

    @override
    def run(self, ctx: Context) -> None:
        if node := rounded_node(ctx.model):
            ctx.skip("FPE101", node, "activations are rounded already; the model was left as it is")
            return
        first = next(iter(ctx.samples or ()), {})
        ranks = find_ranks(ctx.model, ctx.facts.get(Shapes()), first, _OPSET)
        if reason := obstacle(ctx.model, ctx.edit, ranks, _OPSET):
            ctx.skip("FPE102", None, reason, hint="export the model with opset 19 or later")
            return
        mark = ctx.edit.mark()
        raise_to(ctx.model, ctx.edit, ranks, _OPSET)
        chosen = self._candidates(ctx)
        seen = self._seen(ctx, chosen)
        chosen = [c for c in chosen if _is_seen(ctx, c, seen)]
        if not chosen:
            ctx.edit.rollback(mark)
            ctx.skip("FPE104", None, "nothing in the model has a float8 form")
            return
        judged = list(itertools.islice(ctx.samples or (), _JUDGED))
        with Session.open(ctx.model, threads=ctx.threads) as session:
            reference = Reference(session, judged)
            self._write(ctx, chosen, seen)
            ctx.note("FPE105", None, f"{_decibels(ctx, reference):.1f} dB on the samples")

    def _candidates(self, ctx: Context) -> list[Candidate]:
        shapes = ctx.facts.refresh(Shapes())
        options = Filter(self.skip, self.only, self.skip_ops)
        target = load_target(_TABLE)
        weighted = {kind for row in target.family if row.weight for kind in row.types}
        found = find_candidates(ctx.model.graph, target, shapes, options)
        for node, reason in found.refused:
            if node.op_type in weighted:
                ctx.skip("FPE103", node, reason)
        return [c for c in found if self._is_wanted(ctx, c)]

    def _is_wanted(self, ctx: Context, candidate: Candidate) -> bool:
        if candidate.is_product_of_activations:
            if not self.products or len(candidate.inputs) != 2:
                ctx.skip("FPE103", candidate.node, "it multiplies two activations")
                return False
            return True
        if candidate.weight is None:
            return False
        tensor = constant(candidate.node.inputs[candidate.weight])
        if tensor is None or not tensor.size or not np.isfinite(tensor.numpy()).all():
            ctx.skip("FPE103", candidate.node, "its weight is empty, NaN or infinite")
            return False
        return True

    def _seen(self, ctx: Context, chosen: list[Candidate]) -> Mapping[str, Histogram]:
        shapes = ctx.facts.get(Shapes())
        values = {v.name or "": v for c in chosen for v in c.inputs}
        if not values:
            return {}
        sizes = {name: shapes.size(value) or 0 for name, value in values.items()}
        return calibrate(
            ctx.model,
            list(values),
            ctx.samples or (),
            sizes=sizes,
            threads=ctx.threads,
            progress=ctx.progress,
        )

    def _write(self, ctx: Context, chosen: list[Candidate], seen: Mapping[str, Histogram]) -> None:
        writer = Writer(ctx.model.graph, ctx.edit, FORMATS[self.format], self.per_channel)
        for candidate in chosen:
            for index in candidate.activations:
                value = candidate.node.inputs[index]
                if value is not None:
                    writer.activation(candidate.node, index, self._reach(seen[value.name or ""]))
            if candidate.weight is not None:
                writer.weight(candidate, candidate.weight)
        writer.finish()
        ctx.edit.require_ir_version(_IR_VERSION)
        ctx.edit.count("nodes in float8", len(chosen))

    def _reach(self, seen: Histogram) -> float:
        scheme = QScheme("int8", symmetric=True)
        low, high = choose_range(seen, "percentile", scheme, percentile=self.percentile)
        return max(abs(low), abs(high))


class Writer:
    """Puts Q/DQ of float8 in front of nodes."""

    def __init__(self, graph: ir.Graph, edit: Edit, number: Float8, per_channel: bool) -> None:
        self._graph = graph
        self._edit = edit
        self._number = number
        self._per_channel = per_channel
        self._restored: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[ir.Value, int | None], tuple[ir.Value, ir.Value]] = {}
        self._freed: list[ir.Value] = []

    def activation(self, node: ir.Node, index: int, reach: float) -> None:
        """Makes a node read an activation through Q and DQ, which all readers share."""
        value = node.inputs[index]
        if value is None:
            raise ValueError(f"no input {index}: {node.op_type} {node.name}")
        if value not in self._restored:
            name = value.name or ""
            scale = self._constant(self._number.scale(reach), f"{name}_scale")
            zero = self._constant(np.zeros((), self._number.array), f"{name}_zero_point")
            quantize = self._edit.insert(
                "QuantizeLinear", [value, scale, zero], before=node, outputs=[f"{name}_float8"]
            )
            self._edit.set_type(quantize.outputs[0], self._number.dtype, value.shape)
            restored = self._edit.insert(
                "DequantizeLinear",
                [quantize.outputs[0], scale, zero],
                before=node,
                outputs=[f"{name}_dequantized"],
                like=value,
            )
            self._restored[value] = restored.outputs[0]
            self._edit.count("activations quantized")
        self._edit.set_input(node, index, self._restored[value])

    def weight(self, candidate: Candidate, index: int) -> None:
        """Stores a weight as float8, with a DQ in front of its reader."""
        node = candidate.node
        value = node.inputs[index]
        tensor = constant(value)
        if value is None or tensor is None:
            raise ValueError(f"not a constant weight: {node.op_type} {node.name}")
        axis = _axis(candidate, len(tensor.shape)) if self._per_channel else None
        if (value, axis) not in self._weights:
            self._weights[value, axis] = self._stored(value, tensor, axis)
            self._freed.append(value)
        stored, scale = self._weights[value, axis]
        restored = self._edit.insert(
            "DequantizeLinear",
            [stored, scale],
            before=node,
            attributes={"axis": axis},
            outputs=[f"{stored.name}_dequantized"],
        )
        self._edit.set_type(restored.outputs[0], ir.DataType.FLOAT, value.shape)
        self._edit.set_input(node, index, restored.outputs[0])

    def finish(self) -> None:
        """Drops the weights in float that nobody reads any more."""
        for value in self._freed:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            maker = value.producer()
            if maker is not None:
                self._edit.remove(maker)
            elif value.is_initializer():
                self._edit.drop_initializer(value)

    def _stored(
        self, value: ir.Value, tensor: ir.TensorProtocol, axis: int | None
    ) -> tuple[ir.Value, ir.Value]:
        others = None if axis is None else tuple(i for i in range(len(tensor.shape)) if i != axis)
        scale = self._number.scale(np.abs(tensor.numpy()).max(axis=others))
        number = self._number

        def numbers() -> ir.TensorProtocol:
            return ir.Tensor(number.quantize(tensor.numpy(), scale, axis), dtype=number.dtype)

        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(numbers, dtype=number.dtype, shape=shape)
        stored = self._constant(lazy, f"{value.name}_float8")
        self._edit.count("weights quantized")
        return stored, self._constant(scale, f"{stored.name}_scale")

    def _constant(self, contents: Any, name: str) -> ir.Value:  # noqa: ANN401
        return self._edit.initializer(contents, name=name, graph=self._graph)


def _axis(candidate: Candidate, rank: int) -> int | None:
    """The axis of the output channels of a weight."""
    rule = candidate.family.weight
    if rule is None or (candidate.node.op_type == "MatMul" and rank != 2):
        return None
    axis = rule.axis % rank
    transposed = rule.transposed_by and attribute(candidate.node, rule.transposed_by, 0)
    return 1 - axis if transposed else axis


def _is_seen(ctx: Context, candidate: Candidate, seen: Mapping[str, Histogram]) -> bool:
    found = [seen.get(value.name or "") for value in candidate.inputs]
    if all(histogram is not None and histogram.count for histogram in found):
        return True
    ctx.skip("FPE103", candidate.node, "its activations are empty or not float32")
    return False


def _decibels(ctx: Context, reference: Reference) -> float:
    with Session.open(ctx.model, threads=ctx.threads) as session:
        result = compare(reference, session)
    found = result.worst("sqnr_db")
    return -math.inf if result.reason else math.inf if found is None else found
