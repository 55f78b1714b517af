"""Rules about activations: types, zero points, what stands between two quantizations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.diagnostics import Severity
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, standard_op, use_count
from onnxcomp.lint.bypass import bypass, clip_limits
from onnxcomp.lint.grid import SIGNED, UNSIGNED, Grid, grid_of
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.lint.view import is_quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View

_SIXTEEN = frozenset({ir.DataType.INT16, ir.DataType.UINT16})
_HALF = 128


def signed(view: View) -> Iterator[Finding]:
    """int8 activations that the provider's kernels do not take."""
    refusal = view.target.refuses("int8-activation")
    if refusal is None:
        return
    for node in view.quantizers:
        readers = view.dq_readers(node)
        if readers is None or not _shiftable(view, node, readers):
            continue
        edges = sum(use_count(dq.outputs[0]) for dq in readers)
        if edges > 1 and _meets_kernel(view, node, readers):
            text = f"int8 with {edges} readers: the kernels around it fall back to float"
            yield finding(node, text, partial(_shift_all, view))
    for node in view.dequantizers:
        reader = _joined(view, node)
        if reader is not None and _constant_is_signed(view, node):
            text = f"an int8 constant beside an activation: {reader.op_type} falls back to float"
            yield finding(node, text, partial(_shift_all, view))


def _shiftable(view: View, node: ir.Node, readers: Sequence[ir.Node]) -> bool:
    grids = [view.grid(n) for n in (node, *readers)]
    return all(grid is not None and grid.dtype == SIGNED for grid in grids)


def _meets_kernel(view: View, node: ir.Node, readers: Sequence[ir.Node]) -> bool:
    """Whether an operator with an int8 kernel is on either side."""
    around = [use.node for dq in readers for use in dq.outputs[0].uses()]
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    around += [] if maker is None else [maker]
    families = [view.target.family_of(standard_op(n)) for n in around]
    return any(family is not None and family.role in {"kernel", "join"} for family in families)


def _joined(view: View, node: ir.Node) -> ir.Node | None:
    """The Add or the like that reads a stored constant beside an activation."""
    if constant(node.inputs[0]) is None:
        return None
    for use in node.outputs[0].uses():
        family = view.target.family_of(standard_op(use.node))
        if family is not None and family.role == "join":
            others = [view.activation_dq(v) for v in use.node.inputs if v is not node.outputs[0]]
            if any(others):
                return use.node
    return None


def _constant_is_signed(view: View, node: ir.Node) -> bool:
    grid, tensor = view.grid(node), constant(node.inputs[0])
    return (
        grid is not None
        and grid.dtype == SIGNED
        and grid.single
        and tensor is not None
        and tensor.dtype == SIGNED
        and use_count(node.outputs[0]) == 1
    )


def _shift_all(view: View, edit: Edit) -> None:
    """Turns all int8 activations into uint8: numbers and zero points grow by 128, values stay."""
    for node in view.quantizers:
        readers = view.dq_readers(node) if _alive(node) else None
        if readers is None or not _shiftable_now(node, readers):
            continue
        for each in (node, *readers):
            _shift_zero(each, edit)
    for node in view.dequantizers:
        if _alive(node) and _joined(view, node) is not None and _constant_is_signed(view, node):
            grid = grid_of(node)
            if grid is not None and grid.dtype == SIGNED:
                _shift_constant(node, edit)


def _alive(node: ir.Node) -> bool:
    return node.graph is not None


def _shiftable_now(node: ir.Node, readers: Sequence[ir.Node]) -> bool:
    grids = [grid_of(n) for n in (node, *readers)]
    return all(grid is not None and grid.dtype == SIGNED for grid in grids)


def _shift_zero(node: ir.Node, edit: Edit) -> None:
    grid, graph = grid_of(node), node.graph
    if grid is None or graph is None:
        return
    old = np.zeros(grid.scale.shape, np.int8) if grid.zero is None else grid.zero
    zero = (old.astype(np.int16) + _HALF).astype(np.uint8)
    name = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2] is not None else None
    made = edit.initializer(zero, name=f"{name or node.outputs[0].name}_u8", graph=graph)
    edit.set_input(node, 2, made)
    if attribute(node, "output_dtype", 0):
        edit.set_attribute(node, "output_dtype", None)
    if is_quantizer(node):
        edit.set_type(node.outputs[0], UNSIGNED)


def _shift_constant(node: ir.Node, edit: Edit) -> None:
    tensor, graph = constant(node.inputs[0]), node.graph
    if tensor is None or graph is None or node.inputs[0] is None:
        return
    numbers = (tensor.numpy().astype(np.int16) + _HALF).astype(np.uint8)
    made = edit.initializer(numbers, name=f"{node.inputs[0].name}_u8", graph=graph)
    _shift_zero(node, edit)
    edit.set_input(node, 0, made)


