"""Rules about what the provider makes of a model: conversions that stay, kernels that are slow."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.diagnostics import Severity
from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, input_at, standard_op, use_count
from onnxcomp.lint.bypass import bypass, in_float, quantizer_of
from onnxcomp.lint.grid import SIGNED
from onnxcomp.lint.placement import Edge
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.lint.weights import fold_dq, rounded_by_runtime
from onnxcomp.quant.fusion_report import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View
    from onnxcomp.quant.fusion_report import Leftover

# From this size on, float weights are worth a warning of their own.
_LARGE = 1 << 9


def not_loaded(view: View) -> Iterator[Finding]:
    """The provider does not take the model at all."""
    if view.placement.problem:
        yield finding("model", f"does not load: {view.placement.problem}")


def islands(view: View) -> Iterator[Finding]:
    """Q and DQ pairs whose both sides run in float: two conversions for nothing."""
    placement = view.placement
    for edge, found in placement.edges.items():
        quantizer = quantizer_of(edge.dequantizer)
        before = None if quantizer is None else _float_in_front(view, quantizer)
        if quantizer is None or before is None:
            continue
        if quantizer not in placement.quantizers and not _all_left(view, quantizer):
            continue
        why = before.why if before.reason is not Reason.INPUT else found.why
        if why != found.why and before.reason is not Reason.REQUANTIZE:
            why = f"{before.why}; {found.why}"
        yield finding(
            edge.reader,
            f"float on both sides of Q and DQ: {why}",
            partial(_bypass_edge, edge, view.model.opset),
        )


def _float_in_front(view: View, quantizer: ir.Node, depth: int = 8) -> Leftover | None:
    """Why what a Q reads was float, also past operators that hand on bytes; None if it was not."""
    found = view.placement.quantizers.get(quantizer)
    if found is not None or depth == 0:
        return found
    value = quantizer.inputs[0]
    moving = None if value is None else value.producer()
    family = None if moving is None else view.target.family_of(standard_op(moving))
    if moving is None or family is None or family.role != "follow":
        return None
    source = view.activation_dq(input_at(moving, 0))
    first = None if source is None else quantizer_of(source)
    return None if first is None else _float_in_front(view, first, depth - 1)


def _all_left(view: View, quantizer: ir.Node) -> bool:
    """Whether all readers behind a Q run in float."""
    readers = view.dq_readers(quantizer)
    if readers is None or any(dq.outputs[0].is_graph_output() for dq in readers):
        return False
    uses = [Edge(dq, use.node, use.idx) for dq in readers for use in dq.outputs[0].uses()]
    return all(edge in view.placement.edges for edge in uses)


def _bypass_edge(edge: Edge, opset: int, edit: Edit) -> None:
    """Lets one reader read the float value in front of the Q."""
    quantizer = quantizer_of(edge.dequantizer)
    if quantizer is None or edge.reader.graph is None or edge.dequantizer.graph is None:
        return
    if edge.reader.inputs[edge.index] is edge.dequantizer.outputs[0]:
        value = in_float(quantizer, opset, edit)
        if value is not None:
            edit.set_input(edge.reader, edge.index, value)


def unpacked(view: View) -> Iterator[Finding]:
    """Stored tensors that are turned into float in every run."""
    folded: dict[ir.Node, list[tuple[Edge, Leftover]]] = {}
    for edge, found in view.placement.edges.items():
        if constant(input_at(edge.dequantizer, 0)) is not None:
            folded.setdefault(edge.dequantizer, []).append((edge, found))
    for node, edges in folded.items():
        tensor = constant(input_at(node, 0))
        if tensor is None:
            continue
        # The runtime would round such a weight again, with one scale for all channels.
        rounded = any(e.index == 1 and rounded_by_runtime(view, e.reader) for e, _ in edges)
        complete = len(edges) == use_count(node.outputs[0]) and not rounded
        size = tensor.size * 4 - tensor.nbytes
        cost = f", for {size} bytes more" if tensor.size >= _LARGE else ""
        yield finding(
            edges[0][0].reader,
            f"a stored tensor of {tensor.size} numbers is turned into float in every run: {edges[0][1].why}",
            partial(fold_dq, node) if complete else None,
            hint=f"--fix stores it in float{cost}" if complete else "",
            severity=None if tensor.size >= _LARGE else Severity.NOTE,
        )


def borders(view: View) -> Iterator[Finding]:
    """Conversions between a part in int8 and one in float."""
    placement = view.placement
    inner = {edge.dequantizer.inputs[0] for edge in placement.edges}
    for node, found in placement.quantizers.items():
        if node.outputs[0] not in inner:
            yield _border(node, found)
    for edge, found in placement.edges.items():
        quantizer = quantizer_of(edge.dequantizer)
        stored = constant(input_at(edge.dequantizer, 0)) is not None
        if not stored and (quantizer is None or quantizer not in placement.quantizers):
            yield _border(edge.dequantizer, found)
    for node, found in placement.ends.items():
        yield _border(node, found)
    for found in placement.made:
        yield finding(found.operator, f"put in by the provider: {found.why}")


def _border(node: ir.Node, found: Leftover) -> Finding:
    severity = Severity.WARNING if found.reason is Reason.UNKNOWN else None
    side = "in front of it" if found.operator == "QuantizeLinear" else "behind it"
    return finding(node, f"converts between int8 and float {side}: {found.why}", severity=severity)


def convolution_at_run(view: View) -> Iterator[Finding]:
    """ConvInteger, which the quantizer of onnxruntime writes for dynamic quantization."""
    if view.target.provider != "cpu":
        return
    for node in view.nodes:
        if standard_op(node) != "ConvInteger":
            continue
        found = _around_conv_integer(node)
        yield finding(
            node,
            "a Conv whose input is quantized in every run is slower than in float, about ten times",
            None if found is None else partial(_float_conv, node, *found),
            hint="" if found else "quantize Conv statically, or leave it float",
        )


def _around_conv_integer(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Node] | None:
    """The DynamicQuantizeLinear, the weight's scale, and the Mul that ends the group."""
    first, zero = input_at(node, 0), input_at(node, 2)
    maker = None if first is None else first.producer()
    if maker is None or maker.op_type != "DynamicQuantizeLinear" or len(maker.outputs) != 3:
        return None
    if zero is not maker.outputs[2] or constant(input_at(node, 1)) is None:
        return None
    cast = _only_reader(node.outputs[0], "Cast")
    product = None if cast is None else _only_reader(cast.outputs[0], "Mul")
    if cast is None or product is None:
        return None
    others = [value for value in product.inputs if value is not cast.outputs[0]]
    scales = others[0].producer() if len(others) == 1 and others[0] is not None else None
    if scales is None or scales.op_type != "Mul":
        return None
    weight = [v for v in scales.inputs if v is not maker.outputs[1]]
    if len(weight) != 1 or weight[0] is None or constant(weight[0]) is None:
        return None
    return maker, weight[0], product


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != kind:
        return None
    return uses[0].node


