"""The float value that a quantized value stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op
from onnxcomp.quant.stored import dequantized, fits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

# Only places of elements change, or one of them is taken; inputs that carry elements come first.
_MOVING = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "Max", "MaxPool", "Min", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_JOINING = {"Concat": (0, None), "Max": (0, None), "Min": (0, None), "Where": (1, 3)}
_NEVER_NEGATIVE = (
    "Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax",
    "Softplus", "Sqrt",
)  # fmt: skip
_KEEPS_SIGN = (
    "AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "MaxPool", "ReduceMax", "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_OF_ALL = ("Add", "Concat", "Div", "Max", "Min", "Mul", "Sum")
# Two readers of one value double the paths; this bounds them.
_DEEPEST = 10
_RELU6 = 6.0


@dataclass(frozen=True)
class Grid:
    """Scale and zero point as values of the graph.

    Attributes:
        scale: The scale.
        zero_point: The zero point, None for zero.
        axis: Axis along which they vary.
        block: Elements of a block, 0 for none.
    """

    scale: ir.Value
    zero_point: ir.Value | None
    axis: int = 1
    block: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for grids that are the same in every run."""
        axis = 0 if self.is_single else self.axis
        return (_key(self.scale), _key(self.zero_point), axis, self.block)

    @property
    def is_single(self) -> bool:
        """Whether there is one scale for all elements."""
        tensor = constant(self.scale)
        shape = self.scale.shape if tensor is None else tensor.shape
        return shape is None or len(shape) == 0 or tuple(shape) == (1,)


def grid_of(node: ir.Node) -> Grid:
    """Returns the grid of a QuantizeLinear or DequantizeLinear."""
    scale = node.inputs[1]
    if scale is None:
        raise ValueError(f"no scale: {node.name}")
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    return Grid(scale, input_at(node, 2), axis, block)


def _key(value: ir.Value | None) -> object:
    """Equal for constants with equal contents; a missing zero point is a zero of any type."""
    if value is None:
        return b""
    found = array(value, limit=1 << 16)
    if found is None:
        return id(value)
    if found.dtype.kind in "iu" and not found.any():
        return b""
    return (found.dtype.str, found.tobytes())