def redundant(node: ir.Node, grid: Grid) -> bool:
    """Whether a Q makes the Relu or Clip in front of it redundant, as onnxruntime decides."""
    if not grid.single:
        return False
    low, high = grid.range
    if node.op_type == "Relu":
        return grid.middle == grid.limits[0]
    limits = clip_limits(node)
    return limits is not None and low >= limits[0] and high <= limits[1]


def kept_relu(view: View) -> Iterator[Finding]:
    """Relu and Clip that a Q with unused negative numbers keeps alive."""
    if not view.target.absorbable or view.target.activation.symmetric:
        return
    for node in view.nodes:
        if standard_op(node) not in {"Relu", "Clip"} or not _behind_unit(view, node):
            continue
        quantizer = view.quantizer_behind(node.outputs[0])
        grid = None if quantizer is None else view.grid(quantizer)
        if quantizer is None or grid is None or not grid.single or redundant(node, grid):
            continue
        new = _grid_from_zero(node, grid)
        readers = view.dq_readers(quantizer)
        fixable = new is not None and readers is not None and _same_grids(view, quantizer, readers)
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        yield finding(
            node,
            f"the Q behind it has numbers for values that it never gives: the {node.op_type} stays, and "
            f"{maker.op_type if maker else 'what makes it'} runs in float",
            partial(_put_grid, [quantizer, *(readers or [])], new) if fixable and new else None,
        )


def _behind_unit(view: View, node: ir.Node) -> bool:
    """Whether what stands in front would be an int8 kernel if the Relu went away."""
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    if value is None or maker is None or use_count(value) != 1 or value.is_graph_output():
        return False
    family = view.target.family_of(standard_op(maker))
    if family is None or family.role == "follow":
        return False
    return view.activation_dq(input_at(maker, family.first)) is not None


def _grid_from_zero(node: ir.Node, grid: Grid) -> Grid | None:
    """A grid of the same steps that starts at 0; for a Clip its steps end where the Clip does."""
    if grid.step <= 0 or grid.dtype not in {SIGNED, UNSIGNED}:
        return None
    scale = np.float32(grid.step)
    if node.op_type == "Clip":
        limits = clip_limits(node)
        if limits is None or limits[0] != 0.0 or not limits[1] > 0:
            return None
        if 255 * float(scale) > limits[1]:
            scale = np.float32(limits[1] / 255)
            while float(scale) * 255 > limits[1]:
                scale = np.nextafter(scale, np.float32(0))
    return replace(grid, dtype=UNSIGNED, scale=np.asarray(scale), zero=np.asarray(0, np.uint8))


def _same_grids(view: View, quantizer: ir.Node, readers: Sequence[ir.Node]) -> bool:
    own = view.grid(quantizer)
    grids = [view.grid(node) for node in readers]
    return own is not None and all(grid is not None and grid.equals(own) for grid in grids)


def _put_grid(nodes: Sequence[ir.Node], grid: Grid, edit: Edit) -> None:
    """Gives a Q and the DQ nodes behind it new parameters."""
    graph = nodes[0].graph
    if graph is None or grid.zero is None:
        return
    name = nodes[0].outputs[0].name or "activation"
    scale = edit.initializer(np.asarray(grid.scale), name=f"{name}_scale", graph=graph)
    zero = edit.initializer(np.asarray(grid.zero), name=f"{name}_zero_point", graph=graph)
    for node in nodes:
        edit.set_input(node, 1, scale)
        edit.set_input(node, 2, zero)
    edit.set_type(nodes[0].outputs[0], grid.dtype)


def twice(view: View) -> Iterator[Finding]:
    """A value that is quantized, brought back, and quantized again with other parameters."""
    for first in view.quantizers:
        readers = view.dq_readers(first)
        if readers is None or len(readers) != 1 or use_count(readers[0].outputs[0]) != 1:
            continue
        value = readers[0].outputs[0]
        if value.is_graph_output():
            continue
        between = next(iter(value.uses())).node
        if is_quantizer(between):
            fix = (
                partial(bypass, view.model.opset, readers[0])
                if _is_made_by_kernel(view, first)
                else None
            )
            text = "quantized again at once, with other parameters"
            yield finding(first, text, fix, severity=Severity.NOTE)
            continue
        behind = None
        if standard_op(between) in {"Relu", "Clip"}:
            behind = view.quantizer_behind(between.outputs[0])
        grid = None if behind is None else view.grid(behind)
        if grid is None or not _is_made_by_kernel(view, first) or _must_stay(view, first, between):
            continue
        useful = redundant(between, grid) or _grid_from_zero(between, grid) is not None
        yield finding(
            first,
            f"quantized in front of a {between.op_type} and behind it: rounded twice, and one conversion more",
            partial(bypass, view.model.opset, readers[0]) if useful else None,
        )