def _float_conv(
    node: ir.Node, maker: ir.Node, scale: ir.Value, product: ir.Node, edit: Edit
) -> None:
    """Puts a Conv with a float weight in the place of the group."""
    tensor, steps, graph = constant(node.inputs[1]), constant(scale), node.graph
    zero = constant(input_at(node, 3)) if input_at(node, 3) is not None else None
    if tensor is None or steps is None or graph is None:
        return
    numbers = tensor.numpy().astype(np.float32)
    shift = 0 if zero is None else zero.numpy().astype(np.float32)
    spread = (-1, *([1] * (numbers.ndim - 1)))
    if np.ndim(shift) and np.size(shift) > 1:
        shift = np.reshape(shift, spread)
    step = steps.numpy().astype(np.float32)
    if step.size not in {1, numbers.shape[0]} or np.size(shift) not in {1, numbers.shape[0]}:
        return
    weight = (numbers - shift) * step.reshape(spread if step.size > 1 else ())
    name = node.inputs[1].name if node.inputs[1] is not None else "weight"
    made = edit.insert(
        "Conv",
        [
            maker.inputs[0],
            edit.initializer(weight.astype(np.float32), name=f"{name}_float", graph=graph),
        ],
        before=node,
        attributes=dict(node.attributes),
        like=product.outputs[0],
        name=f"{node.name}_float",
    )
    edit.replace(product.outputs[0], made.outputs[0])


