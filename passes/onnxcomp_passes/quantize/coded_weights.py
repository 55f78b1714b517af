"""Weights that become indices: which there are, how much each counts, and the nodes that expand them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import constant, is_op, is_read, standard_op, subgraphs
from onnxcomp.quant.grams import collect_grams
from onnxcomp.quant.packing import pack
from onnxcomp.quant.readers import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model
    from onnxcomp.passbase import Context
    from onnxcomp.quant.grams import Gram
    from onnxcomp.quant.packing import Piece
    from onnxcomp.quant.readers import Layer
    from onnxcomp.samples import Samples

# Shifts of bytes came with this opset.
SHIFT_OPSET = 11
_SPLIT_BY_INPUT = 13
_BITWISE_OPSET = 18
# Samples, and rows of each, that are looked at for importance.
_LOOKED_AT, _ROWS = 32, 512
_KEPT_BYTES = 1 << 29
# Below this a weight costs more nodes than it saves bytes.
LEAST_ELEMENTS = 2048
_KERNELS = ("Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN")
_TABLES = ("Gather",)
_RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A weight that may be stored as indices.

    Attributes:
        value: The weight.
        shape: Its shape.
        kept: Axes of its output channels.
        is_table: Whether rows are picked from it.
        layers: The layers that read it as their weight.
    """

    value: ir.Value
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    is_table: bool
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.value.name or ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    def read(self) -> NDArray[Any]:
        """Returns its numbers."""
        tensor = constant(self.value)
        if tensor is None:
            raise ValueError(f"not constant: {self.name}")
        return tensor.numpy()


