"""Writes a plan into a model as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, is_op, producer_of, single_use
from onnxcomp.quant.candidates import key_of
from onnxcomp.quant.scheme import DType, Params, QScheme, params_for_range
from onnxcomp.quant.weights import (
    WeightType,
    bias_params,
    weight_params,
    weight_shift,
    widened_for_bias,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.quant.plan import Plan

Found = TypeVar("Found")

# Float nodes whose weight onnxruntime rounds when they stand between DQ and Q, and what it looks through.
_TAKEN_OVER = ("Conv", "ConvTranspose", "Gemm")
_SEEN_THROUGH = (
    *(
        "Relu",
        "Clip",
        "Mul",
        "Add",
        "MaxPool",
        "Resize",
        "Reshape",
        "Transpose",
        "Flatten",
        "Slice",
    ),
    *("Squeeze", "Unsqueeze", "Expand", "Tile", "DepthToSpace", "Gather"),
)
_TYPES = {
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
    "uint16": ir.DataType.UINT16,
    "int16": ir.DataType.INT16,
    "int32": ir.DataType.INT32,
}


@dataclass(frozen=True)
class Weights:
    """How weights are quantized.

    Attributes:
        per_channel: One scale for each output channel instead of one for all.
        reduce_range: Use 7 bits.
        dtype: Element type.
        float_bias: Leave biases float instead of int32.
    """

    per_channel: bool = True
    reduce_range: bool = False
    dtype: WeightType = "int8"
    float_bias: bool = False


@dataclass
class Stored:
    """An activation in int8."""

    quantize: ir.Node
    scale: ir.Value
    zero_point: ir.Value
    params: Params


@dataclass
class Inserter:
    """Puts Q/DQ around the nodes of a plan.

    Attributes:
        model: The model.
        edit: The way to change it.
        plan: What to quantize.
        candidates: The nodes of the plan.
        params: Numbers for the points of the plan.
        weights: How weights are quantized.
        fused: Which fused kernel of the provider a float node belongs to.
        means: Mean of each channel of the activation that a node with a weight reads, by key.
        memory: What was computed for the same weights before, to be shared between trials.
    """

    model: Model
    edit: Edit
    plan: Plan
    candidates: Candidates
    params: Mapping[str, Params]
    weights: Weights = field(default_factory=Weights)
    fused: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    memory: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored: dict[str, Stored] = {}
        self._names: dict[ir.Value | None, str] = {}
        self._constants: dict[Any, ir.Value] = {}
        self._freed: list[ir.Value] = []
        chosen = [self.candidates.found[key] for key in self.plan.nodes]
        self._chosen = chosen
        self._int8 = {candidate.node for candidate in chosen}
        self._made_int8 = {point for candidate in chosen for point in candidate.points}

    def run(self) -> dict[str, str]:
        """Inserts everything.

        Returns:
            The point behind each QuantizeLinear, by the name of its output.
        """
        values = self._values()
        for name in self.plan.points:
            self._store(values[name])
        for candidate in self._chosen:
            self._constant_inputs(candidate)
        drop_unused(self.edit, self._freed)
        for node in list(self.model.graph):
            if node not in self._int8 and is_op(node, *_TAKEN_OVER) and self._would_be_taken(node):
                self._keep_float(node)
        return {s.quantize.outputs[0].name or "": name for name, s in self._stored.items()}

    def _values(self) -> dict[str | None, ir.Value]:
        found = {value.name: value for value in self.model.graph.inputs}
        for candidate in self._chosen:
            found.update({value.name: value for value in (*candidate.inputs, *candidate.points)})
        return found

    def _store(self, value: ir.Value) -> None:
        """Adds the Q of a point, and one DQ for all readers that are to see what it stores.

        The provider gives each int8 reader a DQ of its own. Float readers need a common one: patterns
        such as LayerNormalization or Gelu are not found when their parts read different values.
        """
        name = value.name or ""
        made_int8 = value in self._made_int8
        readers = [(use.node, use.idx) for use in value.uses()]
        stored = self._quantized(value)
        self._stored[name] = stored
        self._names[stored.quantize.outputs[0]] = name
        restored = self._dequantized(stored, name, value)
        floats = [(node, index) for node, index in readers if node not in self._int8]
        for node, index in readers:
            if node in self._int8:
                self.edit.set_input(node, index, restored)
        if made_int8 and floats:
            common = self._common(restored) if self._enters_twice(floats) else restored
            for node, index in floats:
                self.edit.set_input(node, index, common)
        if value.is_graph_output() and made_int8:
            self.edit.replace(value, restored)
            self.edit.set_input(stored.quantize, 0, value)

    def _quantized(self, value: ir.Value) -> Stored:
        graph, name = self.model.graph, value.name or ""
        params = self.params[name]
        scale = self._constant(params.scale, f"{name}_scale", root=self.plan.root(name))
        zero = self._constant(params.zero_point, f"{name}_zero_point", root=self.plan.root(name))
        maker = value.producer()
        place: dict[str, Any] = {"after": maker} if maker is not None else {"before": graph[0]}
        node = self.edit.insert(
            "QuantizeLinear",
            [value, scale, zero],
            outputs=[f"{name}_quantized"],
            name=f"{name}_QuantizeLinear",
            **place,
        )
        dtype = _TYPES[params.zero_point.dtype.name]
        self.edit.set_type(node.outputs[0], dtype, value.shape)
        self.edit.count("activations quantized")
        return Stored(node, scale, zero, params)

    def _dequantized(self, stored: Stored, name: str, like: ir.Value) -> ir.Value:
        node = self.edit.insert(
            "DequantizeLinear",
            [stored.quantize.outputs[0], stored.scale, stored.zero_point],
            after=stored.quantize,
            outputs=[f"{name}_dequantized"],
            name=f"{name}_DequantizeLinear",
            like=like,
        )
        return node.outputs[0]

    def _enters_twice(self, readers: list[tuple[ir.Node, int]]) -> bool:
        """Whether a pattern that the provider fuses reads the value in more than one place."""
        owners = [self.fused.get(key_of(node)) for node, _ in readers]
        known = [owner for owner in owners if owner is not None]
        return len(known) != len(set(known))

    def _common(self, restored: ir.Value, before: ir.Node | None = None) -> ir.Value:
        """Puts a Sum of one behind a DQ: the provider copies a DQ for each reader, but not this."""
        node = self.edit.insert(
            "Sum",
            [restored],
            before=before,
            after=restored.producer(),
            outputs=[f"{restored.name}_common"],
            like=restored,
        )
        return node.outputs[0]

    def _constant(self, array: np.ndarray, name: str, *, root: str = "") -> ir.Value:
        key = (root, name.rpartition("_")[2], array.dtype.name)
        if not root or key not in self._constants:
            made = self.edit.initializer(array, name=name, graph=self.model.graph)
            self._constants[key if root else id(made)] = made
            return made
        return self._constants[key]

    # -- keeping float float --------------------------------------------------------------------------

    @staticmethod
    def _would_be_taken(node: ir.Node) -> bool:
        """Whether a float node stands between a DQ and a Q with nothing that stops the provider.

        onnxruntime (WeightBiasQuantization) then rounds the weight itself, with one scale for all of it.
        """
        source = node.inputs[0]
        if pad := producer_of(source, "Pad"):
            source = pad.inputs[0]
        if producer_of(source, "DequantizeLinear") is None:
            return False
        reader = single_use(node.outputs[0])
        while reader is not None and not is_op(reader, "QuantizeLinear"):
            if not is_op(reader, *_SEEN_THROUGH):
                return False
            reader = single_use(reader.outputs[0])
        return reader is not None

    def _keep_float(self, node: ir.Node) -> None:
        pad = producer_of(node.inputs[0], "Pad")
        reader = node if pad is None else pad
        value = reader.inputs[0]
        if value is not None:
            self.edit.set_input(reader, 0, self._common(value, before=reader))
            self.edit.count("nodes kept float")

    # -- weights -----------------------------------------------------------------------------------

    def _constant_inputs(self, candidate: Candidate) -> None:
        """Puts a DQ on every constant that an int8 node reads."""
        node = candidate.node
        if candidate.weight is not None:
            self._weight_and_bias(candidate, candidate.weight)
        elif candidate.family.role == "join" or candidate.is_product_of_activations:
            for index, value in enumerate(node.inputs):
                if index < candidate.family.first or value is None:
                    continue
                if constant(value) is not None:
                    self._scalar(node, index, value)

    def _weight_and_bias(self, candidate: Candidate, index: int) -> None:
        node = candidate.node
        value = node.inputs[index]
        tensor = constant(value)
        if value is None or tensor is None:
            raise ValueError(f"not a constant weight: {node.op_type} {node.name}")
        weight = tensor.numpy()
        axis = _axis(candidate, weight.ndim) if self.weights.per_channel else None
        params = self._remembered(
            ("grid", value, axis),
            lambda: weight_params(
                weight, axis, reduce_range=self.weights.reduce_range, dtype=self.weights.dtype
            ),
        )
        bias_index = candidate.family.bias
        bias = None if bias_index is None else input_at(node, bias_index)
        found = constant(bias)
        if bias is None or found is None or bias_index is None:
            self._weight(node, index, value, weight, params)
            self._correct_following(candidate, weight, params, axis)
            return
        if self.weights.float_bias:
            self._weight(node, index, value, weight, params)
            self._corrected(node, bias_index, self._shift(candidate, weight, params, axis))
            if node.inputs[bias_index] is bias and len(bias.uses()) > 1:
                # OpenVINO fuses no bias that several layers share.
                self.edit.set_input(
                    node, bias_index, self._constant(found.numpy(), f"{bias.name}_own")
                )
            return
        numbers = found.numpy().reshape(-1)
        source = self._input_scale(candidate)
        channels = weight.shape[axis if axis is not None else 0]
        if axis is not None:
            numbers = np.broadcast_to(numbers, (channels,))
        params = widened_for_bias(params, numbers, source)
        self._weight(node, index, value, weight, params)
        grid = bias_params(params, source, numbers.size)
        shift = self._shift(candidate, weight, params, axis)
        made = self._constant(grid.quantize(numbers - shift), f"{bias.name}_int32")
        self._dq_constant(node, bias_index, bias, made, grid)

    def _correct_following(
        self, candidate: Candidate, weight: np.ndarray, params: Params, axis: int | None
    ) -> None:
        """Corrects the bias that an Add behind a MatMul keeps."""
        add = single_use(candidate.node.outputs[0])
        if not is_op(candidate.node, "MatMul") or add is None or not is_op(add, "Add"):
            return
        index = 0 if add.inputs[1] is candidate.node.outputs[0] else 1
        self._corrected(add, index, self._shift(candidate, weight, params, axis))

    def _corrected(self, node: ir.Node, index: int, shift: np.ndarray | float) -> None:
        """Takes the shift of a mean out of a bias that stays float."""
        value = node.inputs[index]
        found = constant(value)
        if value is None or found is None or found.shape.numpy()[-1:] != np.shape(shift):
            return
        numbers = np.asarray(found.numpy() - shift, np.float32)
        self.edit.set_input(node, index, self._constant(numbers, f"{value.name}_corrected"))
        self._freed.append(value)

    def _shift(
        self, candidate: Candidate, weight: np.ndarray, params: Params, axis: int | None
    ) -> np.ndarray | float:
        """What the rounding of the weight adds to the mean of the output, for the bias to take away."""
        means = self.means.get(candidate.key)
        group = attribute(candidate.node, "group", 1)
        grouped = group != 1 and weight.shape[:2] == (group, 1)
        if means is None or axis is None or (group != 1 and not grouped):
            return 0.0

        def shift() -> np.ndarray:
            rounded = params.dequantize(params.quantize(weight))
            return weight_shift(weight, rounded, means, axis, grouped=grouped)

        return self._remembered(("shift", candidate.key, params.scale.tobytes()), shift)

    def _remembered(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """What rounding a weight gives, which is the same in every trial."""
        if key not in self.memory:
            self.memory[key] = make()
        found: Found = self.memory[key]
        return found

    def _input_scale(self, candidate: Candidate) -> float:
        """The scale of the activation that a node reads, found behind the DQ that it reads by now."""
        maker = candidate.inputs[0].producer()
        source = None if maker is None else maker.inputs[0]
        if source not in self._names:
            raise ValueError(f"an int8 node reads float: {candidate.key}")
        return float(self.params[self._names[source]].scale)

    def _weight(
        self, node: ir.Node, index: int, value: ir.Value, weight: np.ndarray, params: Params
    ) -> None:
        key = (value, params.axis, params.scale.tobytes())
        made = self._constants.get(key)
        if made is None:
            numbers = self._remembered(("numbers", *key), lambda: params.quantize(weight))
            made = self._constant(numbers, f"{value.name}_{numbers.dtype.name}")
            self._constants[key] = made
            self.edit.count("weights quantized")
        self._dq_constant(node, index, value, made, params)

    def _scalar(self, node: ir.Node, index: int, value: ir.Value) -> None:
        tensor = constant(value)
        if tensor is None:
            raise ValueError(f"not a constant: {value.name}")
        array = tensor.numpy()
        number = float(array.reshape(-1)[0])
        scheme = QScheme(self._neighbour_type(node), symmetric=False)
        params = params_for_range(number, number, scheme)
        made = self._constant(params.quantize(array), f"{value.name}_{scheme.dtype}")
        self._dq_constant(node, index, value, made, params)

    def _neighbour_type(self, node: ir.Node) -> DType:
        """The type of the activations that a node reads: all its inputs must have the same one."""
        for value in node.inputs:
            maker = None if value is None else value.producer()
            source = (
                self._names.get(maker.inputs[0]) if maker is not None and maker.inputs else None
            )
            if source is not None:
                found: DType = self.params[source].zero_point.dtype.name  # type: ignore[assignment]
                return found
        return "uint8"

    def _dq_constant(
        self, node: ir.Node, index: int, old: ir.Value, stored: ir.Value, params: Params
    ) -> None:
        scale = self._constant(params.scale, f"{stored.name}_scale")
        zero = self._constant(params.zero_point, f"{stored.name}_zero_point")
        made = self.edit.insert(
            "DequantizeLinear",
            [stored, scale, zero],
            before=node,
            attributes={"axis": params.axis} if params.axis is not None else None,
            outputs=[f"{stored.name}_dequantized"],
            name=f"{stored.name}_DequantizeLinear",
        )
        self.edit.set_type(made.outputs[0], ir.DataType.FLOAT, stored.shape)
        self.edit.set_input(node, index, made.outputs[0])
        self._freed.append(old)


def drop_unused(edit: Edit, values: Iterable[ir.Value]) -> None:
    """Removes constants that nobody reads any more."""
    unused = []
    for value in dict.fromkeys(values):
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        maker = value.producer()
        if maker is not None:
            edit.remove(maker)
        elif value.is_initializer():
            unused.append(value)
    edit.drop_initializers(unused)


def _axis(candidate: Candidate, rank: int) -> int | None:
    """Returns the axis of the output channels of a weight."""
    rule = candidate.family.weight
    is_batch = candidate.node.op_type == "MatMul" and rank != 2
    if rule is None or not rule.per_channel or is_batch:
        return None
    axis = rule.axis % rank
    if rule.transposed_by and attribute(candidate.node, rule.transposed_by, 0):
        return 1 - axis
    return axis