def _must_stay(view: View, quantizer: ir.Node, between: ir.Node) -> bool:
    """Whether the target takes no Relu or Clip between what makes the value and its Q."""
    value = quantizer.inputs[0]
    maker = None if value is None else value.producer()
    family = None if maker is None else view.target.family_of(standard_op(maker))
    return family is not None and between.op_type not in view.target.absorbed_behind(family)


def _is_made_by_kernel(view: View, quantizer: ir.Node) -> bool:
    value = quantizer.inputs[0]
    maker = None if value is None else value.producer()
    if maker is None or value is None or use_count(value) != 1 or value.is_graph_output():
        return False
    family = view.target.family_of(standard_op(maker))
    return family is not None and family.role in {"kernel", "join"}


def sixteen_bits(view: View) -> Iterator[Finding]:
    """Activations of 16 bits at operators whose kernels take 8."""
    for node in view.nodes:
        kind = standard_op(node)
        refusal = view.target.refuses("sixteen-bit", kind or "")
        if refusal is None or view.target.family_of(kind) is None:
            continue
        for value in node.inputs:
            source = view.activation_dq(value)
            grid = None if source is None else view.grid(source)
            if grid is not None and grid.dtype in _SIXTEEN:
                yield finding(node, f"reads 16 bits: {refusal.why}", hint=refusal.instead)
                break


def not_constant(view: View) -> Iterator[Finding]:
    """Scales and zero points that are computed at run time."""
    refusal = view.target.refuses("not-constant")
    for node in (*view.quantizers, *view.dequantizers) if refusal else ():
        made = constant(input_at(node, 1)) is None
        source = input_at(node, 0)
        maker = None if source is None else source.producer()
        if made and (maker is None or maker.op_type != "DynamicQuantizeLinear"):
            yield finding(node, "its scale is no constant: nothing fuses with it")


def unequal(view: View) -> Iterator[Finding]:
    """Operators that hand on bytes, with other parameters behind them than in front."""
    for node in view.nodes:
        family = view.target.family_of(standard_op(node))
        if family is None or not (family.role == "follow" or family.equal_scales):
            continue
        sources = [view.activation_dq(value) for value in node.inputs]
        behind = [view.quantizer_behind(value) for value in node.outputs]
        nodes = [found for found in (*sources, *behind) if found is not None]
        grids = [view.grid(found) for found in nodes]
        known = [grid for grid in grids if grid is not None]
        if len(known) < 2 or len(known) < len(nodes) or not any(behind):
            continue
        if any(not grid.equals(known[0]) for grid in known[1:]):
            text = "the parameters in front of it and behind it differ: its bytes are converted"
            yield finding(node, text)


def nonzero(view: View) -> Iterator[Finding]:
    """Zero points and unsigned types, for targets that refuse them."""
    zero, unsigned = view.target.refuses("zero-point"), view.target.refuses("uint8")
    for node in (*view.quantizers, *view.dequantizers) if zero or unsigned else ():
        grid = view.grid(node)
        if grid is None:
            continue
        if zero and grid.zero is not None and bool((grid.zero != 0).any()):
            severity = Severity.ERROR if zero.effect == "error" else Severity.WARNING
            yield finding(
                node, f"its zero point is not 0: {zero.why}", hint=zero.instead, severity=severity
            )
        elif unsigned and grid.dtype == UNSIGNED:
            severity = Severity.ERROR if unsigned.effect == "error" else Severity.WARNING
            text = f"its numbers are uint8: {unsigned.why}"
            yield finding(node, text, hint=unsigned.instead, severity=severity)


def unsigned_weight(view: View) -> Iterator[Finding]:
    """uint8 weights, for a provider whose fast kernels want int8 ones."""
    if view.target.weight.dtype != "int8" or view.target.provider != "cpu":
        return
    for node, weight in view.layers():
        grid, tensor = view.grid(weight), constant(weight.inputs[0])
        first = view.activation_dq(input_at(node, 0))
        if grid is None or first is None or tensor is None or tensor.dtype != UNSIGNED:
            continue
        even = grid.zero is not None and bool((grid.zero == _HALF).all())
        yield finding(
            node,
            "its weight is uint8: products of uint8 and uint8 are not faster than float where VNNI is",
            partial(_sign_weight, weight) if even else None,
            hint="" if even else "quantize weights symmetrically, to int8",
        )


def _sign_weight(weight: ir.Node, edit: Edit) -> None:
    """Turns a symmetric uint8 weight into int8: the same values."""
    tensor, graph, grid = constant(weight.inputs[0]), weight.graph, grid_of(weight)
    if tensor is None or graph is None or grid is None or grid.dtype != UNSIGNED:
        return
    name = weight.outputs[0].name or "weight"
    numbers = (tensor.numpy().astype(np.int16) - _HALF).astype(np.int8)
    zero = np.zeros(grid.scale.shape, np.int8)
    edit.set_input(weight, 0, edit.initializer(numbers, name=f"{name}_s8", graph=graph))
    edit.set_input(weight, 2, edit.initializer(zero, name=f"{name}_zero_s8", graph=graph))