@dataclass
class Twins:
    """Finds or makes the float values of quantized ones, each once."""

    ctx: Context
    saturation: Mapping[str, float] = field(default_factory=dict)
    clip: str = "auto"
    _known: dict[tuple[object, ...], ir.Value | None] = field(default_factory=dict)
    _limited: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    @property
    def edit(self) -> Edit:
        """The way to change the model."""
        return self.ctx.edit

    def of(self, value: ir.Value | None, grid: Grid) -> ir.Value | None:
        """Returns the float value that a quantized value stands for, None when it is not to be had."""
        if value is None:
            return None
        key = (value, *grid.key)
        if key not in self._known:
            self._known[key] = None
            self._known[key] = self._find(value, grid)
        return self._known[key]

    def _find(self, value: ir.Value, grid: Grid) -> ir.Value | None:
        if constant(value) is not None:
            return self.stored(value, grid)
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "QuantizeLinear" and grid_of(node).key == grid.key:
            return self._inside(node, grid)
        if is_op(node, "DynamicQuantizeLinear"):
            own = Grid(node.outputs[1], node.outputs[2])
            return node.inputs[0] if value is node.outputs[0] and own.key == grid.key else None
        if is_op(node, *_MOVING) and grid.is_single and not grid.block:
            return self._moved(node, value, grid)
        return None

    def stored(self, value: ir.Value, grid: Grid) -> ir.Value | None:
        """Returns a constant in float, computed only when somebody reads it."""
        numbers, scale = constant(value), constant(grid.scale)
        zero = None if grid.zero_point is None else constant(grid.zero_point)
        if numbers is None or scale is None or (grid.zero_point is not None and zero is None):
            return None
        shape = tuple(numbers.shape.numpy())
        zeros = None if zero is None else zero.numpy()
        if not fits(shape, scale.numpy(), zeros, grid.axis, grid.block):
            return None

        def compute() -> NDArray[Any]:
            return dequantized(
                numbers.numpy(),
                scale.numpy(),
                None if zero is None else zero.numpy(),
                grid.axis,
                grid.block,
            )

        return self.lazy(value, compute, scale.dtype, shape)

    def lazy(
        self,
        like: ir.Value,
        compute: Callable[[], NDArray[Any]],
        dtype: ir.DataType,
        shape: tuple[int, ...],
    ) -> ir.Value | None:
        """Adds a constant whose numbers are computed when they are needed."""
        graph = like.graph
        if graph is None:
            return None
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(compute(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
        )
        name = (like.name or "").removesuffix("_quantized")
        return self.edit.initializer(tensor, name=f"{name}_float", graph=graph)

    def _moved(self, node: ir.Node, value: ir.Value, grid: Grid) -> ir.Value | None:
        """Does to float values what a node does to quantized ones."""
        if len(node.outputs) > 1 and not is_op(node, "Split"):
            return None
        first, last = _JOINING.get(node.op_type, (0, 1))
        inputs = list(node.inputs)
        for index in range(first, len(inputs) if last is None else last):
            twin = self.of(inputs[index], grid)
            if twin is None:
                return None
            inputs[index] = twin
        if is_op(node, "Pad") and not self._pads(node, inputs, grid):
            return None
        attributes = dict(node.attributes)
        if is_op(node, "MaxPool"):
            attributes.pop("storage_order", None)
        made = self.edit.insert(
            node.op_type,
            inputs,
            after=node,
            outputs=[f"{output.name}_float" for output in node.outputs],
            attributes=attributes,
            domain=node.domain,
            name=f"{node.name}_float",
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            self.edit.set_type(new, grid.scale.dtype or ir.DataType.FLOAT, old.shape)
            self._known[(old, *grid.key)] = new
        return made.outputs[list(node.outputs).index(value)]

    def _pads(self, node: ir.Node, inputs: list[ir.Value | None], grid: Grid) -> bool:
        """Puts the number that a padded zero stands for among the inputs of a Pad."""
        if attribute(node, "mode", "constant") != "constant":
            return True
        scale, graph = array(grid.scale, limit=1), node.graph
        zero = array(grid.zero_point, limit=1)
        given = array(input_at(node, 2), limit=1)
        if scale is None or graph is None or (grid.zero_point is not None and zero is None):
            return False
        if (input_at(node, 2) is not None and given is None) or len(inputs) < 2:
            return False
        number = 0.0 if given is None else float(given.reshape(-1)[0])
        offset = 0.0 if zero is None else float(zero.reshape(-1)[0])
        filled = np.asarray((number - offset) * scale.reshape(-1)[0], scale.dtype)
        made = self.edit.initializer(filled, name=f"{node.name}_fill", graph=graph)
        inputs[2:3] = [made]
        return True

    # -- saturation

    def _inside(self, node: ir.Node, grid: Grid) -> ir.Value | None:
        """What a QuantizeLinear reads, within the limits that rounding to integers sets it."""
        source = node.inputs[0]
        if source is None or self.clip == "never" or constant(source) is not None:
            return source
        limits = _limits(grid, node.outputs[0])
        if limits is None:
            return source
        key = (source, *limits)
        if key not in self._limited:
            self._limited[key] = self._limit(node, source, *limits)
        return self._limited[key]

    def _limit(self, node: ir.Node, source: ir.Value, low: float, high: float) -> ir.Value:
        is_sure = self.clip == "always"
        outside = self.saturation.get(node.outputs[0].name or "")
        cut = is_sure or (outside is not None and outside > 0.0)
        below = (cut or (low == 0.0 and outside is None)) and not (low <= 0 and is_positive(source))
        above = cut or (outside is None and low == 0.0 and abs(high - _RELU6) < high / 128)
        if not below and not above:
            return source
        if low == 0.0 and not above:
            made = self.edit.insert(
                "Relu", [source], before=node, outputs=[f"{source.name}_relu"], like=source
            )
        elif self.ctx.model.opset < 11:
            made = self.edit.insert(
                "Clip",
                [source],
                before=node,
                outputs=[f"{source.name}_clip"],
                attributes={"min": low, "max": high},
                like=source,
            )
        else:
            made = self._clip(node, source, low, high)
        self.edit.count("saturations kept")
        return made.outputs[0]

    def _clip(self, node: ir.Node, source: ir.Value, low: float, high: float) -> ir.Node:
        graph = node.graph
        if graph is None:
            raise ValueError(f"not in a graph: {node.name}")
        dtype = np.float32 if source.dtype is None else source.dtype.numpy()
        bounds = [
            self.edit.initializer(
                np.asarray(bound, dtype), name=f"{source.name}_bound", graph=graph
            )
            for bound in (low, high)
        ]
        return self.edit.insert(
            "Clip", [source, *bounds], before=node, outputs=[f"{source.name}_clip"], like=source
        )


def grid_limits(node: ir.Node) -> tuple[float, float] | None:
    """Returns what a QuantizeLinear with one scale can tell apart, None for any other."""
    return _limits(grid_of(node), node.outputs[0])


def _limits(grid: Grid, quantized: ir.Value) -> tuple[float, float] | None:
    """The smallest and largest number of a grid with one scale, None when there is no such thing."""
    scale, zero = array(grid.scale, limit=1), array(grid.zero_point, limit=1)
    dtype = None if grid.zero_point is None else grid.zero_point.dtype
    if grid.zero_point is None:
        dtype = quantized.dtype or ir.DataType.UINT8
    tensor = constant(grid.zero_point) if grid.zero_point is not None else None
    dtype = tensor.dtype if tensor is not None else dtype
    if scale is None or scale.size != 1 or dtype is None or not dtype.is_integer():
        return None
    if grid.zero_point is not None and (zero is None or zero.size != 1):
        return None
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    signed = dtype.is_signed()
    low = -(1 << (dtype.bitwidth - 1)) if signed else 0
    high = low + (1 << dtype.bitwidth) - 1
    step = float(scale.reshape(-1)[0])
    return step * (low - offset), step * (high - offset)


def is_positive(value: ir.Value, depth: int = 0) -> bool:
    """Whether a value is surely never below zero."""
    node = value.producer()
    if node is None:
        found = array(value, limit=1 << 16)
        return found is not None and bool((found >= 0).all())
    if is_op(node, *_NEVER_NEGATIVE):
        return True
    if is_op(node, "DynamicQuantizeLinear"):
        return True  # a scale, or whole numbers without sign
    if is_op(node, "Clip"):
        low = array(input_at(node, 1), limit=1)
        given = float(low.reshape(-1)[0]) if low is not None and low.size else None
        given = attribute(node, "min") if given is None else given
        if given is not None and given >= 0:
            return True
    if is_op(node, "DequantizeLinear"):
        limits = _limits(grid_of(node), node.inputs[0] or value)
        return limits is not None and limits[0] >= 0
    if depth >= _DEEPEST or not is_op(node, *_KEEPS_SIGN, *_OF_ALL):
        return False
    carried = node.inputs if is_op(node, *_OF_ALL) else node.inputs[:1]
    return all(read is not None and is_positive(read, depth + 1) for read in carried)