def pooled_bytes(view: View) -> Iterator[Finding]:
    """MaxPool of bytes with channels in front, for which onnxruntime has a slow kernel only."""
    for node in view.placement.slow.get("MaxPool", ()):
        source = view.activation_dq(input_at(node, 0))
        quantizer = None if source is None else quantizer_of(source)
        behind = [use.node.op_type for use in node.outputs[0].uses()]
        fix = None
        if quantizer in view.placement.quantizers and source is not None:
            alone = use_count(source.outputs[0]) == 1
            if alone and "QuantizeLinear" not in behind:
                fix = partial(bypass, view.model.opset, source)
        text = "pools bytes with channels in front: slower than in float, up to 20 times"
        yield finding(node, text, fix, hint="" if fix else "leave it float, with no Q around it")


def softmax_of_bytes(view: View) -> Iterator[Finding]:
    """Softmax in int8, which is a table and slower than the float kernel."""
    for node in view.placement.slow.get("QLinearSoftmax", ()):
        source = view.activation_dq(input_at(node, 0))
        fix = None
        if source is not None and _made_as_float(view, source):
            fix = partial(bypass, view.model.opset, source)
        text = "the int8 kernel of Softmax is slower than the float one, about five times"
        yield finding(node, text, fix, hint="" if fix else "leave it float")


def _made_as_float(view: View, source: ir.Node) -> bool:
    """Whether the kernel in front of the Q could just as well write float."""
    quantized = source.inputs[0]
    quantizer = None if quantized is None else quantized.producer()
    value = None if quantizer is None else quantizer.inputs[0]
    maker = None if value is None else value.producer()
    if maker is None or quantizer is None or value is None or use_count(value) != 1:
        return False
    family = view.target.family_of(standard_op(maker))
    alone = use_count(quantizer.outputs[0]) == 1 and use_count(source.outputs[0]) == 1
    return alone and (
        quantizer in view.placement.quantizers or bool(family and family.float_output)
    )


def signed_kernels(view: View) -> Iterator[Finding]:
    """Integer operators that are written out with int8 activations."""
    if view.target.refuses("int8-activation") is None:
        return
    for node in view.nodes:
        if node.op_type in {"QLinearConv", "QLinearMatMul"} and node.domain in {"", "ai.onnx"}:
            zero = constant(input_at(node, 2))
            if zero is not None and zero.dtype == SIGNED:
                text = "int8 activations: without a kernel for them it is slower than float"
                yield finding(node, text, hint="quantize activations to uint8")


def half_precision(view: View) -> Iterator[Finding]:
    """Models in float16 or bfloat16 for a provider that turns them into float32 first."""
    kinds = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
    for name, dtype in kinds.items():
        row = view.target.format_of(name)
        if row is None or row.use == "compute":
            continue
        found = [node for node in view.nodes if _computes_in(view, node, dtype)]
        if found:
            text = f"{len(found)} nodes compute in {name}: {row.form or row.note or row.use}"
            yield finding("model", text, hint="keep float32 for this target")


def _computes_in(view: View, node: ir.Node, dtype: ir.DataType) -> bool:
    heavy = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"}
    return standard_op(node) in heavy and view.shapes.dtype(node.outputs[0]) == dtype


def float_directly(view: View) -> Iterator[Finding]:
    """Operators that the provider fuses into the Conv in front, which then runs in float."""
    kinds = {"LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Gelu"}
    for node in view.nodes:
        if standard_op(node) not in kinds or view.target.provider != "cpu":
            continue
        value = node.inputs[0]
        maker = None if value is None else value.producer()
        if maker is None or value is None or use_count(value) != 1 or standard_op(maker) != "Conv":
            continue
        if view.activation_dq(input_at(maker, 0)) is None or not _is_quantized(view, node.outputs):
            continue
        yield finding(
            maker,
            f"{node.op_type} stands between it and the Q: both run in float",
            hint=f"put a Q and DQ between Conv and {node.op_type}",
        )


def _is_quantized(view: View, outputs: Sequence[ir.Value]) -> bool:
    return any(view.quantizer_behind(value) is not None for value in outputs)
