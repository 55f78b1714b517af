"""Rules about operators that could be part of a quantized Conv beside them: Pad, BatchNormalization."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, integers, standard_op, use_count
from onnxcomp.lint.grid import SIGNED, dequantize, grid_of
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.lint.view import is_quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, ir
    from onnxcomp.lint.view import View

_PADS_AS_INPUT = 11
# Opset of DequantizeLinear with an axis.
PER_CHANNEL = 13


def padded(view: View) -> Iterator[Finding]:
    """Pad with zeros in front of quantized Conv, which the Conv could do itself."""
    for node in view.nodes:
        if standard_op(node) != "Pad":
            continue
        ends, found = _zeros(node, view.model.opset), _convs(view, node)
        if ends is None or found is None:
            continue
        quantizer, convs = found
        if all(len(ends) == 2 * (_rank(conv)) for conv in convs):
            yield finding(
                node,
                f"pads in float in front of {len(convs)} quantized Conv, which can pad itself",
                partial(_pad_in_conv, node, quantizer, convs, ends),
            )


def _rank(conv: ir.Node) -> int:
    weight = input_at(conv, 1)
    maker = None if weight is None else weight.producer()
    tensor = None if maker is None else constant(input_at(maker, 0))
    return 0 if tensor is None else len(tensor.shape)


def _zeros(node: ir.Node, opset: int) -> list[int] | None:
    """How far a Pad with zeros goes, None where it does anything else."""
    if attribute(node, "mode", "constant") != "constant" or input_at(node, 3) is not None:
        return None
    if opset >= _PADS_AS_INPUT:
        ends, value = integers(input_at(node, 1)), input_at(node, 2)
        filling = np.zeros(1) if value is None else array(value, limit=1)
    else:
        ends, filling = list(attribute(node, "pads", ())), np.asarray(attribute(node, "value", 0.0))
    if not ends or filling is None or filling.size != 1 or float(filling.reshape(-1)[0]) != 0.0:
        return None
    half = len(ends) // 2
    if half < 3 or any(ends[i] for i in (0, 1, half, half + 1)) or min(ends) < 0:
        return None
    return ends


def _convs(view: View, node: ir.Node) -> tuple[ir.Node | None, list[ir.Node]] | None:
    """The Q behind a Pad (None when a DQ stands in front instead) and the Conv nodes that read it."""
    value = node.outputs[0]
    if value.is_graph_output():
        return None
    quantizer = view.quantizer_behind(value)
    readers = [use.node for use in value.uses()] if quantizer is None else []
    if quantizer is not None:
        behind = view.dq_readers(quantizer)
        if behind is None or any(dq.outputs[0].is_graph_output() for dq in behind):
            return None
        readers = [use.node for dq in behind for use in dq.outputs[0].uses()]
    elif view.activation_dq(node.inputs[0]) is None:
        return None
    fits = all(
        standard_op(conv) == "Conv"
        and attribute(conv, "auto_pad", "NOTSET") == "NOTSET"
        and view.constant_dq(input_at(conv, 1)) is not None
        for conv in readers
    )
    return (quantizer, readers) if readers and fits else None


def _pad_in_conv(
    node: ir.Node, quantizer: ir.Node | None, convs: list[ir.Node], ends: list[int], edit: Edit
) -> None:
    half = len(ends) // 2
    wanted = [*ends[2:half], *ends[half + 2 :]]
    for conv in convs:
        own = list(attribute(conv, "pads", [0] * len(wanted)))
        edit.set_attribute(conv, "pads", [a + b for a, b in zip(own, wanted, strict=True)])
    if quantizer is not None:
        edit.set_input(quantizer, 0, node.inputs[0])
        return
    for conv in convs:
        edit.set_input(conv, 0, node.inputs[0])


def normalized(view: View) -> Iterator[Finding]:
    """BatchNormalization behind a quantized Conv, which its scales could do."""
    for node in view.nodes:
        if standard_op(node) != "BatchNormalization" or attribute(node, "training_mode", 0):
            continue
        source = view.activation_dq(input_at(node, 0))
        quantized = None if source is None else source.inputs[0]
        quantizer = None if quantized is None else quantized.producer()
        if source is None or not is_quantizer(quantizer) or quantizer is None:
            continue
        if use_count(source.outputs[0]) != 1 or use_count(quantizer.outputs[0]) != 1:
            continue
        conv = quantizer.inputs[0].producer() if quantizer.inputs[0] is not None else None
        if conv is None or standard_op(conv) != "Conv" or use_count(conv.outputs[0]) != 1:
            continue
        made = _Normalized.of(view, conv, node)
        grid = view.grid(quantizer)
        if made is None or grid is None or not grid.single or grid.middle == grid.limits[0]:
            continue
        yield finding(
            node,
            "runs in float behind a quantized Conv, whose scales can do the same",
            made.apply,
        )


class _Normalized:
    """The weight and the bias of a Conv that does what a BatchNormalization did behind it."""

    def __init__(
        self,
        conv: ir.Node,
        norm: ir.Node,
        numbers: NDArray[np.int8],
        scale: NDArray[np.float32],
        bias: NDArray[np.float64],
        steps: NDArray[np.float64],
    ) -> None:
        self.conv, self.norm = conv, norm
        self.numbers, self.scale, self.bias, self.steps = numbers, scale, bias, steps

    @classmethod
    def of(cls, view: View, conv: ir.Node, norm: ir.Node) -> _Normalized | None:
        """Returns it, None where something is not constant or does not fit."""
        weight, first = view.constant_dq(input_at(conv, 1)), view.activation_dq(conv.inputs[0])
        grids = [None if n is None else view.grid(n) for n in (weight, first)]
        numbers = None if weight is None else array(weight.inputs[0])
        factors = _factors(view, norm)
        if numbers is None or factors is None or None in grids or view.model.opset < PER_CHANNEL:
            return None
        grid, front = grids[0], grids[1]
        if grid is None or front is None or grid.dtype != SIGNED or not front.single or grid.block:
            return None
        if grid.zero is not None and bool(grid.zero.any()):
            return None
        channels = numbers.shape[0]
        gain, offset = factors
        if gain.size != channels or grid.scale.size not in {1, channels}:
            return None
        if not grid.single and grid.axis not in {0, -numbers.ndim}:
            return None
        bias = _bias(view, conv, channels)
        if bias is None or not (np.abs(gain) > 0).all():
            return None
        signs = np.sign(gain).astype(np.int16).reshape(-1, *([1] * (numbers.ndim - 1)))
        # 128 is no int8: where a channel changes its sign, its largest number gives way by a step.
        turned = np.minimum(numbers * signs, 127).astype(np.int8)
        scale = (np.broadcast_to(grid.scale.reshape(-1), (channels,)) * np.abs(gain)).astype(
            np.float32
        )
        if not (scale > np.finfo(np.float32).tiny).all():
            return None
        return cls(
            conv,
            norm,
            turned,
            scale,
            bias * gain + offset,
            scale.astype(np.float64) * front.step,
        )

    def apply(self, edit: Edit) -> None:
        """Gives the Conv the new weight and bias and takes what stood behind it out."""
        graph, value = self.conv.graph, self.conv.inputs[1]
        if graph is None or value is None:
            return
        name = value.name or "weight"
        zeros = np.zeros(self.scale.shape, np.int8)
        bias = np.clip(np.rint(self.bias / self.steps), -(2**31), 2**31 - 1).astype(np.int32)
        weight = _stored(edit, self.conv, name, (self.numbers, self.scale, zeros))
        edit.set_input(self.conv, 1, weight)
        steps = self.steps.astype(np.float32)
        made = (bias, steps, np.zeros(steps.shape, np.int32))
        edit.set_input(self.conv, 2, _stored(edit, self.conv, f"{name}_bias", made))
        edit.replace(self.norm.outputs[0], self.conv.outputs[0])


def _stored(edit: Edit, node: ir.Node, name: str, arrays: tuple[NDArray[Any], ...]) -> ir.Value:
    """Stores a tensor with its scales and zero points; returns what a DQ makes of it."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {node.name}")
    ends = ("numbers", "scale", "zero")
    inputs = [
        edit.initializer(a, name=f"{name}_{end}", graph=graph)
        for a, end in zip(arrays, ends, strict=True)
    ]
    made = edit.insert(
        "DequantizeLinear", inputs, before=node, attributes={"axis": 0}, outputs=[name]
    )
    return made.outputs[0]


