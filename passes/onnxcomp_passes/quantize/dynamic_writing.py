"""Writes products in int8 whose activations are rounded while the model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, input_at
from onnxcomp.quant.dynamic import CONTRIB, scaled_bias
from onnxcomp.quant.weights import FULL_RANGE, REDUCED_RANGE
from onnxcomp_passes.quantize.dynamic_numbers import (
    Numbers,
    columns_last,
    gate_scale,
    grid_of,
    smoothed,
)
from onnxcomp_passes.quantize.insertion import drop_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.dynamic import Site

Found = TypeVar("Found")

FINE = 2
_ATTRIBUTES = (
    *("alpha", "beta", "transA", "transB"),
    *("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
)
# Where an int8 LSTM takes scale and zero point of the weights of its input and of its state.
_LSTM_SCALES = {1: 8, 2: 10}


@dataclass(frozen=True)
class Rounded:
    """An activation that was rounded."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


@dataclass(frozen=True)
class Made:
    """Nodes that were added, by the name of what they give.

    Attributes:
        own: The site that a node works for.
        shared: The activation that it rounds, for all sites that read it.
    """

    own: dict[str, Site] = field(default_factory=dict)
    shared: dict[str, ir.Value] = field(default_factory=dict)


@dataclass
class DynamicWriter:
    """Rewrites nodes; each keeps its name and the name of what it gives.

    Attributes:
        model: The model.
        edit: The way to change it.
        numbers: How numbers are made.
        memory: Scales that were found for the same weights before, to be shared between trials.
    """

    model: Model
    edit: Edit
    numbers: Numbers
    memory: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rounded: dict[Hashable, Rounded] = {}
        self._weights: dict[Hashable, tuple[ir.Value, ir.Value]] = {}
        self._freed: list[ir.Value] = []
        self._made = Made()

    def write(self, grades: Mapping[Site, int]) -> Made:
        """Rewrites sites.

        Args:
            grades: How finely each one is computed: 1 is fast; 2 rounds the activation of a product in
                two digits, and gives the state of an LSTM a scale for each column.

        Returns:
            What was added.
        """
        for site, grade in grades.items():
            if site.kind == "lstm":
                self._lstm(site, fine=grade == FINE)
            elif site.kind == "attention":
                self._attention(site)
            else:
                self._product(site, fine=grade == FINE)
        drop_unused(self.edit, self._freed)
        return self._made

    # -- products ------------------------------------------------------------------------------------

    def _product(self, site: Site, *, fine: bool) -> None:
        node = site.node
        first = self._digit(site)
        weight, scale = self._matrix(site)
        parts = self._scaled(site, first, weight, scale)
        bias = self._bias(site, input_at(node, 2))
        for name in _ATTRIBUTES:
            self.edit.set_attribute(node, name, None)
        last: tuple[str, list[ir.Value | None]] = ("Mul", list(parts))
        if fine:
            whole = self._insert(site, *last)
            if bias is not None:
                whole = self._insert(site, "Add", [whole, bias])
            rest = self._scaled(site, self._rest(site, first), weight, scale)
            last = ("Add", [self._insert(site, "Mul", list(rest)), whole])
        elif bias is not None:
            last = ("Add", [self._insert(site, *last), bias])
        if site.rank:
            made = self._insert(site, *last)
            self._become(node, "Transpose", [made])
            self.edit.set_attribute(node, "perm", [0, site.rank - 1, *range(1, site.rank - 1)])
        else:
            self._become(node, *last)
            self._put_bias_last(site)

    def _become(self, node: ir.Node, op_type: str, inputs: list[ir.Value | None]) -> None:
        """Turns a node into another one, so that its name and that of its output stay."""
        for index, value in enumerate(inputs):
            self.edit.set_input(node, index, value)
        self.edit.truncate_inputs(node, len(inputs))
        self.edit.set_operator(node, op_type)
        self.edit.count("nodes in int8")

    def _put_bias_last(self, site: Site) -> None:
        """The provider takes a bias into its kernel only as second input of the Add."""
        add = site.follower
        if add is not None and add.inputs[1] is site.node.outputs[0]:
            bias = add.inputs[0]
            self.edit.set_input(add, 0, site.node.outputs[0])
            self.edit.set_input(add, 1, bias)

    def _scaled(
        self, site: Site, digit: Rounded, weight: ir.Value, scale: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The integer product as floats, and what it has to be multiplied with."""
        product = self._insert(
            site, "MatMulInteger", [digit.numbers, weight, digit.zero_point], ir.DataType.INT32
        )
        floats = self._insert(site, "Cast", [product], to=int(ir.DataType.FLOAT))
        return floats, self._insert(site, "Mul", [digit.scale, scale])

    def _insert(
        self,
        site: Site,
        op_type: str,
        inputs: list[ir.Value | None],
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: object,
    ) -> ir.Value:
        base = site.node.outputs[0].name
        made = self.edit.insert(
            op_type,
            inputs,
            before=site.node,
            outputs=[f"{base}_{op_type}"],
            attributes=attributes,
        )
        self.edit.set_type(made.outputs[0], dtype)
        self._made.own[made.outputs[0].name or ""] = site
        return made.outputs[0]

    def _bias(self, site: Site, bias: ir.Value | None) -> ir.Value | None:
        scaled = scaled_bias(site.node)
        if bias is None or scaled is None or site.node.graph is None:
            return bias
        self._freed.append(bias)
        return self.edit.initializer(scaled, name=f"{bias.name}_scaled", graph=site.node.graph)

    # -- activations ---------------------------------------------------------------------------------

    def _digit(self, site: Site) -> Rounded:
        """Rounds the activation of a site; sites that read the same one share that."""
        key = ("digit", site.source, site.rank, site.node.graph)
        if key not in self._rounded:
            self._rounded[key] = self._round(site, self._smoothed(site))
        return self._rounded[key]

    def _rest(self, site: Site, digit: Rounded) -> Rounded:
        """Rounds what the first digit of an activation leaves."""
        key = ("rest", site.source, site.rank, site.node.graph)
        if key not in self._rounded:
            inputs = [digit.numbers, digit.scale, digit.zero_point]
            restored = self._insert(site, "DequantizeLinear", list(inputs))
            rest = self._insert(site, "Sub", [self._smoothed(site), restored])
            self._rounded[key] = self._round(site, rest)
        return self._rounded[key]

    def _smoothed(self, site: Site) -> ir.Value:
        if site.rank:
            return self._channels_last(site)
        scale = self.numbers.smoothing.get(site.source)
        graph = site.node.graph
        if scale is None or graph is None:
            return site.source
        key = ("smoothed", site.source, graph)
        if key not in self._rounded:
            factor = self.edit.initializer(
                np.float32(1) / scale, name=f"{site.source.name}_smoothing", graph=graph
            )
            made = self._insert(site, "Mul", [site.source, factor])
            self._made.shared[made.name or ""] = site.source
            self._rounded[key] = Rounded(made, made, made)
            self.edit.count("activations smoothed")
        return self._rounded[key].numbers

    def _channels_last(self, site: Site) -> ir.Value:
        key = ("channels last", site.source, site.node.graph)
        if key not in self._rounded:
            order = [0, *range(2, site.rank), 1]
            made = self._insert(site, "Transpose", [site.source], perm=order)
            self._made.shared[made.name or ""] = site.source
            self._rounded[key] = Rounded(made, made, made)
        return self._rounded[key].numbers

    def _round(self, site: Site, value: ir.Value) -> Rounded:
        base = value.name
        made = self.edit.insert(
            "DynamicQuantizeLinear",
            [value],
            before=site.node,
            outputs=[f"{base}_quantized", f"{base}_scale", f"{base}_zero_point"],
        )
        numbers, scale, zero_point = made.outputs
        self.edit.set_type(numbers, ir.DataType.UINT8, value.shape)
        self.edit.set_type(scale, ir.DataType.FLOAT, [])
        self.edit.set_type(zero_point, ir.DataType.UINT8, [])
        self._made.shared[numbers.name or ""] = site.source
        self.edit.count("activations rounded")
        return Rounded(numbers, scale, zero_point)

    # -- weights -------------------------------------------------------------------------------------

    def _matrix(self, site: Site) -> tuple[ir.Value, ir.Value]:
        """The numbers of a weight and their scale."""
        smoothing = None if site.rank else self.numbers.smoothing.get(site.source)
        alpha = np.float32(attribute(site.node, "alpha", 1.0))
        smooth = b"" if smoothing is None else smoothing.tobytes()
        key = (site.weight, site.transposed, smooth, float(alpha))
        if key not in self._weights:
            numbers, rounded = self.numbers, self.numbers.rounded.get(site)
            params = self._remembered((*key, "grid"), lambda: grid_of(site, numbers))

            def contents() -> ir.TensorProtocol:
                found = params.quantize(smoothed(site, numbers)) if rounded is None else rounded
                return ir.tensor(np.ascontiguousarray(found))

            scale = np.asarray(params.scale * alpha, np.float32)
            shape = (site.depth, site.width)
            self._weights[key] = self._stored(site.node, site.weight, contents, shape, scale)
        self._freed.append(site.weight)
        return self._weights[key]

    def _stored(
        self,
        node: ir.Node,
        weight: ir.Value,
        numbers: Callable[[], ir.TensorProtocol],
        shape: tuple[int, ...],
        scale: NDArray[np.float32],
    ) -> tuple[ir.Value, ir.Value]:
        """Adds the numbers of a weight and their scale; they are made when somebody reads them."""
        graph = weight.graph if weight.graph is not None else node.graph
        if graph is None:
            raise ValueError(f"not in a graph: {node.op_type} {node.name}")
        tensor = ir.LazyTensor(numbers, ir.DataType.INT8, ir.Shape(shape))
        stored = self.edit.initializer(tensor, name=f"{weight.name}_int8", graph=graph)
        self.edit.count("weights quantized")
        return stored, self.edit.initializer(scale, name=f"{stored.name}_scale", graph=graph)

    def _remembered(self, key: Hashable, make: Callable[[], Found]) -> Found:
        if key not in self.memory:
            self.memory[key] = make()
        found: Found = self.memory[key]
        return found

    # -- onnxruntime's own operators -------------------------------------------------------------------

    def _attention(self, site: Site) -> None:
        node = site.node
        digit = self._digit(site)
        weight, scale = self._matrix(site)
        bias, mask, past = (input_at(node, index) for index in (2, 3, 4))
        wanted = [
            digit.numbers,
            weight,
            bias,
            digit.scale,
            scale,
            mask,
            digit.zero_point,
            None,
            past,
        ]
        while wanted[-1] is None:
            wanted.pop()
        for index, value in enumerate(wanted):
            self.edit.set_input(node, index, value)
        self.edit.truncate_inputs(node, len(wanted))
        self.edit.set_operator(node, "QAttention", CONTRIB)
        self.edit.count("nodes in int8")

    def _lstm(self, site: Site, *, fine: bool) -> None:
        """Turns an LSTM into onnxruntime's DynamicQuantizeLSTM, whose weights are transposed.

        A scale for each column costs a tenth of the time in the step and nothing outside of it.
        """
        node = site.node
        for (index, place), tensor in zip(_LSTM_SCALES.items(), site.tensors, strict=True):
            weight = node.inputs[index]
            if weight is None:
                raise ValueError(f"an LSTM without weights: {node.name}")
            stored, scale, zero = self._gates(node, weight, tensor, by_column=fine or index == 1)
            self.edit.set_input(node, index, stored)
            self.edit.set_input(node, place, scale)
            self.edit.set_input(node, place + 1, zero)
            self._freed.append(weight)
        self.edit.set_attribute(node, "layout", None)
        self.edit.set_operator(node, "DynamicQuantizeLSTM", CONTRIB)
        self.edit.import_domain(CONTRIB, 1)
        self.edit.count("nodes in int8")

    def _gates(
        self, node: ir.Node, weight: ir.Value, tensor: ir.TensorProtocol, *, by_column: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        axes = (1,) if by_column and self.numbers.per_channel else (1, 2)
        key = (weight, axes)
        levels = np.float32(REDUCED_RANGE if self.numbers.reduce_range else FULL_RANGE)
        scale = self._remembered(
            (*key, "gates"), lambda: gate_scale(columns_last(tensor), axes, levels)
        )
        if key not in self._weights:

            def numbers() -> ir.TensorProtocol:
                rounded = np.rint(columns_last(tensor) / np.expand_dims(scale, axes))
                return ir.tensor(np.ascontiguousarray(rounded.astype(np.int8)))

            shape = tuple(tensor.shape.numpy())
            shape = (shape[0], shape[2], shape[1])
            self._weights[key] = self._stored(node, weight, numbers, shape, scale)
        stored, scales = self._weights[key]
        graph = stored.graph if stored.graph is not None else node.graph
        if graph is None:
            raise ValueError(f"not in a graph: {node.op_type} {node.name}")
        zeros = np.zeros(scale.shape, np.int8)
        zero = self.edit.initializer(zeros, name=f"{stored.name}_zero_point", graph=graph)
        return stored, scales, zero
