"""How weights of few bits are written into a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import is_read
from onnxcomp_passes.quantize.weight_packing import for_kernel, packed_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.quant.blocks import BlockScheme
    from onnxcomp_passes.quantize.weight_packing import Stored
    from onnxcomp_passes.quantize.weight_sites import Site, Use

_MICROSOFT = "com.microsoft"


@dataclass
class Writer:
    """Writes stored weights through an edit.

    Attributes:
        edit: The way to change the model.
        accuracy_level: What MatMulNBits computes in, where it is written as such.
    """

    edit: Edit
    accuracy_level: int = 4
    _spare: list[ir.Value] = field(default_factory=list)

    # -- packed: one kernel of the provider reads the numbers -----------------------------------------

    def dequantized(self, site: Site, use: Use, stored: Stored) -> ir.Node:
        """Puts a DequantizeLinear in front of a MatMul or Gemm, with tensors of its own.

        onnxruntime (1.31) makes MatMulNBits of it only where nothing else reads these tensors, and does
        not load a model whose If or Loop body reads them from outside; so each reader has them beside it.
        """
        numbers, grid, name = stored.numbers, stored.grid, site.name
        place = _graph_of(use.node)
        inputs = [self._tensor(numbers, stored.scheme, f"{name}_quantized", place)]
        scales = grid.scales.astype(site.tensor.dtype.numpy())
        zeros = grid.zero_points
        attributes: dict[str, Any] = {"axis": 0, "block_size": stored.scheme.block}
        if not stored.scheme.block:
            scales, zeros, attributes = scales[0], zeros[0], {"axis": 1}
        inputs.append(self.edit.initializer(scales, name=f"{name}_scale", graph=place))
        if zeros.any():
            inputs.append(self._tensor(zeros, stored.scheme, f"{name}_zero_point", place))
        node = self.edit.insert(
            "DequantizeLinear",
            inputs,
            before=use.node,
            outputs=[f"{name}_dequantized"],
            attributes=attributes,
            name=f"{name}_DequantizeLinear",
        )
        self.edit.set_type(node.outputs[0], site.tensor.dtype, numbers.shape)
        self._read(site, use, node.outputs[0])
        return node

    def _read(self, site: Site, use: Use, made: ir.Value) -> None:
        self.edit.set_input(use.node, use.index, made)
        self.edit.set_attribute(use.node, "transB", None)
        if use.transpose is not None and not is_read(use.transpose.outputs[0]):
            self.edit.remove(use.transpose)
        self.drop(site)

    def drop(self, site: Site) -> None:
        """Removes a weight that nobody reads any more."""
        value = site.value
        if is_read(value):
            return
        if value.is_initializer():
            self.edit.drop_initializer(value)
        else:
            maker = value.producer()
            if maker is not None and maker.graph is not None:
                self.edit.remove(maker)

    # -- unpacked: plain operators on constants, which a provider computes when it loads ----------------

    def unpacked(self, site: Site, stored: Stored) -> ir.Value:
        """Makes the weight of its numbers when the model is loaded; every reader reads that."""
        graph = site.value.graph
        if graph is None:
            raise ValueError(f"a weight without a graph: {site.name}")
        first = graph[0]
        shape, scales, zeros = _layout(site, stored)
        packed = self._numbers(site, stored, shape, first)
        value = self._cast(packed, site, first)
        if zeros.any():
            if (zeros == zeros.flat[0]).all():
                zeros = zeros.reshape(-1)[:1].reshape(())
            made = self._tensor(zeros, stored.scheme, f"{site.name}_zero_point", graph)
            value = self._op("Sub", [value, self._cast(made, site, first)], site, first)
        scale = scales.astype(site.tensor.dtype.numpy())
        made = self.edit.initializer(scale, name=f"{site.name}_scale", graph=graph)
        value = self._op("Mul", [value, made], site, first)
        if shape != site.shape:
            wanted = np.asarray(site.shape, np.int64)
            made = self.edit.initializer(wanted, name=f"{site.name}_shape", graph=graph)
            value = self._op("Reshape", [value, made], site, first)
        self.edit.set_type(value, site.tensor.dtype, site.shape)
        self.edit.replace(site.value, value)
        self.drop(site)
        return value

    def _numbers(
        self, site: Site, stored: Stored, shape: tuple[int, ...], first: ir.Node
    ) -> ir.Value:
        numbers = stored.numbers if site.orientation == "columns" else stored.numbers.T
        graph = _graph_of(first)
        if stored.scheme.bits != 3:
            return self._tensor(
                numbers.reshape(shape), stored.scheme, f"{site.name}_quantized", graph
            )
        return self._planes(site, numbers.reshape(shape), first)

    def _planes(self, site: Site, numbers: NDArray[Any], first: ir.Node) -> ir.Value:
        """Three bits, for which ONNX has no type: a plane of bytes for each, put together when loaded."""
        graph, name = _graph_of(first), site.name
        bits = [(numbers.reshape(-1) >> bit) & 1 for bit in range(3)]
        planes = np.stack([np.packbits(each, bitorder="little") for each in bits])[..., None]
        packed = self.edit.initializer(planes, name=f"{name}_planes", graph=graph)
        shifts = self._small(np.arange(8, dtype=np.uint8), name, "shifts", graph)
        one = self._small(np.asarray(1, np.uint8), name, "one", graph)
        places = np.array([1, 2, 4], np.float32).reshape(3, 1, 1)
        shifted = self._op(
            "BitShift", [packed, shifts], site, first, attributes={"direction": "RIGHT"}
        )
        single = self._op("BitwiseAnd", [shifted, one], site, first)
        cast = self._op(
            "Cast", [single], site, first, attributes={"to": int(ir.DataType.FLOAT.value)}
        )
        weighed = self._op("Mul", [cast, self._small(places, name, "places", graph)], site, first)
        axes = self._small(np.array([0], np.int64), name, "axes", graph)
        summed = self._op("ReduceSum", [weighed, axes], site, first, attributes={"keepdims": 0})
        flat = self._op(
            "Reshape",
            [summed, self._small(np.array([-1], np.int64), name, "flat", graph)],
            site,
            first,
        )
        size = self._small(np.array([numbers.size], np.int64), name, "size", graph)
        start = self._small(np.array([0], np.int64), name, "start", graph)
        cut = self._op("Slice", [flat, start, size], site, first)
        shape = self._small(np.asarray(numbers.shape, np.int64), name, "blocks", graph)
        return self._op("Reshape", [cut, shape], site, first)

    def _small(self, array: NDArray[Any], name: str, what: str, graph: ir.Graph) -> ir.Value:
        return self.edit.initializer(array, name=f"{name}_{what}", graph=graph)

    # -- tables ------------------------------------------------------------------------------------

    def table(
        self, site: Site, use: Use, stored: Stored, rank: int, shared: dict[str, ir.Value]
    ) -> None:
        """Picks numbers and scales of rows, and computes only these rows.

        A DequantizeLinear in front of the Gather would compute the whole table in every run: measured,
        100 to 500 times slower on 30,000 rows.
        """
        node = use.node
        if not shared:
            shared.update(self._table_tensors(site, stored, _owner(site)))
        picked = [self._picked(node, shared[name], site) for name in ("numbers", "scale")]
        value = picked[0]
        if stored.scheme.bits == 4:
            low = self._op("BitwiseAnd", [value, shared["mask"]], site, node)
            high = self._op(
                "BitShift", [value, shared["shift"]], site, node, attributes={"direction": "RIGHT"}
            )
            value = self._op("Concat", [low, high], site, node, attributes={"axis": -1})
        value = self._cast(value, site, node)
        if "zero" in shared:
            value = self._op("Sub", [value, shared["zero"]], site, node)
        value = self._op("Mul", [value, picked[1]], site, node)
        if stored.scheme.blocks(stored.grid.rows) > 1:
            shape = np.array([0] * rank + [site.shape[1]], np.int64)
            made = self.edit.initializer(shape, name=f"{site.name}_shape", graph=_graph_of(node))
            value = self._op("Reshape", [value, made], site, node)
        old = node.outputs[0]
        self.edit.set_type(value, site.tensor.dtype, old.shape)
        self.edit.replace(old, value)
        self.edit.remove(node)

    def _table_tensors(self, site: Site, stored: Stored, graph: ir.Graph) -> dict[str, ir.Value]:
        numbers, name = stored.numbers.T, site.name
        blocks = stored.scheme.blocks(stored.grid.rows)
        scales = stored.grid.scales.T.astype(site.tensor.dtype.numpy())
        if blocks > 1:
            numbers, scales = numbers.reshape(site.shape[0], blocks, -1), scales[..., None]
        made: dict[str, NDArray[Any]] = {"numbers": numbers, "scale": scales}
        if stored.scheme.bits == 4:
            half = numbers.shape[-1] // 2
            made["numbers"] = numbers[..., :half] | (numbers[..., half:] << 4)
            made |= {"mask": np.asarray(15, np.uint8), "shift": np.asarray(4, np.uint8)}
        if stored.scheme.middle:
            made["zero"] = np.asarray(stored.scheme.middle, site.tensor.dtype.numpy())
        return {
            key: self.edit.initializer(
                np.ascontiguousarray(array), name=f"{name}_{key}", graph=graph
            )
            for key, array in made.items()
        }

    def _picked(self, gather: ir.Node, table: ir.Value, site: Site) -> ir.Value:
        return self._op("Gather", [table, gather.inputs[1]], site, gather, attributes={"axis": 0})

    # -- the provider's own operators -----------------------------------------------------------------

    def matmul_n_bits(self, site: Site, use: Use, stored: Stored) -> ir.Node:
        """Replaces a MatMul or Gemm by onnxruntime's MatMulNBits."""
        node, graph, scheme = use.node, _graph_of(use.node), stored.scheme
        rows, columns = stored.numbers.shape
        size = scheme.block
        packed, zeros = for_kernel(stored)
        dtype = site.tensor.dtype.numpy()
        scales = np.ascontiguousarray(stored.grid.scales.T.astype(dtype))
        inputs: list[ir.Value | None] = [
            node.inputs[0],
            self.edit.initializer(packed, name=f"{site.name}_quantized", graph=graph),
            self.edit.initializer(scales, name=f"{site.name}_scale", graph=graph),
        ]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if zeros is not None or bias is not None:
            made = None
            if zeros is not None:
                made = self.edit.initializer(zeros, name=f"{site.name}_zero_point", graph=graph)
            inputs.append(made)
        if bias is not None:
            inputs += [None, bias]
        attributes = {"K": rows, "N": columns, "bits": scheme.bits, "block_size": size}
        made_node = self._microsoft("MatMulNBits", inputs, node, attributes)
        if use.transpose is not None and not is_read(use.transpose.outputs[0]):
            self.edit.remove(use.transpose)
        self.drop(site)
        return made_node

    def _microsoft(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        node: ir.Node,
        attributes: dict[str, Any],
    ) -> ir.Node:
        self.edit.import_domain(_MICROSOFT, 1)
        if op_type == "MatMulNBits":
            attributes = {**attributes, "accuracy_level": self.accuracy_level}
        made = self.edit.insert(
            op_type,
            inputs,
            before=node,
            attributes=attributes,
            domain=_MICROSOFT,
            like=node.outputs[0],
            outputs=[f"{node.outputs[0].name}_nbits"],
            name=f"{node.name or op_type}_nbits",
        )
        self.edit.replace(node.outputs[0], made.outputs[0])
        self.edit.remove(node)
        return made

    # -- small parts ---------------------------------------------------------------------------------

    def _tensor(
        self, numbers: NDArray[Any], scheme: BlockScheme, name: str, graph: ir.Graph
    ) -> ir.Value:
        return self.edit.initializer(packed_tensor(numbers, scheme), name=name, graph=graph)

    def _cast(self, value: ir.Value, site: Site, before: ir.Node) -> ir.Value:
        to = int(site.tensor.dtype.value)
        return self._op("Cast", [value], site, before, attributes={"to": to})

    def _op(
        self,
        op_type: str,
        inputs: list[ir.Value | None] | list[ir.Value],
        site: Site,
        before: ir.Node,
        *,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        name = f"{site.name}_{op_type.lower()}"
        node = self.edit.insert(
            op_type, list(inputs), before=before, outputs=[name], attributes=attributes
        )
        return node.outputs[0]


def _layout(site: Site, stored: Stored) -> tuple[tuple[int, ...], NDArray[Any], NDArray[Any]]:
    """Returns the shape in which numbers are stored, and scales and zero points that fit to it."""
    grid, scheme = stored.grid, stored.scheme
    size = scheme.rows_of_block(grid.rows)
    blocks, columns = grid.scales.shape
    if site.orientation == "columns":
        if blocks == 1 and len(site.shape) == 2:
            return site.shape, grid.scales, grid.zero_points
        return (
            (blocks, size, columns),
            grid.scales[:, None],
            grid.zero_points[:, None],
        )
    if blocks == 1:
        ones = (*site.shape[: site.leading], *(1 for _ in site.shape[site.leading :]))
        return site.shape, grid.scales.reshape(ones), grid.zero_points.reshape(ones)
    return (columns, blocks, size), grid.scales.T[..., None], grid.zero_points.T[..., None]


def as_matrix(site: Site) -> NDArray[Any]:
    """Returns a weight as (K, N), one output each column; read from where it lies."""
    array = site.tensor.numpy()
    if site.orientation == "columns":
        return array.reshape(-1, site.shape[-1])
    return array.reshape(-1, site.depth).T


def _graph_of(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"not in a graph: {node.op_type} {node.name}")
    return node.graph


def _owner(site: Site) -> ir.Graph:
    if site.value.graph is None:
        raise ValueError(f"a weight without a graph: {site.name}")
    return site.value.graph