def find_weights(
    model: Model, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[CodedWeight]:
    """Returns the float32 weights of layers and tables, in every scope.

    Args:
        model: The model.
        only: Patterns for names of weights, or of nodes that read them; all when there are none.
        skip: Patterns for those to leave.
    """
    found = []
    for value in _constants(model.graph):
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output():
            continue
        shape = tuple(tensor.shape.numpy())
        if len(shape) < 2 or int(np.prod(shape)) < LEAST_ELEMENTS:
            continue
        readers = [use for use in value.uses() if _is_weight_of(use.node, use.idx)]
        if not readers:
            continue
        names = [value.name or "", *(use.node.name or "" for use in readers)]
        if (only and not _matches(names, only)) or _matches(names, skip):
            continue
        layers = tuple(
            layer
            for use in readers
            if (layer := layer_of(use.node)) is not None and layer.weight is value
        )
        kept = _channels(readers[0].node, readers[0].idx, shape)
        is_table = any(is_op(use.node, *_TABLES) for use in readers)
        found.append(CodedWeight(value, shape, kept, is_table, layers))
    return found


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    """Initializers and results of Constant nodes, in every scope but those of functions."""
    yield from graph.initializers.values()
    for node in graph:
        if is_op(node, "Constant"):
            yield node.outputs[0]
        for body in subgraphs(node):
            yield from _constants(body)


def _is_weight_of(node: ir.Node, index: int) -> bool:
    if is_op(node, *_TABLES):
        return index == 0
    if is_op(node, *_RECURRENT):
        return index in {1, 2}
    return is_op(node, *_KERNELS) and (index == 1 or is_op(node, "MatMul"))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _channels(node: ir.Node, index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes along which scales vary: outputs of a layer, rows of a table."""
    name = standard_op(node)
    if name in _RECURRENT:
        return (0, 1)
    if name == "ConvTranspose":
        return (1,)
    if name == "MatMul":
        return (len(shape) - 1,) if index == 1 else (len(shape) - 2,)
    if name == "Gemm":
        transposed = node.attributes.get("transB")
        return (0,) if transposed is not None and transposed.value else (1,)
    return (0,)


@dataclass(eq=False)
class Grams:
    """Gram matrices of what weights multiply; kept for the next time where they are small enough."""

    ctx: Context
    weights: Sequence[CodedWeight]
    samples: Samples
    _kept: list[tuple[CodedWeight, Layer, Gram]] = field(default_factory=list)
    _is_complete: bool = False

    def __iter__(self) -> Iterator[tuple[CodedWeight, Layer, Gram]]:
        if self._is_complete:
            yield from self._kept
            return
        # What is computed in a body cannot be looked at from outside.
        main = self.ctx.model.graph
        first = ((weight, layer) for weight in self.weights for layer in weight.layers[:1])
        owners = {layer: weight for weight, layer in first if layer.source.graph is main}
        some = self.samples.take(min(_LOOKED_AT, len(self.samples)))
        room, self._kept = _KEPT_BYTES, []
        for layer, gram in collect_grams(
            self.ctx.model,
            list(owners),
            some,
            threads=self.ctx.threads,
            progress=self.ctx.progress,
            rows_per_sample=_ROWS,
        ):
            room -= gram.matrix.nbytes
            if room >= 0:
                self._kept.append((owners[layer], layer, gram))
            yield owners[layer], layer, gram
        self._is_complete = room >= 0

    def moments(self) -> dict[CodedWeight, NDArray[np.float64]]:
        """Returns the second moment of what each number of a weight is multiplied by, in its shape."""
        return {weight: _moments(layer, gram) for weight, layer, gram in self}


def _moments(layer: Layer, gram: Gram) -> NDArray[np.float64]:
    diagonal = np.diagonal(gram.matrix, axis1=-2, axis2=-1) / max(gram.count, 1)
    # What was never active still has to have a number.
    diagonal = diagonal + 1e-3 * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
    full = np.repeat(diagonal[..., None], layer.outputs, axis=-1)
    return layer.from_matrix(full)


@dataclass
class Expander:
    """Writes the nodes that turn packed indices into numbers; constants that are the same are shared.

    onnxruntime computes them when it loads the model, because all of it is constant: the file is small,
    memory and speed of a run are those of a float model. With `in_run` a zero that only looks random keeps
    it from doing so: weights stay packed in memory, and every run takes the time to unpack them.
    """

    edit: Edit
    opset: int
    in_run: bool = False
    _left: list[ir.Node] = field(default_factory=list)
    _zeros: dict[int, ir.Value] = field(default_factory=dict)
    _shared: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    _firsts: dict[int, ir.Node] = field(default_factory=dict)

    def indices(self, like: ir.Value, codes: NDArray[np.uint8], bits: int) -> ir.Value:
        """Returns the indices of a weight as an int32 value of their shape.

        Bytes as long as possible: what is computed at load stays in memory with onnxruntime.
        """
        fits, is_wide = codes.size % 8 == 0, self.opset < _BITWISE_OPSET
        shape = codes.shape if fits else (-1,)
        parts = [self._unpacked(like, piece, shape) for piece in pack(codes, bits)]
        if is_wide:
            parts = [self._whole(like, part) for part in parts]
        value = parts[0]
        for part in parts[1:]:
            value = self.op("Add" if is_wide else "BitwiseOr", [value, part], like)
        if not is_wide:
            value = self._whole(like, value)
        if not fits:
            value = self._cut(like, value, codes.size, 8 - codes.size % 8)
            value = self.shaped(value, like, codes.shape)
        return value

    def _whole(self, like: ir.Value, value: ir.Value) -> ir.Value:
        return self.op("Cast", [value], like, {"to": ir.AttrInt64("to", int(ir.DataType.INT32))})

    def _unpacked(self, like: ir.Value, piece: Piece, shape: tuple[int, ...]) -> ir.Value:
        """A byte for each number, with the bits of a piece in their place."""
        data = piece.data.reshape(shape) if piece.bits == 8 else piece.data[:, None]
        value = self.tensor(like, data, "codes")
        if piece.bits < 8:
            # To the left and back again: what lies beside a number falls out.
            up = 8 - piece.bits * (1 + np.arange(piece.per_byte))
            value = self._shift(like, value, self._amount(like, up.astype(np.uint8)), "LEFT")
            down = self.shared(like, np.asarray(8 - piece.bits, np.uint8))
            value = self._shift(like, value, down, "RIGHT")
            if piece.shift:
                place = self.shared(like, np.asarray(piece.shift, np.uint8))
                value = self._shift(like, value, place, "LEFT")
            value = self.shaped(value, like, shape)
        elif self.in_run:
            value = self._shift(like, value, self._zero(like), "LEFT")
        return value

    def _shift(self, like: ir.Value, value: ir.Value, amount: ir.Value, direction: str) -> ir.Value:
        return self.op("BitShift", [value, amount], like, {"direction": direction})

    def _amount(self, like: ir.Value, by: NDArray[np.uint8]) -> ir.Value:
        amount = self.shared(like, by)
        if not self.in_run:
            return amount
        key = (id(_graph(like)), "in run", by.tobytes())
        if key not in self._shared:
            self._shared[key] = self._shift(like, amount, self._zero(like), "LEFT")
        return self._shared[key]

    def _zero(self, like: ir.Value) -> ir.Value:
        """A zero that no optimiser computes ahead of time."""
        graph = _graph(like)
        if id(graph) not in self._zeros:
            drawn = self.op("RandomUniform", [], like, {"shape": [1], "low": 0.0, "high": 0.5})
            cast = {"to": ir.AttrInt64("to", int(ir.DataType.UINT8))}
            self._zeros[id(graph)] = self.op("Cast", [drawn], like, cast)
        return self._zeros[id(graph)]

    def _cut(self, like: ir.Value, value: ir.Value, size: int, padding: int) -> ir.Value:
        """Drops what fills up the last byte."""
        if self.opset >= _SPLIT_BY_INPUT:
            given = self.tensor(like, np.array([size, padding], np.int64), "split")
            node = self._insert("Split", [value, given], like, {}, 2)
        else:
            node = self._insert("Split", [value], like, {"split": [size, padding]}, 2)
        return node.outputs[0]

    def tensor(self, like: ir.Value, array: NDArray[Any], what: str) -> ir.Value:
        """Adds a constant of one weight."""
        return self.edit.initializer(array, name=f"{like.name}_{what}", graph=_graph(like))

    def shared(self, like: ir.Value, array: Any) -> ir.Value:  # noqa: ANN401 - array or number
        """Returns a small constant, one for all weights of a scope."""
        plain, graph = np.asarray(array), _graph(like)
        key = (id(graph), plain.dtype.str, plain.shape, plain.tobytes())
        if key not in self._shared:
            self._shared[key] = self.edit.initializer(plain, name="unpack", graph=graph)
        return self._shared[key]

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """Adds a node in front of all that was in the scope before."""
        return self._insert(op_type, inputs, like, attributes or {}, 1).outputs[0]

    def _insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        attributes: dict[str, Any],
        outputs: int,
    ) -> ir.Node:
        names = [f"{like.name}_{op_type}"] * outputs
        first = self._first(_graph(like))
        return self.edit.insert(op_type, inputs, before=first, outputs=names, attributes=attributes)

    def _first(self, graph: ir.Graph) -> ir.Node:
        if id(graph) not in self._firsts:
            self._firsts[id(graph)] = graph[0]
        return self._firsts[id(graph)]

    def shaped(self, value: ir.Value, like: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Gives numbers the shape of a weight."""
        wanted = self.shared(like, np.asarray(shape, np.int64))
        return self.op("Reshape", [value, wanted], like)

    def put(self, like: ir.Value, value: ir.Value, shape: tuple[int, ...]) -> None:
        """Lets everything that read a weight read what is expanded, and drops the weight."""
        self.edit.set_type(value, ir.DataType.FLOAT, shape)
        self.edit.replace(like, value)
        if like.is_initializer():
            self.edit.drop_initializer(like)
        elif (node := like.producer()) is not None:
            self._left.append(node)

    def finish(self) -> None:
        """Removes Constant nodes whose numbers are stored otherwise now."""
        for node in self._left:
            if not any(map(is_read, node.outputs)):
                self.edit.remove(node)
        self._left.clear()


def _graph(value: ir.Value) -> ir.Graph:
    if value.graph is None:
        raise ValueError(f"not in a graph: {value.name}")
    return value.graph