def _factors(view: View, norm: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What a BatchNormalization multiplies by and adds."""
    found = []
    for value in norm.inputs[1:5]:
        numbers = _values(view, value)
        if numbers is None or numbers.ndim != 1:
            return None
        found.append(numbers.astype(np.float64))
    if len(found) != 4 or len([v for v in norm.outputs if v.name]) != 1:
        return None
    weight, shift, mean, variance = found
    epsilon = attribute(norm, "epsilon", 1e-5)
    gain = weight / np.sqrt(variance + epsilon)
    offset = shift - mean * gain
    return (gain, offset) if np.isfinite(gain).all() and np.isfinite(offset).all() else None


def _values(view: View, value: ir.Value | None) -> NDArray[Any] | None:
    """A constant in float, also where it is stored behind a DQ."""
    source = view.constant_dq(value)
    if source is None:
        return array(value, limit=1 << 20)
    grid, numbers = grid_of(source), array(source.inputs[0], limit=1 << 20)
    return None if grid is None or numbers is None else dequantize(numbers, grid)


def _bias(view: View, conv: ir.Node, channels: int) -> NDArray[np.float64] | None:
    value = input_at(conv, 2)
    if value is None:
        return np.zeros(channels)
    found = _values(view, value)
    return found.astype(np.float64) if found is not None and found.shape == (channels,) else None
