"""Products of integers that are scaled back to float by hand, as dynamic quantization writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import array, constant, input_at, is_op, single_use
from onnxcomp.quant.stored import dequantized
from onnxcomp_passes.quantize.float_twins import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp_passes.quantize.float_twins import Twins

# Element count up to which scales of a weight are read.
_SCALES = 1 << 16
_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass
class Product:
    """A MatMulInteger or ConvInteger whose result is cast to float and multiplied by scales.

    Attributes:
        node: The integer product.
        twins: Where float values of quantized ones come from.
    """

    node: ir.Node
    twins: Twins

    def run(self) -> str:
        """Writes `Mul(Cast(product), s * w)` as a product in float; returns why not, empty when it did."""
        scaled = self._scaled()
        if scaled is None:
            return "its result is not cast to float and multiplied by scales"
        mul, scale = scaled
        for own, other in self._splits(scale):
            grid = Grid(own, input_at(self.node, 2))
            x = self.twins.of(self.node.inputs[0], grid)
            if x is None:
                continue
            made = self._write(mul, x, other)
            if made is not None:
                self.twins.edit.set_type(made, ir.DataType.FLOAT, mul.outputs[0].shape)
                self.twins.edit.replace(mul.outputs[0], made)
                self.twins.edit.count("operators turned back")
                return ""
        return "its scales do not belong to what it reads"

    def _scaled(self) -> tuple[ir.Node, ir.Value] | None:
        cast = single_use(self.node.outputs[0])
        if cast is None or not is_op(cast, "Cast"):
            return None
        mul = single_use(cast.outputs[0])
        if mul is None or not is_op(mul, "Mul"):
            return None
        scale = mul.inputs[0] if mul.inputs[1] is cast.outputs[0] else mul.inputs[1]
        return None if scale is None else (mul, scale)

    @staticmethod
    def _splits(scale: ir.Value) -> Iterator[tuple[ir.Value, ir.Value | None]]:
        """Yields scales of the activation with what is left for the weight."""
        yield scale, None
        maker = scale.producer()
        if is_op(maker, "Mul") and maker is not None:
            first, second = maker.inputs
            if first is not None and second is not None:
                yield first, second
                yield second, first

    def _write(self, mul: ir.Node, x: ir.Value, scale: ir.Value | None) -> ir.Value | None:
        node, edit = self.node, self.twins.edit
        weight, rest = node.inputs[1], None
        if weight is None:
            return None
        if constant(weight) is not None:
            w, rest = self._weight(weight, scale)
        elif scale is not None:
            w = self.twins.of(weight, Grid(scale, input_at(node, 3)))
        else:
            return None
        if w is None:
            return None
        attributes = dict(node.attributes)
        made = edit.insert(
            _PRODUCTS[node.op_type],
            [x, w],
            before=mul,
            outputs=[f"{mul.outputs[0].name}_real"],
            attributes=attributes,
            name=node.name,
        ).outputs[0]
        if rest is not None:
            made = edit.insert("Mul", [made, rest], before=mul, like=mul.outputs[0]).outputs[0]
        return made

    def _weight(
        self, weight: ir.Value, scale: ir.Value | None
    ) -> tuple[ir.Value | None, ir.Value | None]:
        """The weight in float, and the scales that could not be multiplied into it."""
        numbers, zero = constant(weight), input_at(self.node, 3)
        zeros = array(zero, limit=_SCALES)
        if numbers is None or (zero is not None and zeros is None):
            return None, None
        axis = 0 if is_op(self.node, "ConvInteger") else -1
        shape = tuple(numbers.shape.numpy())
        scales = self._scales(scale, shape, axis)
        factor = np.ones(1, np.float32) if scales is None else scales
        if zeros is not None and zeros.size not in {1, shape[axis]}:
            return None, None

        def compute() -> np.ndarray[Any, Any]:
            flat = None if zeros is None else zeros.reshape(-1)
            wide = dequantized(numbers.numpy(), np.ones(1, np.float32), None)
            spread = [1] * len(shape)
            spread[axis] = -1
            if flat is not None:
                wide = wide - flat.astype(np.float32).reshape(spread if flat.size > 1 else [1])
            whole = wide * (factor.reshape(spread) if factor.size > 1 else factor.reshape(()))
            return np.asarray(whole, np.float32)

        made = self.twins.lazy(weight, compute, ir.DataType.FLOAT, shape)
        return made, scale if scales is None and scale is not None else None

    def _scales(
        self, scale: ir.Value | None, shape: tuple[int, ...], axis: int
    ) -> np.ndarray[Any, Any] | None:
        """Scales of the weight's slices, None when they cannot be multiplied into it."""
        found = array(scale, limit=_SCALES)
        if found is None:
            return None
        if found.size == 1:
            return found.reshape(-1)
        trailing = len(shape) - 2 if axis == 0 else 0
        wanted = (shape[axis], *([1] * trailing))
        dims = found.shape[len(found.shape) - len(wanted) :]
        fits = dims == wanted and found.size == shape[axis]
        return found.reshape(-1) if fits else None
